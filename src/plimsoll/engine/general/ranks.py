"""Data-parallel attention ranks of the general kernel, which step together: SGLang's and TensorRT-LLM's.

As in `plimsoll.engine.replicas.rank_group`, each rank runs its step on a step model that writes down what it is asked,
and the end of the step takes the place of the one that the rank made up. But here all policies are asked first. While
they all let everybody decode, and nobody ends or lacks a block, steps are a stretch; a rank whose policy has no work to
do runs along. A step of chunks alone lies in the rank's lane of prompts, while the decodes of other ranks go on.

Who has arrived is dealt out by the engine's own rule (`GeneralPolicy.deal`).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import cast

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.general.plan import GeneralPlan, GeneralPolicy
from plimsoll.engine.general.replica import GeneralReplica
from plimsoll.engine.policy import Policy
from plimsoll.engine.replicas.rank_group import NOTHING, RankGroup
from plimsoll.engine.replicas.replica import NOBODY, Observer
from plimsoll.engine.requests import KEY_BITS, Requests

Plans = list[GeneralPlan | None]


class GeneralRankGroup(RankGroup):
    """Ranks that are a `GeneralReplica` each."""

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policies: Sequence[Policy],
        number: int,
        observer: Observer | None,
    ) -> None:
        super().__init__(requests, config, model, policies, number, observer)
        self._mine = cast("list[GeneralReplica]", self.ranks)
        self.lanes = [lane for rank in self._mine for lane in rank.lanes]
        self.rules = cast(GeneralPolicy, policies[0])
        self._last_end_s = 0.0

    def outstanding(self, now_s: float) -> int:
        """Requests sent here and not answered by `now_s`."""
        return super().outstanding(now_s) + len(self.waiting)

    def _busy(self) -> bool:
        return bool(self.waiting) or super()._busy()

    def _spread(self) -> None:
        """Give what has arrived to the ranks."""
        self.rules.deal(self._mine, self.waiting)

    def _write_group_log(self, log: tuple[array[float], array[int], array[int], array[int]]) -> None:
        super()._write_group_log(log)
        log[2][-1] += len(self.waiting)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _step(self, until_s: float) -> None:
        """One step of all ranks, or a stretch of steps in which all of them only decode."""
        if self.now_s > self._last_end_s:
            self._tell_idle()
        if self.waiting:
            self._spread()
        plans = self._plans()
        if not self._has_work(plans):
            self._tell_idle()
            plans = self._plans()
            assert self._has_work(plans), "the policies leave requests waiting, with nothing running"
        steps = self._steps_of(plans) if self._herald is None else 1
        if steps > 1:
            self._decode_together(steps, until_s)
        else:
            self._step_by(plans)
        self._last_end_s = self.now_s

    def _has_work(self, plans: Plans) -> bool:
        """Whether any plan has chunks, or decodes."""
        told = zip(self._mine, plans, strict=True)
        return any(plan is not None and (plan.chunks or (plan.decode and rank.lane.num)) for rank, plan in told)

    def _tell_idle(self) -> None:
        for rank in self._mine:
            rank.rules.idled()

    def _plans(self) -> Plans:
        """What each rank's policy wants; None of a rank that nobody has been sent to."""
        plans: Plans = []
        for rank in self._mine:
            rank.now_s, rank.last_finished = self.now_s, NOBODY
            if not rank.seated and not rank.waiting:
                plans.append(None)
                continue
            fixed = rank.fixed
            if rank.lane is fixed and fixed.outgrow[0] < (len(fixed.ends) + 1) << KEY_BITS:
                rank._find_outgrown()
            plans.append(rank.rules.plan(rank))
        return plans

    def _steps_of(self, plans: Plans) -> int:
        """How long all plans hold, if they let everybody decode, and nothing else."""
        steps = []
        for rank, plan in zip(self._mine, plans, strict=True):
            if plan is None:
                continue
            if plan.chunks or plan.unusual or rank.outgrown or not (plan.decode and rank.lane.num):
                return 1
            steps.append(rank.calm_steps(plan))
        return min(steps)

    def _step_by(self, plans: Plans) -> None:
        """One step, in which each rank does what its policy said."""
        planned_s = self.now_s
        soon_s = math.nextafter(planned_s, math.inf)
        asked, grown = [], []
        finished: list[int] = []
        for rank, notes, plan in zip(self._mine, self._notes, plans, strict=True):
            notes.counts = NOTHING
            before = [(lane, len(lane.ends)) for lane in (rank.lane, rank.prompt_lane)]
            if plan is not None and (plan.chunks or (plan.decode and rank.lane.num)):
                if plan.unusual or rank.outgrown:
                    rank._unusual(plan, soon_s)
                elif plan.chunks:
                    rank._chunk_step(plan)
                else:
                    rank._decode_run(plan, soon_s)
                finished.extend(rank.last_finished)
            asked.append(notes.counts)
            grown += [lane for lane, length in before if len(lane.ends) > length]
        end_s = planned_s + self._seconds(asked)
        for lane in grown:
            lane.ends[-1] = end_s
        if self._herald is not None:
            self._herald.tell(end_s)
        self._pass_to(planned_s, end_s, finished)
