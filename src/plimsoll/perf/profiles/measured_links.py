"""Messages between cards that somebody measured, for a machine of which only card and bandwidth are known.

A bandwidth and a latency of one hop describe long messages well and short ones badly: between two RTX PRO 6000 a short
message takes 13 to 16 µs where the description that is in use says 20 a hop. Source and date: ``data/links.toml``.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from plimsoll.perf.profiles.curves import Curve

SAME_BANDWIDTH_FRAC = 0.1
"""Two links of one card are of the same kind when their bandwidths differ by less; generations of PCIe differ by 2."""
KINDS = ("all_reduce", "all_gather", "reduce_scatter")


@functools.cache
def _tables() -> list[dict[str, Any]]:
    text = (resources.files("plimsoll.perf") / "data" / "links.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)["measured"]
    return entries


def measured_between(gpu: str, bytes_per_s: float) -> tuple[int, Mapping[str, Curve]]:
    """Cards, and seconds by bytes of every kind of message, between cards `gpu` on links of `bytes_per_s`.

    ``(0, {})`` where nobody measured such a pair.
    """
    for entry in _tables():
        known = float(entry["link_bandwidth_bytes_per_s"])
        if entry["gpu"] == gpu and abs(bytes_per_s - known) < SAME_BANDWIDTH_FRAC * known:
            curves = {
                kind: Curve.of({int(num_bytes): float(seconds) for num_bytes, seconds in entry[kind].items()})
                for kind in KINDS
            }
            return int(entry["ranks"]), curves
    return 0, {}
