"""vLLM V1's rules where blocks have content, requests priorities, or results come late.

The same scheduler as `plimsoll.engine.policies.vllm_v1`, but a step takes its blocks while it is planned, since what an
admission finds in the cache depends on what the step has taken before it. Further rules:

6. A new or returning request is seated on the longest run of cached full blocks that it begins with, at most all but
   one token. Blocks of the hit that nobody uses leave the free list, and so count against the free blocks.
7. A full block can be found as soon as its tokens are scheduled.
8. By priority: the queue is in order of (priority, arrival), and the victim is the running request that comes last in
   that order, wherever it is in the list; if it had been given tokens in this step, the budget gets them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.engine.policy import UNLIMITED, Chunk, StepPlan
from plimsoll.engine.replicas.planned import PlannedReplica

if TYPE_CHECKING:
    from plimsoll.engine.policies.vllm_v1 import VllmV1
    from plimsoll.engine.replicas.replica import Replica


class VllmBlocks:
    """Plans steps of a `PlannedReplica` by the settings of a `VllmV1`.

    `plan` is for replicas with content. Without, `VllmV1.plan` counts as usual and only `in_list_order` is needed.
    """

    def __init__(self, settings: VllmV1) -> None:
        self.settings = settings
        self._chunks_plan = StepPlan([], wakes_on_arrival=False)
        self._fill_plan = StepPlan([], wakes_on_arrival=False, fill=settings.budget)
        self._decode_until_arrival = settings.decode_until_arrival
        self._decode_until_finish = settings.decode_until_finish
        self._decode_blocked = settings.decode_blocked

    def plan(self, replica: Replica, /) -> StepPlan:
        """The common case: every decode gets its token, then at most one chunk, then admissions."""
        assert isinstance(replica, PlannedReplica)
        settings, lane, size = self.settings, replica.lane, replica.block_size
        budget = settings.simple_budget - lane.num
        free = replica.free_blocks - lane.hist[-len(lane.ends) % size]
        if budget < 0 or free < 0:
            return self.in_list_order(replica)
        chunks: list[Chunk] = []
        if replica.prefilling:
            # Without a threshold there is one part-way prefill at most, and it is the last of the running list.
            ((request, done),) = replica.prefilling.items()
            left = replica.requests.target[request] - done
            tokens = min(left, budget)
            if not tokens or free < -(-(done + tokens) // size) - -(-done // size):
                return self.in_list_order(replica)
            if tokens < left:
                return self._fill(request, tokens, left)
            replica.catch_up()
            replica.take_for_decodes()
            replica.place(request, tokens)
            chunks.append((request, tokens))
            budget -= tokens
        elif not budget or len(replica.running) >= settings.seats:
            return self._decode_until_finish
        elif not replica.waiting:
            return self._decode_until_arrival
        else:
            replica.catch_up()
            replica.take_for_decodes()
        self._admit(replica, chunks, budget, UNLIMITED)
        replica.planned()
        if not chunks:
            return self._decode_blocked
        if len(chunks) == 1:
            request, tokens = chunks[0]
            left = replica.requests.target[request] - replica.prefilling.get(request, 0)
            if tokens == budget < left:
                return self._fill(request, tokens, left)
        plan = self._chunks_plan
        plan.chunks = chunks
        return plan

    def _fill(self, request: int, tokens: int, left: int) -> StepPlan:
        """A chunk that takes the rest of the budget, and so will the next ones."""
        plan = self._fill_plan
        plan.chunks = [(request, tokens)]
        plan.holds = (left - 1) // tokens
        return plan

    def _admit(self, replica: PlannedReplica, chunks: list[Chunk], budget: int, threshold: int) -> None:
        """Seat requests strictly from the head of the queue, and append their first chunks."""
        settings, size = self.settings, replica.block_size
        target, running, waiting = replica.requests.target, replica.running, replica.waiting
        while budget and waiting and len(running) < settings.seats:
            request = waiting[0]
            length = target[request]
            found = replica.look_up(request)
            hit = found[-1].high if found else 0
            tokens = min(length - hit * size, threshold)
            if tokens > budget:
                if not settings.chunked:
                    return
                tokens = budget
            room = replica.num_left() + hit  # the hit's own blocks, but those that nobody uses are among the free ones
            for run in found:
                if not run.users:
                    room -= run.high - run.low
            if running:
                room -= settings.watermark_blocks
            if room < -(-(length if settings.reserve_full_isl else hit * size + tokens) // size):
                return
            replica.admit(found, tokens)
            chunks.append((request, tokens))
            budget -= tokens

    def in_list_order(self, replica: Replica) -> StepPlan:
        """The rule as vLLM's loop has it, request by request: for thresholds, small budgets and block shortage."""
        assert isinstance(replica, PlannedReplica)
        replica.catch_up()
        requests, size, running = replica.requests, replica.block_size, replica.running
        lingering, prefilling = replica.lingering, replica.prefilling
        budget = self.settings.budget
        threshold = self.settings.threshold_now(len(running) + len(replica.waiting))
        placed: dict[int, int] = {}
        preempt: list[int] = []
        for request in list(running):
            if not budget:
                break
            if request not in running or request in lingering:
                continue
            done = replica.cached_tokens(request)
            tokens = min(requests.target[request] - done, threshold, budget) if request in prefilling else 1
            need = -(-(done + tokens) // size) - -(-done // size)
            while need > replica.num_left() and request in running:
                victim = self._victim(replica)
                returned = placed.pop(victim, 0)
                replica.evict(victim, returned)
                budget += returned
                preempt.append(victim)
            if request not in running:
                break  # it had to evict itself
            replica.place(request, tokens)
            placed[request] = tokens
            budget -= tokens
        chunks = [(request, tokens) for request, tokens in placed.items() if request in prefilling]
        pause = tuple(r for r in running if r not in placed and r not in prefilling and r not in lingering)
        if not preempt:
            self._admit(replica, chunks, budget, threshold)
        replica.planned()
        return StepPlan(chunks, preempt=tuple(preempt), pause=pause)

    def evict_last(self, replica: Replica, missing: int) -> StepPlan:
        """The decode set lacks `missing` blocks, first come first served: who is evicted, from the end of the list.

        As `in_list_order` has it where everybody else gets a token, but without a look at them all.
        """
        assert isinstance(replica, PlannedReplica)
        replica.catch_up()
        size, preempt = replica.block_size, []
        while missing > 0:
            victim, left = next(reversed(replica.running)), replica.num_left()
            decodes = victim not in replica.prefilling and victim not in replica.lingering
            if decodes and not replica.cached_tokens(victim) % size:
                missing -= 1  # it would have needed a block itself
            replica.evict(victim)
            missing -= replica.num_left() - left
            preempt.append(victim)
        replica.planned()
        return StepPlan([], preempt=tuple(preempt))

    def _victim(self, replica: PlannedReplica) -> int:
        if replica.queue is None:
            return next(reversed(replica.running))
        return max(replica.running, key=replica.queue.urgency)
