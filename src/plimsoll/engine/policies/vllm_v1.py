"""vLLM V1 (0.32): one token budget a step for everybody, chunked prefill, recompute preemption of the last.

Source: https://github.com/vllm-project/vllm/blob/main/vllm/v1/core/sched/scheduler.py, whose decisions were recorded
from the real scheduler (docs/validation.md, suite `schedules`). Its rules, in their order:

1. Running requests first, in list order, each min(what it lacks, threshold, budget left) tokens.
2. Out of blocks: the *last* of the running list is evicted and recomputes; it goes to the front of the queue.
3. Nobody is admitted in a step in which somebody was evicted.
4. Admission takes the head of the queue while seats and budget last, and stops at the first that does not fit.
5. A prompt is let in only if blocks for *all* of it are free (`reserve_full_isl`); nothing is held back for it.

With content, priorities or asynchronous scheduling the rules are those of `plimsoll.engine.prefix.vllm_blocks`, which
takes the blocks while it plans. Prefix caching is on, as in vLLM, but where the workload has no content ids it could
only find what an evicted request has left of itself: then blocks are only counted, and evicted requests find nothing,
unless `cache_own_blocks` asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.policy import UNLIMITED, Chunk, StepPlan
from plimsoll.engine.prefix.vllm_blocks import VllmBlocks
from plimsoll.engine.replicas.caching import CachingReplica
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.late_caching import LateCachingReplica
from plimsoll.engine.replicas.planned import PlannedReplica

if TYPE_CHECKING:
    from plimsoll.core.step import StepModel
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.replicas.replica import Observer, Replica
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmV1:
    """vLLM's V1 scheduler, first come first served.

    Args:
        config: seats, budget and block size.
        enable_chunked_prefill: whether a prompt may be cut at the budget.
        long_prefill_token_threshold: most tokens of one request in a step; 0 is off.
        long_prefill_token_threshold_adaptive: raise the threshold to budget // requests.
        reserve_full_isl: the whole-prompt admission gate (vLLM's ``scheduler_reserve_full_isl``).
        watermark: share of blocks that admission leaves free while anything runs.
        max_num_active_seqs: seats, where fewer than `max_num_seqs` may be active; 0 is off.
        enable_prefix_caching: whether full blocks with the same content are computed once.
        cache_own_blocks: prefix caching also for workloads without content ids, where it only helps evicted requests.
        scheduling_policy: ``fcfs``, or ``priority``: lower numbers first, and the least urgent is evicted.
        async_scheduling: schedule a step before the results of the last one are known.

    Raises:
        InputError: chunked prefill is off and the budget is smaller than the longest sequence; an unknown
            `scheduling_policy`.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        enable_chunked_prefill: bool = True,
        long_prefill_token_threshold: int = 0,
        long_prefill_token_threshold_adaptive: bool = False,
        reserve_full_isl: bool = True,
        watermark: float = 0.0,
        max_num_active_seqs: int = 0,
        enable_prefix_caching: bool = True,
        cache_own_blocks: bool = False,
        scheduling_policy: str = "fcfs",
        async_scheduling: bool = False,
    ) -> None:
        if not enable_chunked_prefill and config.max_num_batched_tokens < config.max_model_len:
            raise InputError(
                "max_num_batched_tokens",
                config.max_num_batched_tokens,
                f"without chunked prefill it must reach max_model_len ({config.max_model_len})",
            )
        if not 0 <= watermark < 1:
            raise InputError("watermark", watermark, "give a share from 0 to below 1")
        for name, value in (
            ("long_prefill_token_threshold", long_prefill_token_threshold),
            ("max_num_active_seqs", max_num_active_seqs),
        ):
            if value < 0:
                raise InputError(name, value, "give at least 1, or 0 for none")
        if scheduling_policy not in ("fcfs", "priority"):
            raise InputError("scheduling_policy", scheduling_policy, "give fcfs or priority")
        self.caching = enable_prefix_caching
        self.cache_own_blocks = cache_own_blocks
        self.by_priority = scheduling_policy == "priority"
        self.late = async_scheduling
        self.budget = config.max_num_batched_tokens
        self.simple_budget = -1 if long_prefill_token_threshold else self.budget
        self.seats = max_num_active_seqs or config.max_num_seqs
        self.in_turn = not (self.by_priority or long_prefill_token_threshold_adaptive)  # see `policy`
        self.block_size = config.block_size
        self.chunked = enable_chunked_prefill
        self.threshold = long_prefill_token_threshold
        self.adaptive = long_prefill_token_threshold_adaptive
        self.reserve_full_isl = reserve_full_isl
        # NOTE: vLLM counts its null block, which is not among the usable ones, into the watermark's base.
        self.watermark_blocks = int(watermark * (config.num_blocks + 1))
        # A prompt that stays part-way has taken the rest of the budget, and goes on doing so. The same objects every
        # time: making one is slow.
        self._chunks_plan = StepPlan([], wakes_on_arrival=False, then_fill=self.budget)
        self._fill_plan = StepPlan([], wakes_on_arrival=False, fill=self.budget)
        self.decode_until_arrival = StepPlan([], holds=UNLIMITED)
        self.decode_until_finish = StepPlan([], holds=UNLIMITED, wakes_on_arrival=False)
        # A request that does not fit keeps those behind it waiting, but not one that arrives with more urgency. A whole
        # prompt may fit even before results are in: who gets nothing more leaves it budget.
        waits = not (self.by_priority or (self.late and not self.chunked))
        self.decode_blocked = self.decode_until_finish if waits else self.decode_until_arrival
        self._blocks: VllmBlocks | None = None

    def make_replica(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None
    ) -> Replica | None:
        """A replica with content, priorities or late results, where these are asked for; else None.

        NOTE: with pipeline stages prefixes are not cached.

        Raises:
            InputError: priorities or asynchronous scheduling with pipeline stages.
        """
        caching = self.caching and (self.cache_own_blocks or requests.workload.prompt_block_ids is not None)
        if not (caching or self.by_priority or self.late):
            return None
        if model.num_stages > 1:
            if self.by_priority:
                raise InputError(
                    "scheduling_policy", "priority", "with pipeline stages requests go by arrival here: leave it out"
                )
            if self.late:
                remedy = "with pipeline stages results are taken at once here: leave it out"
                raise InputError("async_scheduling", "true", remedy)
            return None
        self._blocks = VllmBlocks(self)
        if caching:
            kind: type[PlannedReplica] = LateCachingReplica if self.late else CachingReplica
            return kind(requests, config, model, self._blocks, number, observer, self.by_priority)
        kind = LateReplica if self.late else PlannedReplica
        return kind(requests, config, model, self, number, observer, self.by_priority)

    def plan(self, replica: Replica, /) -> StepPlan:
        """The common case in a few lines: every decode gets its token, then at most one chunk, then admissions."""
        lane, size = replica.lane, self.block_size
        budget = self.simple_budget - lane.num
        if budget < 0:
            return self._in_list_order(replica)
        free = replica.free_blocks - lane.hist[-len(lane.ends) % size]
        if free < 0:
            return self._evict_last(replica, -free)
        if replica.prefilling:
            # Without a threshold there is one part-way prefill at most, and it is the last of the running list.
            (request,) = replica.prefilling
            done = replica.prefilling[request]
            left = replica.requests.target[request] - done
            tokens = left if left < budget else budget
            free += -(done + tokens) // size - -done // size
            if free < 0:
                # The last of the list evicts itself.
                return self._evict_last(replica, 1) if self._blocks else StepPlan([], preempt=(request,))
            if not tokens:
                return self._in_list_order(replica)
            if tokens < left:
                return self._fill(request, tokens, left)
            chunks = [(request, tokens)]
            budget -= tokens
            if budget and replica.waiting and len(replica.seated) < self.seats:
                self._admit(replica, chunks, budget, free, UNLIMITED)
        elif not budget or len(replica.seated) >= self.seats:
            return self.decode_until_finish
        elif not replica.waiting:
            return self.decode_until_arrival
        else:
            chunks = []
            self._admit(replica, chunks, budget, free, UNLIMITED)
            if not chunks:
                return self.decode_blocked
            request, tokens = chunks[0]
            if tokens == budget < replica.requests.target[request]:
                return self._fill(request, tokens, replica.requests.target[request])
        plan = self._chunks_plan
        plan.chunks = chunks
        return plan

    def _fill(self, request: int, tokens: int, left: int) -> StepPlan:
        """A chunk that takes the rest of the budget, and so will the next ones."""
        plan = self._fill_plan
        plan.chunks = [(request, tokens)]
        plan.holds = (left - 1) // tokens
        return plan

    def _admit(self, replica: Replica, chunks: list[Chunk], budget: int, free: int, threshold: int) -> None:
        """Append chunks of newly admitted requests, strictly from the head of the queue."""
        size, target = self.block_size, replica.requests.target
        seats, reserve = self.seats - len(replica.seated), self.watermark_blocks
        if reserve and replica.seated:
            free -= reserve
        for request in replica.waiting:
            tokens = length = target[request]
            if tokens > threshold:
                tokens = threshold
            if tokens > budget:
                if not self.chunked:
                    break
                tokens = budget
            if free < -(-(length if self.reserve_full_isl else tokens) // size):
                break
            chunks.append((request, tokens))
            budget -= tokens
            if not budget:
                break
            seats -= 1
            if not seats:
                break
            free += -tokens // size
            if reserve and not replica.seated and len(chunks) == 1:
                free -= reserve  # now somebody runs

    def _evict_last(self, replica: Replica, missing: int) -> StepPlan:
        """The decode set lacks `missing` blocks: evict from the end of the list until the rest has what it needs.

        vLLM goes through the list and evicts when a request finds no block. Since the victims are the last, who have
        not had their turn, this ends where the fewest evictions leave enough for everybody before them.
        """
        if self._blocks is not None and self.by_priority:
            return self._blocks.in_list_order(replica)
        if self._blocks is not None:
            return self._blocks.evict_last(replica, missing)
        size = self.block_size
        preempt: list[int] = []
        for victim in reversed(replica.running):
            cached = replica.cached_tokens(victim)
            missing -= -(-cached // size)
            if victim not in replica.prefilling and not cached % size:
                missing -= 1  # it would have needed a block itself
            preempt.append(victim)
            if missing <= 0:
                break
        return StepPlan([], preempt=tuple(preempt))

    def _in_list_order(self, replica: Replica) -> StepPlan:
        """The rule as vLLM's loop has it, request by request: for thresholds, small budgets and block shortage."""
        if self._blocks is not None:
            return self._blocks.in_list_order(replica)
        requests, size = replica.requests, self.block_size
        threshold = self.threshold_now(len(replica.seated) + len(replica.waiting))
        budget, free = self.budget, replica.free_blocks
        order = list(replica.running)
        end = len(order)
        chunks: list[Chunk] = []
        preempt: list[int] = []
        at = 0
        while at < end and budget:
            request = order[at]
            prefills = request in replica.prefilling
            done = replica.cached_tokens(request)
            tokens = min(requests.target[request] - done, threshold, budget) if prefills else 1
            need = -(-(done + tokens) // size) - replica.held_blocks(request)
            while need > free and end > at:
                end -= 1
                preempt.append(order[end])
                free += replica.held_blocks(order[end])
            if end == at:
                break  # it had to evict itself
            free -= need
            budget -= tokens
            if prefills:
                chunks.append((request, tokens))
            at += 1
        pause = tuple(request for request in order[at:end] if request not in replica.prefilling)
        if not preempt and budget and len(replica.seated) < self.seats:
            self._admit(replica, chunks, budget, free, threshold)
        return StepPlan(chunks, preempt=tuple(preempt), pause=pause)

    def threshold_now(self, num_requests: int) -> int:
        """Most tokens of one request in a step with so many requests."""
        if not self.threshold or num_requests <= 1:
            return UNLIMITED
        if self.adaptive:
            return max(self.threshold, self.budget // num_requests)
        return self.threshold
