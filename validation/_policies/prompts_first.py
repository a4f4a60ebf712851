"""SGLang without mixed steps: prompts run first and alone, and new requests are looked for every few decode steps.

A step takes waiting prompts while the chunk budget, the seats and the memory last, and no decode; a prompt that does
not fit into the budget is cut there and goes on in the next step. Between them all decodes run. The inbox is read
after every step with prompts and after every `recv_interval` decode steps (``--scheduler-recv-interval``).

Source: https://github.com/sgl-project/sglang, python/sglang/srt/managers: schedule_policy.py (PrefillAdder),
scheduler_recv_skipper.py.

NOTE: memory is reserved for the whole request, where SGLang reserves an estimated share of its output and retracts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


class PromptsFirst(GeneralPolicy):
    """Prompts first, from an inbox that is read now and then.

    Args:
        config: seats, chunk budget, block size.
        recv_interval: decode steps between two looks into the inbox.
    """

    memory = "fixed"

    def __init__(self, config: EngineConfig, *, recv_interval: int = 1) -> None:
        self.seats, self.budget = config.max_num_seqs, config.max_num_batched_tokens
        self.block_size, self.interval = config.block_size, max(1, recv_interval)
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The prompt and all it may generate."""
        return requests.prompt[request] + requests.told_output[request]

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Prompts alone, or all decodes until the inbox is read again."""
        seats = self.seats - len(view.running)
        if not view.prefilling and (not seats or not view.waiting):
            return self._until_arrival if seats else self._until_finish
        since = view.steps_since_prefill % self.interval
        if since and view.num_decode and not view.prefilling:
            return GeneralPlan(holds=self.interval - since, wakes_on_arrival=False)
        chunks = self._chunks(view, seats)
        return GeneralPlan(chunks, decode=False) if chunks else self._until_finish

    def _chunks(self, view: GeneralState, seats: int) -> list[Chunk]:
        requests, budget, free = view.requests, self.budget, view.free_blocks
        chunks: list[Chunk] = []
        for request, done in view.prefilling.items():
            tokens = min(requests.target[request] - done, budget)
            if tokens:
                chunks.append((request, tokens))
                budget -= tokens
        for request in view.waiting:
            free -= -(-self.reserve(requests, request) // self.block_size)
            if free < 0 or not seats or budget <= 0:
                break
            tokens = min(requests.target[request], budget)
            chunks.append((request, tokens))
            budget -= tokens
            seats -= 1
        return chunks
