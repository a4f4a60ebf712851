"""The general kernel with pipeline stages: a batch in flight for each stage, as Orca has it.

Scheduling is as in `plimsoll.engine.replicas.pipeline`: while a stage is free, the next batch is launched; else the
scheduler waits for the oldest. A request that is in flight cannot be scheduled, so requests fall into as many groups as
there are stages. Each group has the two lanes of `plimsoll.engine.general.replica`; blocks, the queue and the policy
are shared.

Sources: https://www.usenix.org/conference/osdi22/presentation/yu, section 4.2 (``n_scheduled == n_workers``); the
scheduler of sarathi-serve (``num_running_batches``); TensorRT-LLM's micro batches; SGLang's ``event_loop_pp`` with its
``running_mbs``, which are such groups too. A part-way prefill belongs to no group: its next chunk may be scheduled
while the last one is in flight.

NOTE: who must give way is looked for in the group that is planned, since the others are in flight.
"""

from __future__ import annotations

from collections import deque

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.general.lane import FixedLane
from plimsoll.engine.general.plan import GeneralPlan
from plimsoll.engine.general.replica import GeneralReplica
from plimsoll.engine.policy import Policy
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.longest import lane_for
from plimsoll.engine.replicas.replica import NOBODY, SHORT_OF_BLOCKS, Observer
from plimsoll.engine.requests import Requests

Flight = tuple[float, int, bool, list[int]]
"""End, group, whether its decodes ran along, and whose prompts it completes."""


class GeneralPipeline(GeneralReplica):
    """The queues and blocks of a `GeneralReplica`, with a decode set for each batch in flight."""

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
    ) -> None:
        stages = model.num_stages
        self.members: list[dict[int, None]] = [{} for _ in range(stages)]
        super().__init__(requests, config, model, policy, number, observer)
        self.seated = {}
        size, layers = config.block_size, self.layers
        kind = FixedLane if self.rules.memory == "fixed" else lane_for(model)
        self.decode_lanes: list[Lane] = [kind(requests, 2 * k, size, layers) for k in range(stages)]
        self.prompt_lanes = [Lane(requests, 2 * k + 1, size, layers) for k in range(stages)]
        self.lanes = [lane for pair in zip(self.decode_lanes, self.prompt_lanes, strict=True) for lane in pair]
        for lane in self.decode_lanes:
            if isinstance(lane, FixedLane):
                lane.reserved = self.fixed.reserved
        self.stage_free_s = [0.0] * stages
        self.in_flight: deque[Flight] = deque()
        self.index = -1
        self._enter(0)

    def _enter(self, index: int) -> None:
        """Make a group the one that the policy sees, and let part-way prefills move into it."""
        if self.prefilling:
            for group in self.members:
                for request in self.prefilling:
                    group.pop(request, None)
            self.members[index].update(dict.fromkeys(self.prefilling))
        if index == self.index:
            return
        self.index = index
        self.lane, self.prompt_lane = self.decode_lanes[index], self.prompt_lanes[index]
        if isinstance(self.lane, FixedLane):
            self.fixed = self.lane
        self.running = self.members[index]
        self.rules.entered(index)

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        if self.seated or self.waiting:
            return self.now_s
        return max(self.now_s, self.next_arrival_s)

    def advance(self, until_s: float, stop_at_finish: bool = False) -> None:
        """Schedule batches and take their results, as long as that happens before `until_s`."""
        while True:
            if self.next_arrival_s <= self.now_s:
                self._take_arrivals()
            if not self.seated and not self.waiting:
                if self.next_arrival_s >= until_s:
                    return
                self.now_s = self.next_arrival_s
                continue
            if self.now_s >= until_s:
                return
            self.last_finished = NOBODY
            if len(self.in_flight) == len(self.members) or not self._schedule():
                self._take_oldest()
            if self.log is not None:
                self._write_log()
            if stop_at_finish and self.last_finished:
                return

    def _schedule(self) -> bool:
        """Launch one batch; False when nothing can be scheduled."""
        busy = {flight[1] for flight in self.in_flight}
        free = [index for index in range(len(self.members)) if index not in busy]
        self._enter(max(free, key=lambda index: self.decode_lanes[index].num))
        plan = self.rules.plan(self)
        self.preempted = plan.preempt
        for eviction in plan.evict:
            self.evict(eviction)
        lane, together = self.lane, plan.decode or not self.lane.num
        if not plan.chunks and not (lane.num and plan.decode):
            return bool(plan.preempt) and self._send(0.0, False, [], plan)
        if not plan.chunks:
            self._serve_decodes()
            return self._send(self.step_s(0, 0, 0, 0, 0, lane.num, lane.read), True, [], plan)
        folded = None if self.plain_attention else self._fold(plan.chunks)
        tokens, pairs, read, complete = self._place(plan.chunks, together)
        if folded is not None:
            pairs, read = folded
        decodes = (lane.num, lane.read) if together else (0, 0)
        seconds = self.step_s(tokens, len(plan.chunks), pairs, read, len(complete), *decodes)
        return self._send(seconds, together, complete, plan)

    def _serve_decodes(self) -> None:
        """Take the blocks that the next step of the group's decodes needs."""
        self.free_blocks -= self.lane.hist[-len(self.lane.ends) % self.block_size]

    def _send(self, seconds: float, together: bool, complete: list[int], plan: GeneralPlan) -> bool:
        """Put a batch of so many seconds a stage on its way; its tokens come later."""
        if self.free_blocks < 0:
            raise AssertionError(SHORT_OF_BLOCKS)
        if self.observer is not None:
            self.observer.scheduled(self, plan, self.now_s)
        begin_s = self.now_s
        if seconds:
            for stage, free_s in enumerate(self.stage_free_s):
                begin_s = self.stage_free_s[stage] = max(begin_s, free_s) + seconds
        else:
            begin_s += self.step_s(0, 0, 0, 0, 0, 0, 0)  # the scheduler has run for nothing
        self.in_flight.append((begin_s, self.index, together, complete))
        self.preempted = ()
        return True

    def _take_oldest(self) -> None:
        """Wait for the oldest batch and hand its tokens out."""
        end_s, index, together, complete = self.in_flight.popleft()
        self.now_s = max(self.now_s, end_s)
        self._enter(index)
        if together:
            self._hand_out(end_s, complete)
        elif complete:
            self._hand_out_first(end_s, complete)
        else:
            self.prompt_lane.ends.append(end_s)
        if self.observer is not None:
            self.observer.stepped(self, list(self.last_finished), self.now_s)

    # -- the life of a request -------------------------------------------------------------------------------------

    def _admit(self, request: int) -> None:
        super()._admit(request)
        self.seated[request] = None

    def _leave(self, finished: list[int]) -> None:
        super()._leave(finished)
        for request in finished:
            del self.seated[request]

    def evict(self, eviction: tuple[int, str, str]) -> None:
        """As in `GeneralState`."""
        super().evict(eviction)
        del self.seated[eviction[0]]
