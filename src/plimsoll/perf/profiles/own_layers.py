"""Attention of all layers of a model, whose kinds differ by their window: sums over what each kind was measured at.

The engine folds windows into one number (`core.step`): a decode at length L counts ``Σ weight·min(L, window)`` read
tokens, a chunk its pairs likewise. Both rise with length and context, so that they are turned back here: into the
context that chunks of the mean size have, and, for decodes, into curves over folded tokens. Decodes of several lengths
count as equal ones of the same read tokens, which is exact where a token costs all kinds of layers alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

from plimsoll.core.step import AttentionLayers
from plimsoll.perf.profiles.curves import Curve, total
from plimsoll.perf.profiles.own_grids import OwnAttention, pairs_of


def folding_of(sizes: Mapping[str, int]) -> AttentionLayers:
    """How the engine folds the windows of a model with these sizes (`own_checks.shape_of`)."""
    behind = sizes.get("num_window_layers", 0)
    full = sizes["num_layers"] - behind
    unit = math.gcd(full, behind)
    kinds = ((full // unit, None), (behind // unit, sizes.get("window")))
    return tuple((weight, window) for weight, window in kinds if weight)


def unfolded_length(layers: AttentionLayers, read_tokens: float) -> float:
    """The length that counts `read_tokens`: the shortest one where windows are full and nothing else is read."""
    left, length, slope = read_tokens, 0.0, sum(weight for weight, _ in layers)
    for weight, window in sorted(((w, end) for w, end in layers if end is not None), key=lambda kind: kind[1]):
        if left <= slope * (window - length):
            break
        left -= slope * (window - length)
        length, slope = float(window), slope - weight
    return length + left / slope if slope else length


def unfolded_context(layers: AttentionLayers, chunk: float, pairs: float) -> float:
    """The context behind which a chunk of `chunk` tokens has `pairs`: 0 for fewer, the least where windows are full."""
    ends = [window for _, window in layers if window is not None]
    bends = sorted({0.0, *(max(0.0, window - chunk) for window in ends), *(max(0.0, window - 1.0) for window in ends)})
    missing = pairs - sum(weight * pairs_of(chunk, 0, window) for weight, window in layers)
    if missing <= 0:
        return 0.0
    for start, end in itertools.pairwise([*bends, math.inf]):
        slope, bend = _growth(layers, chunk, start)
        covered = (slope - bend * (end - start) / 2) * (end - start) if end < math.inf else math.inf if slope else 0.0
        if missing <= covered:
            # slope·d - bend·d²/2 = missing, in the form that does not cancel
            return start + 2 * missing / (slope + math.sqrt(max(0.0, slope * slope - 2 * bend * missing)))
        missing -= covered
    return bends[-1]


def _growth(layers: AttentionLayers, chunk: float, context: float) -> tuple[float, float]:
    """By how much pairs grow with the context from `context` on, and by how much this growth shrinks."""
    slope = bend = 0.0
    for weight, window in layers:
        if window is None or context < window - chunk:
            slope += weight * chunk
        elif context < window - 1:
            slope += weight * (window - context - 0.5)
            bend += weight
    return slope, bend


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerKind:
    """Layers that attend alike.

    Attributes:
        count: layers.
        weight: of a token in the engine's folding.
        grid: what one of them takes.
    """

    count: int
    weight: int
    grid: OwnAttention


class Layers:
    """Seconds of the attention of all layers.

    Args:
        kinds: at least one.
    """

    def __init__(self, kinds: tuple[LayerKind, ...]) -> None:
        self.kinds = kinds
        self.folding: AttentionLayers = tuple((kind.weight, kind.grid.window) for kind in kinds)
        self._curves: dict[tuple[int, bool], Curve] = {}

    def prefill_s(self, num_prefill: int, tokens: int, pairs: int) -> float:
        """Of `num_prefill` chunks with `tokens` and folded `pairs` together."""
        chunk = tokens / num_prefill
        context = self.context_of(num_prefill, tokens, pairs)
        return sum(kind.count * kind.grid.prefill_s(num_prefill, chunk, context) for kind in self.kinds)

    def context_of(self, num_prefill: int, tokens: int, pairs: int) -> float:
        """The mean context of such chunks."""
        chunk = tokens / num_prefill
        if self.folding == ((1, None),):
            return max(0.0, pairs / tokens - (chunk + 1) / 2)
        return unfolded_context(self.folding, chunk, pairs / num_prefill)

    def decode_curve(self, num_decode: int, *, beside: bool = False) -> Curve:
        """Of `num_decode` decodes over the folded tokens that one reads; `beside` chunks in the same step."""
        key = (num_decode, beside)
        if key not in self._curves:
            curves = []
            for kind in self.kinds:
                share = kind.grid.beside if beside else 1.0
                curves.append((kind, kind.grid.decode_curve(num_decode).times(share * kind.count)))
            self._curves[key] = self._folded(curves)
        return self._curves[key]

    def longest_of(self, num_decode: int) -> float:
        """Folded tokens of one of `num_decode` decodes up to which was measured; tables with windows have no gaps."""
        if self.folding == ((1, None),):
            return self.kinds[0].grid.longest_of(num_decode)
        return self.decode_curve(num_decode).last

    @property
    def longest(self) -> float:
        """Longest decode that was measured; infinite where every layer's window was reached."""
        ends = []
        for kind in self.kinds:
            last = kind.grid.decodes.items[kind.grid.decodes.last].last
            ends.append(math.inf if kind.grid.window is not None and last >= kind.grid.window else last)
        return min(ends)

    @property
    def furthest(self) -> float:
        """Longest context before a chunk that was measured; infinite as `longest`."""
        ends = []
        for kind in self.kinds:
            last = max(curve.last for curve in kind.grid.chunks.items.values())
            ends.append(math.inf if kind.grid.window is not None and last >= kind.grid.window - 1 else last)
        return min(ends)

    def _folded(self, curves: list[tuple[LayerKind, Curve]]) -> Curve:
        """The sum of curves over lengths, as one over folded tokens."""
        last = max(curve.last for _, curve in curves)
        ends = {
            float(kind.grid.window) for kind, _ in curves if kind.grid.window is not None and kind.grid.window < last
        }
        points = sorted({*ends, *(point for _, curve in curves for point in curve.points)})
        summed = total(
            Curve(tuple(points), tuple(curve.at(kind.grid.seen(point)) for point in points)) for kind, curve in curves
        )
        folded = {
            sum(weight * (point if window is None else min(point, window)) for weight, window in self.folding): seconds
            for point, seconds in zip(summed.points, summed.values, strict=True)
        }
        return Curve(tuple(folded), tuple(folded.values()))
