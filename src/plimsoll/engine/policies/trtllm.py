"""TensorRT-LLM: in-flight batching of whole prompts and decodes, with one of two ways to decide who has memory.

`guaranteed-no-evict` lets a request in when blocks for its prompt and all it may generate are free: nobody who has
started ever stops. `max-utilization` takes blocks for the next step only; when they run out, the last who has started
is paused, loses its KV, and comes back at its place in the order of arrival.

Every step takes all decodes, then prompts in order while `max_num_batched_tokens` (max_num_tokens) and `max_num_seqs`
(max_batch_size) last. Without chunked context a prompt runs whole.

With `enable_block_reuse` blocks that hold what a prompt begins with are found again:

1. Blocks are stored when the prompt that they belong to is complete, and all of a request's when it ends or pauses. Of
   equal blocks one is stored. At least the last token of a prompt is computed.
2. Memory and tokens of a step are shared out before anything is looked up: a prompt counts with its whole length. What
   is found shortens its chunk, which then ends at a whole block.
3. Whoever would begin with a block that somebody before it in the same step, or with a prompt under way, is about to
   compute is passed over, so as to find it in the next step; those behind may overtake.
4. The free block that was let go of longest ago is taken first, whether it holds anything or not.

Source: https://github.com/NVIDIA/TensorRT-LLM of 1.2, cpp/tensorrt_llm/batch_manager: capacityScheduler.cpp
(``GuaranteedNoEvictScheduler``, ``beneficialToSkip``), microBatchScheduler.cpp, and for the reuse kvCacheManager.cpp
and evictionPolicy.cpp (see `plimsoll.engine.general.reuse`); https://nvidia.github.io/TensorRT-LLM/performance/
performance-tuning-guide/useful-runtime-flags.html (GUARANTEED_NO_EVICT is the default); chunked context is off by
default in its LLM API, reuse and partial reuse are on (llm-api/reference/KvCacheConfig.html).

With data-parallel attention ranks (``enable_attention_dp``) each has `max_num_seqs` seats, and who finds none waits
before all of them; tensorrt_llm/_torch/pyexecutor/executor_request_queue.py (``_balance_requests_across_ranks``). The
waiting strategies of ``attention_dp_config`` are off, as by default.

NOTE: chunks end at whole blocks, first come first served. The tokens of a step hold prompts back and never decodes:
`max_num_seqs` is taken to be the smaller number, as it is by default. Of reuse: all blocks have the default priority,
and none moves to host memory. Content is known by whole blocks, so partial reuse finds the last block of a prompt but
for its last token, and no block of which only the beginning is the same. Such a block is copied, at no cost, also where
TensorRT-LLM takes an unused one itself. The part of a block that a paused request had filled is not kept. Layers with
attention windows share the blocks of the others (there each window has a pool, and nobody is passed over). Later
versions count less of a prompt where blocks of it are found (``getEstimatedReusableTokens``). Without content ids only
paused requests could find anything: then blocks are only counted, unless `cache_own_blocks` asks for it.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import UnknownNameError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.reuse import ReuseReplica

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Sequence

    from plimsoll.core.step import StepModel
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.policy import Policy
    from plimsoll.engine.replicas.replica import Observer, Replica
    from plimsoll.engine.requests import Requests

POLICIES = ("guaranteed-no-evict", "max-utilization")


@mypyc_attr(allow_interpreted_subclasses=True)
class Trtllm(GeneralPolicy):
    """In-flight batching with a capacity policy.

    Args:
        config: seats, tokens of a step, block size.
        capacity_scheduler_policy: ``guaranteed-no-evict`` or ``max-utilization``.
        enable_chunked_context: whether prompts may be cut at the tokens of a step; if not, longer ones are rejected.
        enable_block_reuse: whether blocks with the same content are computed once.
        enable_partial_reuse: whether the last block of a prompt, if it is full and stored, is found but for a token.
        cache_own_blocks: reuse also for workloads without content ids.
    """

    pipelined = True
    steps_together = True

    def __init__(
        self,
        config: EngineConfig,
        *,
        capacity_scheduler_policy: str = "guaranteed-no-evict",
        enable_chunked_context: bool = False,
        enable_block_reuse: bool = True,
        enable_partial_reuse: bool = True,
        cache_own_blocks: bool = False,
    ) -> None:
        name = capacity_scheduler_policy.lower().replace("_", "-")
        if name not in POLICIES:
            raise UnknownNameError("capacity_scheduler_policy", capacity_scheduler_policy, POLICIES)
        self.evicts = name == "max-utilization"
        self.memory = "prompt" if self.evicts else "fixed"
        self.seats, self.budget = config.max_num_seqs, config.max_num_batched_tokens
        self.block_size = config.block_size
        self.chunked = enable_chunked_context
        self.reuse, self.partial, self.cache_own_blocks = enable_block_reuse, enable_partial_reuse, cache_own_blocks
        self.reuses = False
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._chunks_plan = GeneralPlan(wakes_on_arrival=False)
        self._one_step = GeneralPlan()

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The prompt and all it may generate."""
        return requests.prompt[request] + requests.told_output[request]

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whose reservation fits, and whose prompt (and what recomputing adds to it) fits into a step."""
        tokens = np.array(
            [0 if self.evicts else self.reserve(requests, i) for i in range(len(requests))], dtype=np.int64
        )
        fits = -(-tokens // config.block_size) <= config.num_blocks
        if self.chunked and self.budget >= self.block_size:
            return np.asarray(fits)
        longest = np.array(requests.final if self.evicts else requests.prompt)
        return np.asarray(fits & (longest <= self.budget))

    def finds_blocks(self, requests: Requests) -> bool:
        """Whether blocks of these requests can be found again; from then on they are looked for."""
        known = self.cache_own_blocks or requests.workload.prompt_block_ids is not None
        self.reuses = self.reuse and known
        if self.reuses:
            self.memory = "prompt"  # that of the answer is promised, and taken page by page
        return self.reuses

    def make_replica(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None, /
    ) -> Replica:
        """A replica that finds blocks again, where there is anything to find."""
        if not self.finds_blocks(requests):
            return super().make_replica(requests, config, model, number, observer)
        replica = ReuseReplica(requests, config, model, cast("Policy", self), number, observer)
        replica.partial, replica.promises = self.partial, not self.evicts
        return replica

    def deal(self, ranks: Sequence[GeneralState], waiting: deque[int], /) -> None:
        """As many as there are seats, the longest first, each to the rank that holds the fewest prompt tokens."""
        prompt = ranks[0].requests.prompt
        total = sum(len(rank.waiting) + len(rank.seated) for rank in ranks)
        room = min(len(ranks) * self.seats - total, len(waiting))
        if not room:
            return
        new = [waiting.popleft() for _ in range(room)]
        held = [[*rank.waiting, *rank.seated] for rank in ranks]
        most = max(-(-(total + len(new)) // len(ranks)), *map(len, held))
        heap = [(sum(prompt[i] for i in mine), len(mine), k) for k, mine in enumerate(held) if len(mine) < most]
        heapify(heap)
        for request in sorted(new, key=lambda i: -prompt[i]):
            tokens, count, k = heappop(heap)
            ranks[k].waiting.append(request)
            if count + 1 < most:
                heappush(heap, (tokens + prompt[request], count + 1, k))

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """All decodes, then prompts in order."""
        free = view.free_blocks - view.decode_need
        if free < 0:
            return self._pause_last(view, -free)
        seats = self.seats - len(view.running)
        if not view.prefilling and (not seats or not view.waiting):
            return self._until_arrival if seats else self._until_finish
        if self.reuses:
            chunks = self._prompts_with_reuse(cast("ReuseReplica", view), self.budget - view.num_decode, free, seats)
        else:
            chunks = self._prompts(view, self.budget - view.num_decode, free, seats, view.waiting)
        if not chunks:
            return self._one_step if self.reuses and view.prefilling else self._until_finish
        plan = self._chunks_plan
        plan.chunks = chunks
        return plan

    def _prompts(
        self, view: GeneralState, budget: int, free: int, seats: int, waiting: Iterable[int], gone: tuple[int, ...] = ()
    ) -> list[Chunk]:
        requests, size = view.requests, self.block_size
        chunks: list[Chunk] = []
        for request, done in view.prefilling.items():
            tokens = self._chunk(requests.target[request] - done, budget)
            if tokens and request not in gone:
                chunks.append((request, tokens))
                budget -= tokens
        for request in waiting:
            length = requests.target[request]
            tokens = self._chunk(length, budget)
            free += -(length if self.evicts else self.reserve(requests, request)) // size
            if free < 0 or not tokens or not seats:
                break
            chunks.append((request, tokens))
            budget -= tokens
            seats -= 1
        return chunks

    def _prompts_with_reuse(self, view: ReuseReplica, budget: int, free: int, seats: int) -> list[Chunk]:
        """The same, but for those who had better wait for what somebody else is about to compute."""
        requests, size = view.requests, self.block_size
        chunks: list[Chunk] = []
        new = {view.first_new(request) for request in view.under_way}
        for request, done in view.prefilling.items():
            new.add(view.first_new(request))
            tokens = self._chunk(requests.target[request] - done, budget)
            if tokens:
                chunks.append((request, tokens))
                budget -= tokens
        if not self.evicts:
            free = view.unpromised
        for request in view.waiting:
            block = view.first_new(request)
            if block is not None and block in new:
                continue
            length = requests.target[request]
            free += -(length if self.evicts else self.reserve(requests, request)) // size
            tokens = self._chunk(length, budget)
            if free < 0 or not tokens or not seats:
                break
            new.add(block)
            chunks.append((request, tokens))
            budget -= tokens
            seats -= 1
        return view.let_in(chunks)

    def _chunk(self, left: int, budget: int) -> int:
        """Tokens of a prompt that a step takes: all, or, cut, a whole number of blocks."""
        if left <= budget:
            return left
        return max(budget, 0) // self.block_size * self.block_size if self.chunked else 0

    def _pause_last(self, view: GeneralState, missing: int) -> GeneralPlan:
        """From the end of the order of arrival, as many as it takes for the decodes before them to go on."""
        size = self.block_size
        evict = []
        tally: dict[Any, int] = {}
        for request in sorted(view.running, reverse=True):
            if self.reuses:
                missing -= cast("ReuseReplica", view).would_free(request, tally)
            else:
                missing -= view.held_blocks(request)
            if request not in view.prefilling and not view.cached_tokens(request) % size:
                missing -= 1
            evict.append(request)
            if missing <= 0:
                break
        num_decode = view.num_decode - sum(1 for request in evict if request not in view.prefilling)
        chunks = self._prompts(view, self.budget - num_decode, 0, 0, (), tuple(evict))
        return GeneralPlan(chunks, evict=tuple((request, "recompute", "own") for request in evict))
