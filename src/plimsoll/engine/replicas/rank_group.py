"""Ranks in lockstep whose engine has a replica of its own kind: prefix caches, priorities, results one step late.

Such replicas (`plimsoll.engine.replicas.planned` and its kin) do in one go what a step takes: plan it, take its blocks,
ask for its seconds, hand out its tokens. How long a step takes is known here only when all ranks have planned theirs.
So every rank runs its step on a step model that writes down what it is asked and answers with a second of its own; when
the group knows the end of the step, that takes the place of the one in the rank's lane.

    rank 0   plan ─► shape ─┐                      ┌─► end of the rank's step = end of all
    rank 1   plan ─► shape ─┼─► seconds of them all┤
    rank 2   (nothing)     ─┘                      └─► …

While nobody waits and no prompt is part-way, the ranks are not asked: everybody gets a token (see
`plimsoll.engine.policy`), in stretches that end with whoever ends first on any rank.

Arrivals go to the ranks as in `plimsoll.engine.replicas.lockstep`. Unlike there, a rank that has nothing to do writes
no step.

Seconds: a step model may know what ranks with different shares cost (`core.step.LockstepStepModel`); of another one the
slowest rank counts, as if all had its rows.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import cast

from plimsoll.core.step import AttentionLayers, Line, LongestStepModel, StepCost, StepModel, StepShape, lockstep_of
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import UNLIMITED, Policy, StepPlan
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.lockstep import RanksTogether, add_decodes, decode_ends
from plimsoll.engine.replicas.longest import WithLongest, needs_longest
from plimsoll.engine.replicas.replica import INFINITE, NOBODY, Observer, Replica
from plimsoll.engine.requests import Requests

Counts = tuple[int, int, int, int, int, int, int, int]
"""The arguments of `StepModel.step_s`, with the longest decode."""
NOTHING: Counts = (0, 0, 0, 0, 0, 0, 0, 0)
PRETENDED_S = 1.0


def shape_of(counts: Counts) -> StepShape:
    """What was asked, by name."""
    tokens, chunks, pairs, context, done, num, read, longest = counts
    return StepShape(
        prefill_tokens=tokens,
        num_prefill=chunks,
        prefill_pairs=pairs,
        prefill_read_tokens=context,
        num_prefill_done=done,
        num_decode=num,
        decode_read_tokens=read,
        longest_decode=longest,
    )


class NotingModel:
    """A `StepModel` that keeps what it was asked last, and says that every step takes a second.

    Attributes:
        counts: arguments of the last step; zeros before the first.
    """

    def __init__(self, model: StepModel) -> None:
        self.needs_longest = needs_longest(model)
        self._layers = model.attention_layers
        self._model = model
        self.counts = NOTHING

    @property
    def attention_layers(self) -> AttentionLayers:
        """As the real model's."""
        return self._layers

    @property
    def num_stages(self) -> int:
        """One."""
        return 1

    @property
    def shape(self) -> StepShape:
        """The last step."""
        return shape_of(self.counts)

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        longest_decode: int = 0,
        /,
    ) -> float:
        """Keep the step."""
        self.counts = (
            prefill_tokens, num_prefill, prefill_pairs, prefill_read_tokens, num_prefill_done, num_decode,
            decode_read_tokens, longest_decode,
        )  # fmt: skip
        return PRETENDED_S

    def decode_line(self, num_decode: int, decode_read_tokens: int, longest_decode: int = 0, /) -> Line:
        """Keep the first step of the stretch, which is all that is run of it."""
        self.counts = (0, 0, 0, 0, 0, num_decode, decode_read_tokens, longest_decode)
        return PRETENDED_S, 0.0, 1 << 62

    def step(self, shape: StepShape, /) -> StepCost:
        """As the real model's."""
        return self._model.step(shape)


class Herald:
    """An `Observer` of ranks, which tells another one of their steps when their end is known."""

    def __init__(self, listener: Observer) -> None:
        self._listener = listener
        self._untold: list[tuple[Replica, list[int]]] = []

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        """Pass it on."""
        self._listener.scheduled(replica, plan, begin_s)

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        """Keep it: `end_s` is the rank's own."""
        del end_s
        self._untold.append((replica, finished))

    def tell(self, end_s: float) -> None:
        """Pass on what was kept."""
        for replica, finished in self._untold:
            self._listener.stepped(replica, finished, end_s)
        self._untold.clear()


