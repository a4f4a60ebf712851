"""Text Generation Inference: prompts join in steps of their own, when enough of them wait or the batch waited enough.

1. With nothing running, a batch is made of the head of the queue and its prompts run.
2. Between decode steps, a new batch is made if at least ``batch size x waiting_served_ratio`` requests both wait and
   fit, or, after `max_waiting_tokens` decode steps without one, whatever fits. Its prompts run alone; then at least one
   decode step follows.
3. A request fits while the prompts of the new batch stay within `max_batch_prefill_tokens`, and prompts plus all that
   may be generated within the token budget of the memory. The queue is first come first served, and what is reserved
   suffices to the end.

Source: https://github.com/huggingface/text-generation-inference/blob/main/backends/v3/src/backend.rs and queue.rs
(``batching_task``, ``next_batch``). Defaults of docs/source/reference/launcher.md at commit 032fc4c4, read 2026-11-20:
ratio 0.3, 20 waiting tokens. It gives `max_batch_prefill_tokens` as ``max_input_tokens + 50``, whereas
launcher/src/main.rs takes what its estimate of the card's compute allows, or 4096.

NOTE: prefix caching and chunked prompts of TGI 3 are not modelled. `max_batch_total_tokens` is the KV memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import check_at_least, longest_sequence

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class Tgi(GeneralPolicy):
    """Token-budget admission with a waiting/served ratio.

    Args:
        config: seats (TGI's optional `max_batch_size`), block size.
        waiting_served_ratio: requests that must wait and fit, as a share of the running batch.
        max_waiting_tokens: decode steps after which the ratio no longer counts.
        max_batch_prefill_tokens: prompt tokens of a new batch; 0 is 4096, or the longest sequence if that is more, as
            the launcher raises it with its longest input.

    Raises:
        InputError: an option out of range; `max_batch_prefill_tokens` below the longest sequence, with which the
            launcher does not start.
    """

    memory = "fixed"

    def __init__(
        self,
        config: EngineConfig,
        *,
        waiting_served_ratio: float = 0.3,
        max_waiting_tokens: int = 20,
        max_batch_prefill_tokens: int = 0,
    ) -> None:
        check_at_least(0, waiting_served_ratio=waiting_served_ratio, max_batch_prefill_tokens=max_batch_prefill_tokens)
        check_at_least(1, max_waiting_tokens=max_waiting_tokens)
        longest = longest_sequence(config)
        if 0 < max_batch_prefill_tokens < longest:
            remedy = f"TGI starts only if the longest prompt fits: give at least {longest}, or a smaller max_model_len"
            raise InputError("max_batch_prefill_tokens", max_batch_prefill_tokens, remedy)
        tokens = max_batch_prefill_tokens or max(4096, longest)
        self.prefill_tokens = -(-tokens // config.block_size) * config.block_size
        self.seats = config.max_num_seqs
        self.ratio, self.patience = waiting_served_ratio, max_waiting_tokens
        self.may_join = False
        self._prompts = GeneralPlan(decode=False)
        self._decodes = GeneralPlan()

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The prompt and all it may generate, of which the last token needs no KV."""
        return requests.prompt[request] + requests.told_output[request] - 1

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Who fits into the token budget."""
        tokens = np.array(requests.prompt) + np.array(requests.told_output)
        return np.asarray(tokens <= config.num_blocks * config.block_size)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """A new batch if it is time for one, else decodes."""
        if not view.running:
            self.may_join = True  # only a batch that concatenates owes the others a decode step first
            return self._prefill(self._next_batch(view))
        decodes = self._decodes
        waited = 1 + view.steps_since_prefill
        decodes.holds, decodes.wakes_on_arrival = UNLIMITED, False
        if not view.steps_since_prefill and not self.may_join:
            decodes.holds = 1
            return decodes
        if len(view.running) >= self.seats:
            return decodes
        impatient = waited < self.patience
        least = int(len(view.running) * self.ratio) if impatient else 0
        decodes.wakes_on_arrival = len(view.waiting) < max(least, 1)
        if impatient:
            decodes.holds = self.patience - waited
        if decodes.wakes_on_arrival:
            return decodes
        chunks = self._next_batch(view)
        if not chunks:
            decodes.holds = UNLIMITED
        elif len(chunks) >= least:
            self.may_join = False
            return self._prefill(chunks)
        return decodes

    def _prefill(self, chunks: list[Chunk]) -> GeneralPlan:
        plan = self._prompts
        plan.chunks = chunks
        return plan

    def _next_batch(self, view: GeneralState) -> list[Chunk]:
        """The head of the queue, as far as prompts and tokens fit."""
        requests, size = view.requests, view.block_size
        free, seats = view.free_blocks, self.seats - len(view.running)
        tokens, prefill = free * size, self.prefill_tokens
        chunks: list[Chunk] = []
        for request in view.waiting:
            prompt = requests.prompt[request]
            reserve = prompt + requests.told_output[request]
            tokens -= reserve
            prefill -= prompt
            free += -(reserve - 1) // size
            if tokens < 0 or prefill < 0 or free < 0:
                break
            chunks.append((request, prompt))
            if len(chunks) == seats:
                break
        return chunks
