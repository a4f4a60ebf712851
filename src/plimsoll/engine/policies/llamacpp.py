"""llama.cpp's server: a few slots with a fixed share of the context each, logical batches cut into physical ones.

Every round takes one token of each slot that generates, then prompt tokens of the others, slot by slot, until the
logical batch is full. The logical batch runs as one forward pass per `ubatch_size` tokens, and its results appear when
all of them are done. A request waits until a slot is free; first come first served.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/server-context.cpp (``update_slots``), its README
(at commit 00dc8057, read 2026-11-20: ``--batch-size`` 2048, logical; ``--ubatch-size`` 512, physical; ``--ctx-size`` 0,
the model's own), server.cpp (``--parallel`` -1, its default: 4 slots that share a unified cache), and
src/llama-context.cpp (``n_ctx_seq = n_ctx / n_seq_max`` without a unified cache, as with a given ``--parallel``).

NOTE: a slot's share of the context is held while a request is in it (no unified cache), and a request that could exceed
it is rejected, where the server would cut its answer short. Prompt caching in slots is not modelled. Layers on the host
change memory and seconds (`perf.host_layers`), not the schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class Llamacpp(GeneralPolicy):
    """Fixed slots.

    Args:
        config: KV memory, which the slots share evenly.
        parallel: slots.
        batch_size: tokens of a logical batch.
        ubatch_size: tokens of one forward pass.
        gpu_layers: layers on the GPU, the output layer counted first (``-ngl``); -1 for all. The others are the host's.
        host_gb_per_s, host_tflops, host_gib: the host's memory bandwidth, arithmetic and memory; 0 for the usual host's
            (``perf/data/hosts.toml``).
    """

    memory = "fixed"

    def __init__(
        self,
        config: EngineConfig,
        *,
        parallel: int = 4,
        batch_size: int = 2048,
        ubatch_size: int = 512,
        gpu_layers: int = -1,
        host_gb_per_s: float = 0.0,
        host_tflops: float = 0.0,
        host_gib: float = 0.0,
    ) -> None:
        del gpu_layers, host_gb_per_s, host_tflops, host_gib  # of memory and seconds; looked at where these are made
        if not 1 <= parallel <= ubatch_size:
            raise InputError("parallel", parallel, f"give from 1 to ubatch_size ({ubatch_size}) slots")
        if ubatch_size > batch_size:
            raise InputError("ubatch_size", ubatch_size, f"give at most batch_size ({batch_size})")
        self.slots, self.budget = parallel, batch_size
        self.slot_blocks = config.num_blocks // parallel
        self.slot_tokens = self.slot_blocks * config.block_size
        pass_tokens = ubatch_size if ubatch_size < batch_size else 0
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._chunks_plan = GeneralPlan(wakes_on_arrival=False, pass_tokens=pass_tokens)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """A slot."""
        del requests, request
        return self.slot_tokens

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Who never outgrows a slot."""
        del config
        return np.asarray(np.array(requests.final) <= self.slot_tokens)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Tokens of the slots that generate, then prompts."""
        slots = self.slots - len(view.running)
        if not view.prefilling and (not slots or not view.waiting):
            return self._until_arrival if slots else self._until_finish
        budget = self.budget - view.num_decode
        target = view.requests.target
        chunks: list[Chunk] = []
        for request, done in view.prefilling.items():
            tokens = min(target[request] - done, budget)
            budget -= tokens
            if tokens:
                chunks.append((request, tokens))
        for request in view.waiting:
            if not slots or not budget:
                break
            tokens = min(target[request], budget)
            chunks.append((request, tokens))
            budget -= tokens
            slots -= 1
        if not chunks:
            return self._until_finish
        plan = self._chunks_plan
        plan.chunks = chunks
        return plan
