"""A replica with pipeline stages: as many batches in flight as there are stages.

As vLLM's engine core does with its batch queue (``vllm/v1/engine/core.py``, `step_with_batch_queue`): schedule while
the queue has room and there is something to schedule, else wait for the oldest batch. A request whose token is in
flight cannot be scheduled, so requests fall into as many groups as there are stages; each group is a lane.

    stage 0   |-- A --|-- B --|-- A --|-- B --|          A, B: lanes
    stage 1           |-- A --|-- B --|-- A --|
              A scheduled     A's results, A scheduled again

A part-way prefill belongs to no group: its next chunk may be scheduled while the last one is still in flight.

NOTE: vLLM may evict a request that is in flight; here the victim is the last of the group being scheduled.
"""

from __future__ import annotations

from collections import deque

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Policy, StepPlan
from plimsoll.engine.replicas.longest import lane_for
from plimsoll.engine.replicas.replica import NOBODY, Observer, Replica
from plimsoll.engine.requests import NEVER, Requests


class PipelineReplica(Replica):
    """The queues and blocks of a `Replica`, with one lane per batch in flight."""

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
        make_lane = lane_for(model)
        self.lanes = [make_lane(requests, number * stages + k, config.block_size, self.layers) for k in range(stages)]
        self.stage_free_s = [0.0] * stages
        self.in_flight: deque[tuple[float, int, list[int]]] = deque()
        self.late_starts: dict[int, list[tuple[int, int, int]]] = {}
        self.steady: dict[int, int] = {}
        self._enter(0)

    def _enter(self, index: int) -> None:
        """Make a lane the one that the policy sees, and let part-way prefills move into its group."""
        if self.prefilling:
            for group in self.members:
                for request in self.prefilling:
                    group.pop(request, None)
            self.members[index].update(dict.fromkeys(self.prefilling))
        self.index = index
        self.lane = self.lanes[index]
        self.running = self.members[index]

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
            nothing_to_launch = len(self.in_flight) == len(self.lanes) or not self._schedule()
            if nothing_to_launch and not self._rotate(until_s):
                self._take_oldest()
            if self.log is not None:
                self._write_log()
            if stop_at_finish and self.last_finished:
                return

    def _schedule(self) -> bool:
        """Launch one batch; False when no lane is free to take one or nothing can be scheduled."""
        busy = {index for _, index, _ in self.in_flight}
        free = [index for index in range(len(self.lanes)) if index not in busy]
        self._enter(max(free, key=lambda index: self.lanes[index].num))
        plan = self.policy.plan(self)
        self.preempted, self.paused = plan.preempt, plan.pause
        for request in plan.preempt:
            self._preempt(request)
        if not plan.chunks and self.lane.num == len(plan.pause):
            return bool(plan.preempt) and self._launch_empty(plan)
        paused = [(request, self.cached_tokens(request), self.lane.remaining(request)) for request in plan.pause]
        for request, cached, _ in paused:
            self._end_slice(request)
            self.lane.stop(request, cached)
        self._mixed_step(plan)
        self.late_starts[self.index] = paused
        steady = not plan.chunks and not plan.interrupts and plan.wakes_on_arrival
        self.steady[self.index] = self.lane.num if steady else NEVER
        return True

    def _rotate(self, until_s: float) -> bool:
        """Decode batches that take turns with nobody waiting: round and round without asking the policy again.

        It has said of each of these groups, as large as it is now, that only an arrival or a finish would change its
        plan. Stops before anything else could happen; False where nothing was done.
        """
        if self.waiting or self.prefilling or self.observer is not None or self.log is not None:
            return False
        busy = {index for _, index, _ in self.in_flight}
        if any(lane.num for index, lane in enumerate(self.lanes) if index not in busy):
            return False
        in_flight, stage_free_s, size = self.in_flight, self.stage_free_s, self.block_size
        stop_s, free, turns, step_s = min(until_s, self.next_arrival_s), self.free_blocks, 0, self.step_s
        while True:
            end_s, index, complete = in_flight[0]
            lane = self.lanes[index]
            step = len(lane.ends) + 1
            need = lane.hist[-step % size]
            unsteady = complete or self.late_starts[index] or self.steady.get(index) != lane.num
            if unsteady or lane.due <= step or end_s >= stop_s or need > free:
                break
            in_flight.popleft()
            lane.mixed(end_s)
            free -= need
            self.lane = lane  # of which a step model may want to know the longest decode
            seconds = step_s(0, 0, 0, 0, 0, lane.num, lane.read)
            begin_s = end_s
            for stage, free_s in enumerate(stage_free_s):
                begin_s = stage_free_s[stage] = (begin_s if begin_s > free_s else free_s) + seconds
            in_flight.append((begin_s, index, complete))
            self.now_s = end_s
            turns += 1
        self.free_blocks = free
        return turns > 0

    def _launch(self, seconds: float, complete: list[int]) -> None:
        begin_s = self.now_s
        for stage, free_s in enumerate(self.stage_free_s):
            begin_s = self.stage_free_s[stage] = max(begin_s, free_s) + seconds
        self.in_flight.append((begin_s, self.index, complete))

    def _launch_empty(self, plan: StepPlan) -> bool:
        """A batch of nobody, after somebody evicted themselves: the scheduler has run for nothing."""
        if self.observer is not None:
            self.observer.scheduled(self, plan, self.now_s)
        self.in_flight.append((self.now_s + self.step_s(0, 0, 0, 0, 0, 0, 0), self.index, []))
        self.late_starts[self.index] = []
        return True

    def _take_oldest(self) -> None:
        """Wait for the oldest batch and hand its tokens out."""
        end_s, index, complete = self.in_flight.popleft()
        self.now_s = max(self.now_s, end_s)
        self._enter(index)
        self.lane.mixed(end_s)
        for request in complete:
            self.lane.start(request, self.requests.target[request], self.requests.left[request] - 1)
        self._take_finished()
        if self.observer is not None:
            self.observer.stepped(self, list(self.last_finished), self.now_s)
        for request, cached, remaining in self.late_starts.pop(index):
            self.lane.resume(request, cached, remaining)

    def _admit(self, request: int) -> None:
        super()._admit(request)
        self.seated[request] = None

    def _take_finished(self) -> None:
        super()._take_finished()
        for request in self.last_finished:
            del self.seated[request]

    def _preempt(self, request: int) -> None:
        super()._preempt(request)
        del self.seated[request]
