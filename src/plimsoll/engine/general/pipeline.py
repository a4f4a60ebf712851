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
from typing import TYPE_CHECKING

from plimsoll.engine.general.lane import FixedLane
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.replica import NOBODY, SHORT_OF_BLOCKS

if TYPE_CHECKING:
    from plimsoll.engine.general.plan import GeneralPlan
    from plimsoll.engine.general.replica import GeneralReplica

Flight = tuple[float, int, bool, list[int]]
"""End, group, whether its decodes ran along, and whose prompts it completes."""


class Stages:
    """The pipeline of a `GeneralReplica`, which has the queue and the blocks: a decode set for each batch in flight.

    Attributes:
        members: who runs, by group. The replica's `running` are those of the group that is in it.
        decode_lanes, prompt_lanes: lanes by group.
        free_s: when each stage is free.
        in_flight: batches, the oldest first.
        index: the group that is in the replica.
    """

    def __init__(self, replica: GeneralReplica, count: int) -> None:
        requests, size, layers = replica.requests, replica.block_size, replica.layers
        self.replica = replica
        self.members: list[dict[int, None]] = [{} for _ in range(count)]
        kind = type(replica.lane)
        self.decode_lanes = [kind(requests, 2 * k, size, layers) for k in range(count)]
        for lane in self.decode_lanes:
            if isinstance(lane, FixedLane):
                lane.reserved = replica.fixed.reserved
        self.prompt_lanes = [Lane(requests, 2 * k + 1, size, layers) for k in range(count)]
        self.free_s = [0.0] * count
        self.in_flight: deque[Flight] = deque()
        self.index = -1

    def enter(self, index: int) -> None:
        """Make a group the one that the policy sees, and let part-way prefills move into it."""
        replica = self.replica
        if replica.prefilling:
            for group in self.members:
                for request in replica.prefilling:
                    group.pop(request, None)
            self.members[index].update(dict.fromkeys(replica.prefilling))
        if index == self.index:
            return
        self.index = index
        replica.lane, replica.prompt_lane = self.decode_lanes[index], self.prompt_lanes[index]
        lane = replica.lane
        if isinstance(lane, FixedLane):
            replica.fixed = lane
        replica.running = self.members[index]
        replica.rules.entered(index)

    def advance(self, until_s: float, stop_at_finish: bool) -> None:
        """Schedule batches and take their results, as long as that happens before `until_s`."""
        replica = self.replica
        while True:
            if replica.next_arrival_s <= replica.now_s:
                replica._take_arrivals()
            if not replica.seated and not replica.waiting:
                if replica.next_arrival_s >= until_s:
                    return
                replica.now_s = replica.next_arrival_s
                continue
            if replica.now_s >= until_s:
                return
            replica.last_finished = NOBODY
            if len(self.in_flight) == len(self.members) or not self._schedule():
                self._take_oldest()
            if replica.log is not None:
                replica._write_log()
            if stop_at_finish and replica.last_finished:
                return

    def _schedule(self) -> bool:
        """Launch one batch; False when nothing can be scheduled."""
        replica = self.replica
        busy = {flight[1] for flight in self.in_flight}
        free = [index for index in range(len(self.members)) if index not in busy]
        self.enter(max(free, key=lambda index: self.decode_lanes[index].num))
        plan = replica.rules.plan(replica)
        replica.preempted = plan.preempt
        for eviction in plan.evict:
            replica.evict(eviction)
        lane, together = replica.lane, plan.decode or not replica.lane.num
        if not plan.chunks and not (lane.num and plan.decode):
            return bool(plan.preempt) and self._send(0.0, False, [], plan)
        if not plan.chunks:
            replica._serve_decodes()
            return self._send(replica.step_s(0, 0, 0, 0, 0, lane.num, lane.read), True, [], plan)
        folded = None if replica.plain_attention else replica._fold(plan.chunks)
        tokens, pairs, read, complete = replica._place(plan.chunks, together)
        if folded is not None:
            pairs, read = folded
        decodes = (lane.num, lane.read) if together else (0, 0)
        seconds = replica.step_s(tokens, len(plan.chunks), pairs, read, len(complete), *decodes)
        return self._send(seconds, together, complete, plan)

    def _send(self, seconds: float, together: bool, complete: list[int], plan: GeneralPlan) -> bool:
        """Put a batch of so many seconds a stage on its way; its tokens come later."""
        replica = self.replica
        if replica.free_blocks < 0:
            raise AssertionError(SHORT_OF_BLOCKS)
        if replica.observer is not None:
            replica.observer.scheduled(replica, plan, replica.now_s)
        begin_s = replica.now_s
        if seconds:
            for stage, free_s in enumerate(self.free_s):
                begin_s = self.free_s[stage] = max(begin_s, free_s) + seconds
        else:
            begin_s += replica.step_s(0, 0, 0, 0, 0, 0, 0)  # the scheduler has run for nothing
        self.in_flight.append((begin_s, self.index, together, complete))
        replica.preempted = ()
        return True

    def _take_oldest(self) -> None:
        """Wait for the oldest batch and hand its tokens out."""
        replica = self.replica
        end_s, index, together, complete = self.in_flight.popleft()
        replica.now_s = max(replica.now_s, end_s)
        self.enter(index)
        if together:
            replica._hand_out(end_s, complete)
        elif complete:
            replica._hand_out_first(end_s, complete)
        else:
            replica.prompt_lane.ends.append(end_s)
        if replica.observer is not None:
            replica.observer.stepped(replica, list(replica.last_finished), replica.now_s)
