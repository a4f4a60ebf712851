"""Ranks in lockstep whose engine has a replica of its own kind: prefix caches, priorities, results one step late.

Such replicas (`plimsoll.engine.planned` and its kin) do in one go what a step takes: plan it, take its blocks, ask for
its seconds, hand out its tokens. How long a step takes is known here only when all ranks have planned theirs. So every
rank runs its step on a step model that writes down what it is asked and answers with a second of its own; when the
group knows the end of the step, that takes the place of the one in the rank's lane.

    rank 0   plan ─► shape ─┐                      ┌─► end of the rank's step = end of all
    rank 1   plan ─► shape ─┼─► seconds of them all┤
    rank 2   (nothing)     ─┘                      └─► …

Arrivals go to the ranks as in `plimsoll.engine.lockstep`. Unlike there, a rank that has nothing to do writes no step.

Seconds: a step model may know what ranks with different shares cost (`core.step.LockstepStepModel`); of another one the
slowest rank counts, as if all had its rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from plimsoll.core.step import AttentionLayers, Line, StepCost, StepModel, StepShape, lockstep_of
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.late import LateReplica
from plimsoll.engine.lockstep import RanksTogether
from plimsoll.engine.longest import needs_longest
from plimsoll.engine.policy import Policy, StepPlan
from plimsoll.engine.replica import NOBODY, Observer, Replica
from plimsoll.engine.requests import Requests

IDLE = StepShape()
PRETENDED_S = 1.0


class NotingModel:
    """A `StepModel` that keeps what it was asked last, and says that every step takes a second.

    Attributes:
        shape: of the last step; nothing before the first.
    """

    def __init__(self, model: StepModel) -> None:
        self.needs_longest = needs_longest(model)
        self._layers = model.attention_layers
        self._model = model
        self.shape = IDLE

    @property
    def attention_layers(self) -> AttentionLayers:
        """As the real model's."""
        return self._layers

    @property
    def num_stages(self) -> int:
        """One."""
        return 1

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
        self.shape = StepShape(
            prefill_tokens=prefill_tokens,
            num_prefill=num_prefill,
            prefill_pairs=prefill_pairs,
            prefill_read_tokens=prefill_read_tokens,
            num_prefill_done=num_prefill_done,
            num_decode=num_decode,
            decode_read_tokens=decode_read_tokens,
            longest_decode=longest_decode,
        )
        return PRETENDED_S

    def decode_line(self, num_decode: int, decode_read_tokens: int, longest_decode: int = 0, /) -> Line:
        """Keep the first step of the stretch, which is all that is run of it."""
        self.shape = StepShape(
            num_decode=num_decode, decode_read_tokens=decode_read_tokens, longest_decode=longest_decode
        )
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

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        return max(super().next_step_s(), self.busy_until_s)

    def _next_begin_s(self) -> float:
        return max(self.now_s, self.busy_until_s)

    def _step(self, until_s: float) -> None:
        """One step of all ranks."""
        del until_s
        planned_s, begin_s = self.now_s, self._next_begin_s()
        shapes, stepped = [], []
        finished: list[int] = []
        for rank, notes in zip(self.ranks, self._notes, strict=True):
            notes.shape = IDLE
            before = len(rank.lane.ends)
            if rank.seated or rank.waiting:
                rank.now_s = planned_s
                if isinstance(rank, LateReplica):
                    rank.busy_until_s = begin_s
                    rank.run_steps(planned_s)
                else:
                    rank.advance(math.nextafter(planned_s, math.inf))
                finished.extend(rank.last_finished)
            shapes.append(notes.shape)
            if len(rank.lane.ends) > before:
                stepped.append(rank)
        end_s = begin_s
        if stepped or not self._late:
            end_s += self._seconds(shapes)
        for rank in stepped:
            rank.lane.ends[-1] = end_s
        if self._herald is not None:
            self._herald.tell(end_s)
        self.now_s = begin_s if self._late else end_s
        self.busy_until_s = end_s if self._late else 0.0
        self.last_finished = finished or NOBODY

    def _seconds(self, shapes: Sequence[StepShape]) -> float:
        if self._lockstep_s is not None:
            return self._lockstep_s(shapes)
        return max(self._as_if_all(shape) for shape in shapes)

    def _as_if_all(self, shape: StepShape) -> float:
        """Seconds of a step in which every rank has these rows."""
        rows = (
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
        )
        longest = (shape.longest_decode,) if self._asks_longest else ()
        return self._model.step_s(*(len(self.ranks) * count for count in rows), *longest)
