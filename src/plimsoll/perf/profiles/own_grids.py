"""Attention between the points of a profile of Plimsoll's own form: prompt chunks, decodes, and both in one step.

Chunks. Between two measured chunks time follows the attention pairs ``chunk·(context + (chunk + 1)/2)``, along the
context it is a straight line: exact for a kernel that takes a fixed time and a time per pair. Several chunks cost their
number times one of their mean size, times what was measured of that (`ratios`): 1 where a kernel takes them one by
one, less where they fill the device together. Decodes are straight lines in their number and their mean length. Beside
chunks they cost the share `beside` of what they cost alone.

Behind a sliding window a token sees `window` tokens at most: pairs count no more, and context and length beyond it cost
nothing. `own_layers` puts the kinds of layers of a model together.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping

from plimsoll.core.units import US_PER_S
from plimsoll.perf.profiles.curves import Curve, neighbours
from plimsoll.perf.profiles.grids import Slices
from plimsoll.perf.profiles.own_format import Row


def pairs_of(chunk: float, context: float, window: int | None = None) -> float:
    """Attention pairs of a chunk behind `context` cached tokens, of which each token sees `window` at most."""
    if window is None or context + chunk <= window:
        return chunk * (context + (chunk + 1) / 2)
    if context >= window - 1:  # the first new token fills the window with itself
        return chunk * window
    free = window - context
    return free * context + free * (free + 1) / 2 + (chunk - free) * window


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnAttention:
    """Seconds of the attention of one layer.

    Attributes:
        chunks: one chunk alone, by its size, over the context before it.
        ratios: several chunks over their number times one, by number, over the size of each.
        decodes: by number, over their mean length, to the window at most.
        beside: time that decodes add to a step with chunks, over their time alone.
        window: tokens that a token sees at most, itself included; None for all.
    """

    chunks: Slices[Curve]
    ratios: Slices[Curve]
    decodes: Slices[Curve]
    beside: float
    window: int | None = None

    def prefill_s(self, num_prefill: int, chunk: float, context: float) -> float:
        """Of `num_prefill` chunks of `chunk` tokens, each behind `context`."""
        return num_prefill * self._chunk_s(chunk, self.seen(context)) * self._ratio(num_prefill, chunk)

    def seen(self, tokens: float) -> float:
        """Of `tokens`, those that lie in the window."""
        return tokens if self.window is None else min(tokens, self.window)

    def decode_curve(self, num_decode: int) -> Curve:
        """Time of `num_decode` decodes over their mean length, on the lengths of both measured neighbours."""
        low, high, weight = neighbours(self.decodes.axis, num_decode)
        left, right = self.decodes.items[low], self.decodes.items[high]
        if not weight:
            return left if num_decode <= high else left.times(num_decode / high)
        points = tuple(sorted({*left.points, *right.points}))
        return Curve(points, tuple(left.at(p) + weight * (right.at(p) - left.at(p)) for p in points))

    def longest_of(self, num_decode: int) -> float:
        """The length up to which both measured neighbours of so many decodes reach."""
        low, high, _ = neighbours(self.decodes.axis, num_decode)
        return min(self.decodes.items[low].last, self.decodes.items[high].last)

    def _chunk_s(self, chunk: float, context: float) -> float:
        low, high, _ = neighbours(self.chunks.axis, chunk)
        first = self._row_s(low, context)
        if low == high:
            return first if chunk <= high else first * self._pairs(chunk, context) / self._pairs(high, context)
        start, end = self._pairs(low, context), self._pairs(high, context)
        weight = (self._pairs(chunk, context) - start) / (end - start)
        return first + weight * (self._row_s(high, context) - first)

    def _row_s(self, chunk: int, context: float) -> float:
        """One chunk of a measured size: along the context, or where a window ends it, along the pairs behind it."""
        curve = self.chunks.items[chunk]
        if self.window is None or context >= curve.last:
            return curve.at(context)
        low, high, _ = neighbours(curve.points, context)
        start, end = self._pairs(chunk, low), self._pairs(chunk, high)
        share = (self._pairs(chunk, context) - start) / (end - start) if end > start else 0.0
        return curve.at(low) + share * (curve.at(high) - curve.at(low))

    def _pairs(self, chunk: float, context: float) -> float:
        return pairs_of(chunk, context, self.window)

    def _ratio(self, num_prefill: int, chunk: float) -> float:
        if num_prefill == 1 or not self.ratios.axis:
            return 1.0
        axis = (1, *self.ratios.axis)
        low, high, weight = neighbours(axis, num_prefill)
        start = self._ratio_at(low, chunk)
        return start + weight * (self._ratio_at(high, chunk) - start)

    def _ratio_at(self, num_prefill: int, chunk: float) -> float:
        if num_prefill == 1:
            return 1.0
        curve = self.ratios.items[num_prefill]
        return curve.at(min(chunk, curve.last))


def attention_of(rows: Iterable[Row], window: int | None = None) -> OwnAttention:
    """The grids of ``attention.csv``, seconds of one call; with a window those of ``attention_window.csv``."""
    chunks: dict[int, dict[int, float]] = defaultdict(dict)
    decodes: dict[int, dict[int, float]] = defaultdict(dict)
    several, mixed = [], []
    for row in rows:
        seconds = row["time_us"] / US_PER_S
        if row["num_prefill"] and row["num_decode"]:
            mixed.append((row, seconds))
        elif row["num_prefill"] == 1:
            chunks[row["chunk_tokens"]][row["context_tokens"]] = seconds
        elif row["num_prefill"]:
            several.append((row, seconds))
        else:
            decodes[row["num_decode"]][row["decode_length_tokens"]] = seconds
    alone = OwnAttention(
        chunks=_curves(chunks), ratios=Slices.of({}), decodes=_curves(decodes), beside=1.0, window=window
    )
    ratios: dict[int, dict[int, float]] = defaultdict(dict)
    for row, seconds in several:
        count, chunk = row["num_prefill"], row["chunk_tokens"]
        ratios[count][chunk] = seconds / alone.prefill_s(count, chunk, row["context_tokens"])
    found = dataclasses.replace(alone, ratios=_curves(ratios))
    shares = [_share(found, row, seconds) for row, seconds in mixed]
    return dataclasses.replace(found, beside=max(0.0, statistics.median(shares))) if shares else found


def _share(grid: OwnAttention, row: Row, seconds: float) -> float:
    """What the decodes of a mixed step added, over what they take alone."""
    prefill_s = grid.prefill_s(row["num_prefill"], row["chunk_tokens"], row["context_tokens"])
    return (seconds - prefill_s) / grid.decode_curve(row["num_decode"]).at(grid.seen(row["decode_length_tokens"]))


def _curves(measured: Mapping[int, Mapping[int, float]]) -> Slices[Curve]:
    return Slices.of({key: Curve.of(times) for key, times in measured.items()})
