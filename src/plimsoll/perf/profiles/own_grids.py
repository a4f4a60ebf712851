"""Attention between the points of a profile of Plimsoll's own form: prompt chunks, decodes, and both in one step.

Chunks. Between two measured chunks time follows the attention pairs ``chunk·(context + (chunk + 1)/2)``, along the
context it is a straight line: exact for a kernel that takes a fixed time and a time per pair. Several chunks cost their
number times one of their mean size, times what was measured of that (`ratios`): 1 where a kernel takes them one by
one, less where they fill the device together. Decodes are straight lines in their number and their mean length. Beside
chunks they cost the share `beside` of what they cost alone.
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


def pairs_of(chunk: float, context: float) -> float:
    """Attention pairs of a chunk behind `context` cached tokens."""
    return chunk * (context + (chunk + 1) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnAttention:
    """Seconds of the attention of one layer.

    Attributes:
        chunks: one chunk alone, by its size, over the context before it.
        ratios: several chunks over their number times one, by number, over the size of each.
        decodes: by number, over their mean length.
        beside: time that decodes add to a step with chunks, over their time alone.
    """

    chunks: Slices[Curve]
    ratios: Slices[Curve]
    decodes: Slices[Curve]
    beside: float

    def prefill_s(self, num_prefill: int, tokens: float, pairs: float) -> float:
        """Of `num_prefill` chunks with `tokens` and `pairs` together."""
        chunk = tokens / num_prefill
        context = max(0.0, pairs / tokens - (chunk + 1) / 2)
        return num_prefill * self._chunk_s(chunk, context) * self._ratio(num_prefill, chunk)

    def decode_curve(self, num_decode: int) -> Curve:
        """Time of `num_decode` decodes over their mean length, on the lengths of both measured neighbours."""
        low, high, weight = neighbours(self.decodes.axis, num_decode)
        left, right = self.decodes.items[low], self.decodes.items[high]
        if not weight:
            return left if num_decode <= high else left.times(num_decode / high)
        points = tuple(sorted({*left.points, *right.points}))
        return Curve(points, tuple(left.at(p) + weight * (right.at(p) - left.at(p)) for p in points))

    def _chunk_s(self, chunk: float, context: float) -> float:
        low, high, _ = neighbours(self.chunks.axis, chunk)
        first = self.chunks.items[low].at(context)
        if low == high:
            return first if chunk <= high else first * pairs_of(chunk, context) / pairs_of(high, context)
        start, end = pairs_of(low, context), pairs_of(high, context)
        weight = (pairs_of(chunk, context) - start) / (end - start)
        return first + weight * (self.chunks.items[high].at(context) - first)

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


def attention_of(rows: Iterable[Row]) -> OwnAttention:
    """The grids of ``attention.csv``, seconds of one call."""
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
    alone = OwnAttention(chunks=_curves(chunks), ratios=Slices.of({}), decodes=_curves(decodes), beside=1.0)
    ratios: dict[int, dict[int, float]] = defaultdict(dict)
    for row, seconds in several:
        count, chunk = row["num_prefill"], row["chunk_tokens"]
        pairs = count * pairs_of(chunk, row["context_tokens"])
        ratios[count][chunk] = seconds / alone.prefill_s(count, count * chunk, pairs)
    found = dataclasses.replace(alone, ratios=_curves(ratios))
    shares = [_share(found, row, seconds) for row, seconds in mixed]
    return dataclasses.replace(found, beside=max(0.0, statistics.median(shares))) if shares else found


def _share(grid: OwnAttention, row: Row, seconds: float) -> float:
    """What the decodes of a mixed step added, over what they take alone."""
    count, chunk = row["num_prefill"], row["chunk_tokens"]
    prefill_s = grid.prefill_s(count, count * chunk, count * pairs_of(chunk, row["context_tokens"]))
    return (seconds - prefill_s) / grid.decode_curve(row["num_decode"]).at(row["decode_length_tokens"])


def _curves(measured: Mapping[int, Mapping[int, float]]) -> Slices[Curve]:
    return Slices.of({key: Curve.of(times) for key, times in measured.items()})
