"""vLLM before V1 (SOSP'23 to 0.8): steps of prompts first, decodes in between, preemption of the latest.

1. If nobody is swapped out, prompts are taken whole from the head of the queue while seats, the step's tokens and
   blocks for all of the prompt last (a watermark stays free). If any, they run alone, and every decode waits.
2. Otherwise all decodes run. Each wants a free block; while there is none, whoever came last gives up its memory: to be
   recomputed, at the front of the queue, or swapped to host memory.
3. In a decode step in which nobody gave way, those swapped out come back by arrival, while the watermark stays free.

Sources: https://github.com/vllm-project/vllm/blob/v0.4.0/vllm/core/scheduler.py and block_manager_v1.py (``_schedule``,
``can_allocate``, ``can_append_slot``, ``can_swap_in``, ``_passed_delay``); defaults of config.py and arg_utils.py:
watermark 0.01, delay factor 0, block 16, 256 seats, ``max_num_batched_tokens = max(max_model_len, 2048)``, 0.9 of the
memory.

NOTE: v0 swaps only groups of several sequences (beam search) and recomputes single ones, the default here; `swap`
applies swapping to single ones, as the SOSP paper's section 7.3 does. A resumed prompt that no longer fits beside the
watermark is never taken up by v0; such a request is rejected here at its arrival.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import UnknownNameError
from plimsoll.engine.general.plan import INFINITE, UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import check_at_least, latest_to_evict, longest_sequence, watermark_blocks

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests

MODES = ("recompute", "swap")


@mypyc_attr(allow_interpreted_subclasses=True)
class VllmV0(GeneralPolicy):
    """vLLM's first scheduler, without chunked prefill.

    Args:
        config: seats, longest sequence, block size. A step's tokens are the larger of `max_num_batched_tokens` and the
            longest sequence, since v0 refuses to start with fewer.
        watermark: share of blocks that admission leaves free.
        preemption: ``recompute`` or ``swap``.
        swap_block_s: seconds to move one block over the host link, for `swap`.
        swap_blocks: blocks of host memory; whoever does not fit recomputes. 0 is unlimited.
        delay_factor: prompts wait until the earliest has waited this many times the last prompt step, if above 0.
    """

    own_settings: ClassVar = {
        "max_num_seqs": 256,
        "max_num_batched_tokens": ("max_model_len", 2048),
        "gpu_memory_utilization": 0.9,
    }

    def __init__(
        self,
        config: EngineConfig,
        *,
        watermark: float = 0.01,
        preemption: str = "recompute",
        swap_block_s: float = 0.0,
        swap_blocks: int = 0,
        delay_factor: float = 0.0,
    ) -> None:
        if preemption not in MODES:
            raise UnknownNameError("preemption", preemption, MODES)
        check_at_least(0, delay_factor=delay_factor, swap_block_s=swap_block_s, swap_blocks=swap_blocks)
        self.seats = config.max_num_seqs
        self.budget = max(config.max_num_batched_tokens, longest_sequence(config))
        self.watermark = watermark_blocks(config, watermark)
        self.preemption, self.swap_blocks = preemption, swap_blocks or UNLIMITED
        self.swap_block_s = swap_block_s
        self.delay_factor = delay_factor
        self._prompts = GeneralPlan(decode=False)
        self._decodes = GeneralPlan(holds=UNLIMITED, spare=1)

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whose whole sequence fits beside the watermark, and beside the spare block that swapping in wants."""
        blocks = -(-np.array(requests.final) // config.block_size) + (self.preemption == "swap")
        return np.asarray(blocks + self.watermark <= config.num_blocks)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Prompts if any can be taken, else decodes."""
        decodes = self._decodes
        decodes.until_s = INFINITE
        decodes.wakes_on_arrival = False
        if view.swapped:
            pass
        elif not view.waiting:
            decodes.wakes_on_arrival = len(view.running) < self.seats
        elif len(view.running) < self.seats:
            decodes.until_s = self._delayed_until_s(view)
            if decodes.until_s <= view.now_s:
                decodes.until_s = INFINITE
                chunks = self._admissions(view)
                if chunks:
                    plan = self._prompts
                    plan.chunks = chunks
                    return plan
        free = view.free_blocks - view.decode_need
        if free < 1 and view.num_decode:
            victims = latest_to_evict(view)
            if victims:
                return GeneralPlan(evict=tuple(self._evictions(view, victims)))
        if view.swapped:
            back = self._swap_in(view)
            if back:
                return GeneralPlan(swap_in=back)
        return decodes

    def _delayed_until_s(self, view: GeneralState) -> float:
        """Until when the delay factor holds prompts back; minus infinity if it does not.

        v0 lets the first one through when more time than the delay has passed, so at the very instant it waits still.
        """
        if not self.delay_factor or not view.running:
            return -INFINITE
        earliest_s = min(view.arrival_s[request] for request in view.waiting)
        if view.now_s - earliest_s > self.delay_factor * view.last_prefill_s:
            return -INFINITE
        until_s = earliest_s + self.delay_factor * view.last_prefill_s
        return until_s if until_s > view.now_s else float(np.nextafter(view.now_s, INFINITE))

    def _admissions(self, view: GeneralState) -> list[Chunk]:
        size, target = view.block_size, view.requests.target
        free, budget = view.free_blocks - self.watermark, self.budget
        seats = self.seats - len(view.running)
        chunks: list[Chunk] = []
        for request in view.waiting:
            tokens = target[request]
            free += -tokens // size
            budget -= tokens
            if free < 0 or budget < 0:
                break
            chunks.append((request, tokens))
            if len(chunks) == seats:
                break
        return chunks

    def _evictions(self, view: GeneralState, victims: list[int]) -> list[tuple[int, str, str]]:
        if self.preemption == "recompute":
            return [(request, "recompute", "front") for request in victims]
        room = self.swap_blocks - sum(-(-tokens // view.block_size) for tokens in view.swapped.values())
        evictions = []
        for request in victims:
            room -= view.held_blocks(request)
            mode = "swap" if room >= 0 else "recompute"
            room += view.held_blocks(request) if room < 0 else 0
            evictions.append((request, mode, "front"))
        return evictions

    def _swap_in(self, view: GeneralState) -> tuple[int, ...]:
        """By arrival, while blocks for what a request has, one to go on with, and the watermark are there."""
        free = view.free_blocks - view.decode_need
        seats = self.seats - len(view.running)
        back: list[int] = []
        for request in sorted(view.swapped)[:seats]:
            free -= -(-view.swapped[request] // view.block_size) + 1
            if free < self.watermark:
                break
            back.append(request)
        return tuple(back)
