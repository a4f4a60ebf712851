"""Measured times between their measuring points: no curve is fitted."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T", int, float)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Times at rising points.

    Attributes:
        points: where was measured, strictly rising.
        values: what was measured there.
    """

    points: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, measured: Mapping[int, float]) -> Curve:
        """From values by point, in any order."""
        points = tuple(sorted(measured))
        return cls(points, tuple(measured[point] for point in points))

    @property
    def last(self) -> float:
        """The largest point."""
        return self.points[-1]

    def at(self, point: float) -> float:
        """Straight lines between neighbours; below the first point its value, beyond the last one the last line."""
        if point <= self.points[0] or len(self.points) == 1:
            return self.values[0]
        right = min(bisect.bisect_left(self.points, point), len(self.points) - 1)
        x0, x1 = self.points[right - 1], self.points[right]
        y0, y1 = self.values[right - 1], self.values[right]
        return y0 + (y1 - y0) * ((point - x0) / (x1 - x0))

    def at_next(self, point: float) -> float:
        """The value at the next larger measured point: matrix products fill whole tiles, so that time rises in steps.

        Beyond the last point as `at`.
        """
        right = bisect.bisect_left(self.points, point)
        return self.values[right] if right < len(self.points) else self.at(point)

    def times(self, factor: float) -> Curve:
        """All values multiplied."""
        return Curve(self.points, tuple(value * factor for value in self.values))


def total(curves: Iterable[Curve]) -> Curve:
    """The sum of curves, on the points of all of them; zero where there are none."""

    def add(left: Curve, right: Curve) -> Curve:
        if left.points == right.points:
            return Curve(left.points, tuple(a + b for a, b in zip(left.values, right.values, strict=True)))
        points = tuple(sorted({*left.points, *right.points}))
        return Curve(points, tuple(left.at(point) + right.at(point) for point in points))

    found = list(curves)
    return functools.reduce(add, found) if found else Curve((0.0,), (0.0,))


def neighbours(axis: Sequence[T], point: float) -> tuple[T, T, float]:
    """Grid values on both sides of `point` and the weight of the upper one; the nearest alone outside the axis."""
    if point <= axis[0]:
        return axis[0], axis[0], 0.0
    if point >= axis[-1]:
        return axis[-1], axis[-1], 0.0
    right = bisect.bisect_left(axis, point)
    low, high = axis[right - 1], axis[right]
    return (high, high, 0.0) if point == high else (low, high, (point - low) / (high - low))
