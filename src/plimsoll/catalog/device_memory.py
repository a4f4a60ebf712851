"""How much of a GPU's memory a program sees: less than its datasheet says, or more, where that means GB."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.core.units import GIB

DATA_FILE = Path(__file__).parent / "data" / "engines" / "_device_memory.toml"


def visible_memory_bytes(gpu: Accelerator) -> float:
    """Memory of `gpu` that a program sees: as printed where somebody printed it, else a usual share of the nominal.

    A printed figure may be above the catalogue's `memory_bytes` where a datasheet means GB (H200: 141 GB, 139.8 GiB).
    """
    table = _table()
    best, best_length = 0.0, -1
    for row in table["visible"]:
        for prefix in (row["match"], *row.get("also", ())):
            found = (
                _letters(gpu.id) == _letters(prefix)
                if row.get("exact")
                else _letters(gpu.id).startswith(_letters(prefix))
            )
            visible = row["gib"] * GIB
            # A prefix such as H100 also names cards of another size; the nominal memory tells them apart.
            if found and len(prefix) > best_length and 0.9 * gpu.memory_bytes < visible < 1.08 * gpu.memory_bytes:
                best, best_length = visible, len(prefix)
    if best:
        return best
    return float(table["default"]["frac"]) * gpu.memory_bytes


@functools.cache
def _table() -> Any:
    return tomllib.loads(DATA_FILE.read_text(encoding="utf-8"))


def _letters(text: str) -> str:
    return "".join(ch for ch in text.lower() if ch.isalnum())
