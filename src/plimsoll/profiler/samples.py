"""Repeated measurements become a median and a spread."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from plimsoll.core.units import US_PER_S


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How often a measurement is repeated.

    Attributes:
        warm_ups: calls before the first that counts.
        min_samples, max_samples: at least and at most so many count.
        budget_s: between the two, until this much time is spent.
    """

    warm_ups: int = 1
    min_samples: int = 5
    max_samples: int = 25
    budget_s: float = 0.25


def collect(once: Callable[[], float], effort: Effort) -> list[float]:
    """Seconds of repeated calls of `once`, which returns its own time."""
    for _ in range(effort.warm_ups):
        once()
    samples: list[float] = []
    spent_s = 0.0
    while len(samples) < effort.max_samples and (len(samples) < effort.min_samples or spent_s < effort.budget_s):
        samples.append(once())
        spent_s += samples[-1]
    return samples


def spread_frac(samples: Sequence[float]) -> float:
    """Half the distance between the quartiles over the median; 0 of a single sample."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / 2 / middle if middle > 0 else 0.0


def figures(samples: Sequence[float], column: str = "time_us", factor: float = US_PER_S) -> dict[str, Any]:
    """The columns of a table: median in the table's unit (seconds become microseconds), spread, number."""
    return {
        column: statistics.median(samples) * factor,
        "spread_frac": spread_frac(samples),
        "num_samples": len(samples),
    }
