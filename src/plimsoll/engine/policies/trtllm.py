"""TensorRT-LLM: in-flight batching of whole prompts and decodes, with one of two ways to decide who has memory.

`guaranteed-no-evict` lets a request in when blocks for its prompt and all it may generate are free: nobody who has
started ever stops. `max-utilization` takes blocks for the next step only; when they run out, the last who has started
is paused, loses its KV, and comes back at its place in the order of arrival.

Every step takes all decodes, then prompts in order while `max_num_batched_tokens` (max_num_tokens) and `max_num_seqs`
(max_batch_size) last. Without chunked context a prompt runs whole.

Source: https://github.com/NVIDIA/TensorRT-LLM/blob/main/cpp/tensorrt_llm/batch_manager/capacityScheduler.cpp and
microBatchScheduler.cpp; https://nvidia.github.io/TensorRT-LLM/performance/performance-tuning-guide/
useful-runtime-flags.html (GUARANTEED_NO_EVICT is the default); chunked context is off by default in its LLM API.

NOTE: block reuse is not modelled. Chunks end at whole blocks, first come first served. The tokens of a step hold
prompts back and never decodes: `max_num_seqs` is taken to be the smaller number, as it is by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plimsoll.core.errors import UnknownNameError
from plimsoll.engine.general_plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general_state import GeneralState
    from plimsoll.engine.requests import Requests

POLICIES = ("guaranteed-no-evict", "max-utilization")


class Trtllm(GeneralPolicy):
    """In-flight batching with a capacity policy.

    Args:
        config: seats, tokens of a step, block size.
        capacity_scheduler_policy: ``guaranteed-no-evict`` or ``max-utilization``.
        enable_chunked_context: whether prompts may be cut at the tokens of a step; if not, longer ones are rejected.
    """

    pipelined = True

    def __init__(
        self,
        config: EngineConfig,
        *,
        capacity_scheduler_policy: str = "guaranteed-no-evict",
        enable_chunked_context: bool = False,
    ) -> None:
        name = capacity_scheduler_policy.lower().replace("_", "-")
        if name not in POLICIES:
            raise UnknownNameError("capacity_scheduler_policy", capacity_scheduler_policy, POLICIES)
        self.evicts = name == "max-utilization"
        self.memory = "prompt" if self.evicts else "fixed"
        self.seats, self.budget = config.max_num_seqs, config.max_num_batched_tokens
        self.block_size = config.block_size
        self.chunked = enable_chunked_context
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._chunks_plan = GeneralPlan(wakes_on_arrival=False)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The prompt and all it may generate."""
        return requests.prompt[request] + requests.told_output[request]

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whose reservation fits, and whose prompt (and what recomputing adds to it) fits into a step."""
        fits = super().accepts(requests, config)
        if self.chunked and self.budget >= self.block_size:
            return fits
        longest = np.array(requests.final if self.evicts else requests.prompt)
        return np.asarray(fits & (longest <= self.budget))

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """All decodes, then prompts in order."""
        free = view.free_blocks - view.decode_need
        if free < 0:
            return self._pause_last(view, -free)
        seats = self.seats - len(view.running)
        if not view.prefilling and (not seats or not view.waiting):
            return self._until_arrival if seats else self._until_finish
        chunks = self._prompts(view, self.budget - view.num_decode, free, seats, view.waiting)
        if not chunks:
            return self._until_finish
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

    def _chunk(self, left: int, budget: int) -> int:
        """Tokens of a prompt that a step takes: all, or, cut, a whole number of blocks."""
        if left <= budget:
            return left
        return max(budget, 0) // self.block_size * self.block_size if self.chunked else 0

    def _pause_last(self, view: GeneralState, missing: int) -> GeneralPlan:
        """From the end of the order of arrival, as many as it takes for the decodes before them to go on."""
        size = self.block_size
        evict = []
        for request in sorted(view.running, reverse=True):
            missing -= view.held_blocks(request)
            if request not in view.prefilling and not view.cached_tokens(request) % size:
                missing -= 1
            evict.append(request)
            if missing <= 0:
                break
        num_decode = view.num_decode - sum(1 for request in evict if request not in view.prefilling)
        chunks = self._prompts(view, self.budget - num_decode, 0, 0, (), tuple(evict))
        return GeneralPlan(chunks, evict=tuple((request, "recompute", "own") for request in evict))