class RankGroup(RanksTogether):
    """Ranks that are a `PlannedReplica` each.

    Attributes:
        busy_until_s: of ranks that take results late, the end of the last step that was planned; the next begins then.
    """

    busy_until_s = 0.0
    _attended = True

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policies: Sequence[Policy],
        number: int,
        observer: Observer | None,
    ) -> None:
        self._notes: list[NotingModel] = []
        self._herald = None if observer is None else Herald(observer)
        super().__init__(requests, config, model, policies, number, self._herald)
        self._late = all(isinstance(rank, LateReplica) for rank in self.ranks)
        self._lockstep_s = lockstep_of(model)
        self._asks_longest = needs_longest(model)
        self._model = model

    def _make_rank(
        self, requests: Requests, config: EngineConfig, model: StepModel, policy: Policy, observer: Observer | None
    ) -> Replica:
        notes = NotingModel(model)
        self._notes.append(notes)
        made: Replica = policy.make_replica(requests, config, notes, self.number, observer)  # type: ignore[attr-defined]
        return made

    def advance(self, until_s: float, stop_at_finish: bool = False) -> None:
        """Run every step that starts before `until_s`; with `stop_at_finish` only up to one in which a request ends."""
        self._attended = stop_at_finish or self.log is not None
        super().advance(until_s, stop_at_finish)

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        return max(super().next_step_s(), self.busy_until_s)

    def _next_begin_s(self) -> float:
        return max(self.now_s, self.busy_until_s)

    def _step(self, until_s: float) -> None:
        """One step of all ranks, or a stretch of steps in which all of them only decode."""
        steps = self._calm_steps() if self._herald is None else 0
        if steps > 1:
            self._decode_together(steps, until_s)
        else:
            self._one_step()

    def _one_step(self) -> None:
        planned_s, begin_s = self.now_s, self._next_begin_s()
        asked, stepped = [], []
        finished: list[int] = []
        for rank, notes in zip(self.ranks, self._notes, strict=True):
            notes.counts = NOTHING
            before = len(rank.lane.ends)
            if rank.seated or rank.waiting:
                rank.now_s = planned_s
                if isinstance(rank, LateReplica):
                    rank.busy_until_s = begin_s
                    rank.run_steps(planned_s)
                else:
                    rank.advance(math.nextafter(planned_s, math.inf))
                finished.extend(rank.last_finished)
            asked.append(notes.counts)
            if len(rank.lane.ends) > before:
                stepped.append(rank)
        end_s = begin_s
        if stepped or not self._late:
            end_s += self._seconds(asked)
        for rank in stepped:
            rank.lane.ends[-1] = end_s
        if self._herald is not None:
            self._herald.tell(end_s)
        self._pass_to(begin_s, end_s, finished)

    def _pass_to(self, begin_s: float, end_s: float, finished: list[int]) -> None:
        """The last step that was run began and ended then; `finished` are whose results came in meanwhile."""
        self.now_s = begin_s if self._late else end_s
        self.busy_until_s = end_s if self._late else 0.0
        self.last_finished = finished or NOBODY

    # -- stretches -------------------------------------------------------------------------------------------------

    def _calm_steps(self) -> int:
        """Steps for which certainly everybody decodes; 0 where a rank has something else to do."""
        steps, budget = UNLIMITED, self.config.max_num_batched_tokens
        for rank in self.ranks:
            if rank.waiting or rank.prefilling or rank.lane.num > budget:
                return 0
            if self._attended and isinstance(rank, LateReplica) and rank.lingering:
                return 0  # their results are awaited
            if rank.lane.num:
                mine = rank.lane.steps_within(rank.free_blocks, rank.lane.steps_to_finish())
                steps = mine if mine < steps else steps
        return steps if steps < UNLIMITED else 0

    def _decode_together(self, steps: int, until_s: float) -> None:
        """Up to `steps` decode-only steps. An arrival ends them, as it may go to any rank; late ranks run one more."""
        begin_s = self._next_begin_s()
        stops_s = (until_s, self.next_arrival_s) if self._late else (min(until_s, self.next_arrival_s), INFINITE)
        if self._lockstep_s is None:
            asks, model = self._asks_longest, self._model
            decodes = [(rank.lane, WithLongest(model, rank) if asks else model) for rank in self.ranks if rank.lane.num]
            idle_s = self._seconds([NOTHING]) if len(decodes) < len(self.ranks) else 0.0
            ends = decode_ends(decodes, len(self.ranks), idle_s, begin_s, steps, stops_s)
        else:
            ends = self._ends_by_shapes(begin_s, steps, stops_s)
        finished: list[int] = []
        for rank in self.ranks:
            lane = rank.lane
            blocks = lane.blocks_for(len(lane.ends), len(ends)) if lane.num else 0
            if isinstance(rank, LateReplica):
                blocks -= rank.take_first()
            if lane.num:
                rank.free_blocks -= blocks
                add_decodes(lane, ends)
            rank.now_s, rank.last_finished = ends[-1], NOBODY
            if lane.due <= len(lane.ends):
                rank._take_finished()
            finished.extend(rank.last_finished)
        self._pass_to(ends[-2] if len(ends) > 1 else begin_s, ends[-1], finished)

    def _ends_by_shapes(self, begin_s: float, steps: int, stops_s: tuple[float, float]) -> array[float]:
        """As `decode_ends`, of a model that wants to see all ranks of each step."""
        until_s, last_s = stops_s
        lanes = [rank.lane for rank in self.ranks]
        for lane in lanes:
            if lane.crossings:
                steps = min(steps, lane.crossings[0][0] - len(lane.ends))
        longest = [lane.longest() for lane in lanes]
        ends: array[float] = array("d")
        end_s = begin_s
        for step in range(steps):
            begin_s = end_s
            end_s += self._seconds(
                [
                    (0, 0, 0, 0, 0, lane.num, lane.read + step * lane.grow, length + step if length else 0)
                    for lane, length in zip(lanes, longest, strict=True)
                ]
            )
            ends.append(end_s)
            if end_s >= until_s or begin_s >= last_s:
                break
        return ends

    # -- seconds ---------------------------------------------------------------------------------------------------

    def _seconds(self, asked: Sequence[Counts]) -> float:
        """Seconds of a step in which the ranks have these rows."""
        if self._lockstep_s is not None:
            return self._lockstep_s([shape_of(counts) for counts in asked])
        return max([self._as_if_all(counts) for counts in asked])

    def _as_if_all(self, counts: Counts) -> float:
        """Seconds of a step in which every rank has these rows."""
        ways, (tokens, chunks, pairs, context, done, num, read, longest) = len(self.ranks), counts
        rows = ways * tokens, ways * chunks, ways * pairs, ways * context, ways * done, ways * num, ways * read
        if self._asks_longest:
            return cast(LongestStepModel, self._model).step_s(*rows, longest)
        return self._model.step_s(*rows)
