"""Where to measure: points are put where a line between their neighbours would be wrong."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Sequence

START_FACTOR = 4.0
Between = Callable[[int, int, int], float]
"""``between(low, high, point)``: what the reader of the profile would say of `point` from its two neighbours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How fine a grid gets.

    Attributes:
        tolerance: relative error at the middle of an interval that is good enough.
        closest: neighbours nearer than this factor are not refined: there noise is mistaken for a bend.
        max_points: on one axis, beside those of the first halving.
    """

    tolerance: float = 0.04
    closest: float = 1.5
    max_points: int = 11


def geometric(low: int, high: int, factor: float = START_FACTOR) -> list[int]:
    """Whole numbers from `low` to `high`, evenly spread on a logarithmic axis, `factor` or less apart."""
    if high <= low:
        return [low]
    parts = max(1, math.ceil(math.log(high / low) / math.log(factor) - 1e-9))
    return sorted({round(low * (high / low) ** (part / parts)) for part in range(parts + 1)})


def refine(start: Sequence[int], measure: Callable[[int], float], between: Between, rules: Rules) -> list[int]:
    """Points from `start` on, halved (on a logarithmic axis) until the middle of every interval is predicted.

    The interval with the largest error goes first. Every point that was measured is kept, so that the intervals of the
    result are half as wide as those that were found good enough.

    Args:
        start: rising points; the first and the last are the range.
        measure: seconds at a point; asked once or more for the same.
        between: the reader's interpolation.
        rules: when an interval is good enough, and how many points there may be.

    Returns:
        Rising points.
    """
    points = set(start)
    for point in start:
        measure(point)
    waiting: list[tuple[float, int, int]] = []

    def split(low: int, high: int) -> None:
        middle = round(math.sqrt(max(low, 1) * high))
        if not low < middle < high or high < rules.closest * max(low, 1):
            return
        points.add(middle)
        seconds = measure(middle)
        error = abs(between(low, high, middle) - seconds) / seconds
        if error > rules.tolerance:
            heapq.heappush(waiting, (-error, low, middle))
            heapq.heappush(waiting, (-error, middle, high))

    for low, high in itertools.pairwise(start):
        split(low, high)
    while waiting and len(points) < rules.max_points:
        _, low, high = heapq.heappop(waiting)
        split(low, high)
    return sorted(points)


def straight(measure: Callable[[int], float], along: Callable[[int], float] = float) -> Between:
    """A straight line between two measured points, along `along` of the point."""

    def between(low: int, high: int, point: int) -> float:
        first, last = measure(low), measure(high)
        start, end = along(low), along(high)
        return first + (last - first) * (along(point) - start) / (end - start) if end > start else first

    return between
