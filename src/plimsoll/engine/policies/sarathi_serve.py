"""Sarathi-Serve: stall-free batches under a token budget, with memory for the whole prompt at admission.

Every step: all decodes; then the next chunk of the prompt under way; then prompts from the head of the queue, each of
which gets what is left of the budget. Blocks for the whole prompt are taken when it is let in, beside a watermark;
while decodes lack a free block, whoever came last gives way and recomputes, at the front of the queue.

Source: https://github.com/microsoft/sarathi-serve/blob/main/sarathi/core/scheduler/sarathi_scheduler.py and
block_space_manager/vllm_block_space_manager.py; https://www.usenix.org/conference/osdi24/presentation/agrawal, section
4 (budgets of 512, strict, and 2048, relaxed). Defaults of sarathi/config.py: chunk 512, 128 seats (`max_num_seqs`),
watermark 0.01; ``max_num_batched_tokens`` there is the chunk.

NOTE: as in the source the budget holds prompts back and never decodes: with more decodes than tokens no chunk runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import latest_to_evict, watermark_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class SarathiServe(GeneralPolicy):
    """Chunked prefills beside all decodes.

    Args:
        config: seats and block size.
        chunk_size: tokens of a step (the paper's budget), decodes included.
        watermark: share of blocks that admission leaves free.
    """

    pipelined = True
    own_settings: ClassVar = {"max_num_seqs": 128, "max_num_batched_tokens": "chunk_size"}

    def __init__(self, config: EngineConfig, *, chunk_size: int = 512, watermark: float = 0.01) -> None:
        if chunk_size < 1:
            raise InputError("chunk_size", chunk_size, "give at least 1 token")
        self.seats = config.max_num_seqs
        self.block_size = config.block_size
        self.budget = chunk_size
        self.watermark = watermark_blocks(config, watermark)
        self._until_arrival = GeneralPlan(holds=UNLIMITED, spare=1)
        self._until_finish = GeneralPlan(holds=UNLIMITED, spare=1, wakes_on_arrival=False)
        self._chunks_plan = GeneralPlan(wakes_on_arrival=False)
        self._fill_plan = GeneralPlan(wakes_on_arrival=False, spare=1, fill=chunk_size)

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whose whole sequence fits beside the watermark."""
        blocks = -(-np.array(requests.final) // config.block_size)
        return np.asarray(blocks + self.watermark <= config.num_blocks)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """All decodes, the prompts under way, then new ones."""
        if view.free_blocks - view.decode_need < 1 and view.num_decode:
            victims = latest_to_evict(view)
            if victims:
                return self._after_evictions(view, victims)
        budget = self.budget - view.num_decode
        seats = self.seats - len(view.seated)
        if budget <= 0:
            return self._until_finish
        if not view.prefilling and (not seats or not view.waiting):
            return self._until_arrival if seats else self._until_finish
        chunks: list[Chunk] = []
        if view.prefilling:
            budget = self._go_on(view, chunks, budget, ())
        if budget and seats and view.waiting:
            self._admit(view, chunks, budget, view.free_blocks - view.decode_need, seats)
        if not chunks:
            return self._until_finish
        request, tokens = chunks[0]
        if len(chunks) == 1 and tokens == self.budget - view.num_decode:
            left = view.requests.target[request] - view.prefilling.get(request, 0)
            if tokens < left and len(view.prefilling) <= 1:
                plan = self._fill_plan
                plan.chunks, plan.holds = chunks, (left - 1) // tokens
                return plan
        plan = self._chunks_plan
        plan.chunks = chunks
        return plan

    def _go_on(self, view: GeneralState, chunks: list[Chunk], budget: int, gone: Iterable[int]) -> int:
        """The next chunks of prompts under way, by arrival; returns what they leave of the budget."""
        target, prefilling = view.requests.target, view.prefilling
        for request in sorted(set(prefilling).difference(gone)):
            tokens = min(target[request] - prefilling[request], budget)
            if tokens > 0:
                chunks.append((request, tokens))
                budget -= tokens
        return budget

    def _admit(
        self,
        view: GeneralState,
        chunks: list[Chunk],
        budget: int,
        free: int,
        seats: int,
        before: Mapping[int, int] | None = None,
    ) -> None:
        """Append chunks of those who get in, strictly from the head of the queue; with `before`, lengths, before it."""
        size, target, lengths = self.block_size, view.requests.target, before or {}
        free -= self.watermark
        for request in [*lengths, *view.waiting] if lengths else view.waiting:
            length = lengths[request] if request in lengths else target[request]
            free += -length // size
            if free < 0:
                break
            tokens = length if length < budget else budget
            chunks.append((request, tokens))
            budget -= tokens
            seats -= 1
            if not budget or not seats:
                break

    def _after_evictions(self, view: GeneralState, victims: list[int]) -> GeneralPlan:
        """A step before which somebody gave way; the last of them is now the head of the queue."""
        size, target, prefilling = view.block_size, view.requests.target, view.prefilling
        lengths = {
            request: target[request] if request in prefilling else view.cached_tokens(request) + 1
            for request in reversed(victims)
        }
        decodes = [request for request in victims if request not in prefilling]
        budget = max(self.budget - view.num_decode + len(decodes), 0)
        free = view.free_blocks - view.decode_need + sum(view.held_blocks(request) for request in victims)
        free += sum(1 for request in decodes if not view.cached_tokens(request) % size)
        chunks: list[Chunk] = []
        budget = self._go_on(view, chunks, budget, victims)
        seats = self.seats - len(view.seated) + len(victims)
        if budget and seats:
            self._admit(view, chunks, budget, free, seats, lengths)
        return GeneralPlan(chunks, evict=tuple((request, "recompute", "front") for request in victims))
