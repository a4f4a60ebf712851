"""HELR: layers placed on unlike GPUs by dynamic programming, UELLM's deployer (He et al., ICSOC 2024).

The model's layers go, in order, to GPUs one after the other; a GPU takes a run of layers that fits its memory, and the
activations cross a link between two GPUs. Among all such placements the one with the least latency is wanted (or the
one on the fewest GPUs, which the paper calls high efficiency):

    best[used, last, n] = min over the last GPU's layers k of
                          best[used − last, before, n − k] + hop(before, last) + stage(last, n − k, n)

with the number of GPUs used of each kind, the kind of the last one, and n layers placed. GPUs of one kind are alike, so
their numbers stand for the paper's sets of GPUs, and the search is polynomial in them.

Source: https://arxiv.org/abs/2409.14961 (UELLM: dynamic programming over layers and GPUs that minimises latency, or the
GPUs, under memory and the topology). NOTE: its pseudocode was not at hand; the recurrence above is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from plimsoll.core.errors import InputError, UnknownNameError

OBJECTIVES = ("latency", "gpus")
MOST_STEPS = 20_000_000
"""Transitions beyond which a search takes longer than a few seconds."""


class Placed(NamedTuple):
    """One GPU of a placement: its kind, and the layers ``begin .. end - 1`` that it holds."""

    kind: int
    begin: int
    end: int


class Placement(NamedTuple):
    """Layers on GPUs, in the order in which a token passes them, and the seconds that this takes."""

    stages: tuple[Placed, ...]
    latency_s: float


StageSeconds = Callable[[int, int, int], float]
"""``stage_s(kind, begin, end)``: seconds of these layers on one GPU; infinite where they do not fit."""


def place_layers(
    num_layers: int,
    counts: Sequence[int],
    stage_s: StageSeconds,
    hop_s: Callable[[int, int], float],
    objective: str = "latency",
) -> Placement | None:
    """The best placement of all layers; None where none fits.

    Args:
        num_layers: of the model.
        counts: GPUs of each kind that may be used.
        stage_s: seconds of a run of layers on one GPU of a kind, infinite where its memory is too small.
        hop_s: seconds between two neighbouring GPUs, by their kinds.
        objective: ``latency``, then fewest GPUs; or ``gpus``, then least latency.

    Raises:
        UnknownNameError: no such objective.
        InputError: so many GPUs and layers that the search would not end soon.
    """
    if objective not in OBJECTIVES:
        raise UnknownNameError("placement objective", objective, OBJECTIVES)
    sizes = [min(count, num_layers) for count in counts]
    steps = math.prod(size + 1 for size in sizes) * len(sizes) ** 2 * num_layers**2 // 2
    if steps > MOST_STEPS:
        raise InputError(
            "--gpus", sum(sizes), f"layers are placed on fewer GPUs or kinds: {steps:,} steps are too many"
        )
    best = _Table(num_layers, sizes, stage_s, hop_s, by_gpus=objective == "gpus")
    return best.answer()


Key = tuple[tuple[int, ...], int]
Cost = tuple[float, float]


class _Table:
    """``best[n][used, last]``: the least cost of n layers, and where it came from."""

    def __init__(
        self,
        num_layers: int,
        sizes: Sequence[int],
        stage_s: StageSeconds,
        hop_s: Callable[[int, int], float],
        *,
        by_gpus: bool,
    ) -> None:
        self.num_layers, self.sizes, self.by_gpus = num_layers, tuple(sizes), by_gpus
        kinds = range(len(sizes))
        self.hop_s = [[hop_s(a, b) for b in kinds] for a in kinds]
        self.stage_s = stage_s
        nobody: Key = ((0,) * len(sizes), -1)
        self.best: list[dict[Key, tuple[Cost, tuple[int, Key] | None]]] = [{} for _ in range(num_layers + 1)]
        self.best[0][nobody] = ((0.0, 0.0), None)
        for begin in range(num_layers):
            for kind in kinds:
                self._extend(begin, kind)

    def _extend(self, begin: int, kind: int) -> None:
        """Put one more GPU of `kind` behind everything that holds the first `begin` layers."""
        here = [(key, cost) for key, (cost, _) in self.best[begin].items() if key[0][kind] < self.sizes[kind]]
        if not here:
            return
        for end in range(begin + 1, self.num_layers + 1):
            seconds = self.stage_s(kind, begin, end)
            if math.isinf(seconds):
                continue
            there = self.best[end]
            for key, cost in here:
                used, last = key
                hop = self.hop_s[last][kind] if last >= 0 else 0.0
                more = (1.0, hop + seconds) if self.by_gpus else (hop + seconds, 1.0)
                total = (cost[0] + more[0], cost[1] + more[1])
                reached = ((*used[:kind], used[kind] + 1, *used[kind + 1 :]), kind)
                known = there.get(reached)
                if known is None or total < known[0]:
                    there[reached] = (total, (begin, key))

    def answer(self) -> Placement | None:
        """Back from the best end."""
        found = self.best[self.num_layers]
        if not found:
            return None
        key = min(found, key=lambda one: found[one][0])
        cost = found[key][0]
        stages: list[Placed] = []
        end = self.num_layers
        while (origin := self.best[end][key][1]) is not None:
            begin, before = origin
            stages.append(Placed(kind=key[1], begin=begin, end=end))
            end, key = begin, before
        return Placement(stages=tuple(reversed(stages)), latency_s=cost[1] if self.by_gpus else cost[0])
