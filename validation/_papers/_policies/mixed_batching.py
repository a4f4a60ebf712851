"""The baseline of the Splitwise paper: decodes beside whole prompts up to the tokens of a step, a longer one alone.

Memory for a whole sequence is set aside at admission, so nobody is ever evicted; the queue stops at the first that
does not fit.

Source: https://github.com/Mutinifni/splitwise-sim (``SplitwiseInstance``, start state ``baseline``: 2048 tokens, 512
requests), https://arxiv.org/abs/2311.18677, section 5.2.

NOTE: the source leaves decodes out where tokens and decodes exceed the budget; beside the paper's loads they do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


class MixedBatching(GeneralPolicy):
    """Whole prompts beside all decodes.

    Args:
        config: seats, tokens of a step, block size.
    """

    memory = "fixed"

    def __init__(self, config: EngineConfig) -> None:
        self.seats, self.budget = config.max_num_seqs, config.max_num_batched_tokens
        self.block_size = config.block_size
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The whole sequence."""
        tokens: int = requests.final[request]
        return tokens

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Everybody who runs, and prompts from the head of the queue."""
        if not view.waiting:
            return self._until_arrival
        chunks = self._prompts(view)
        return GeneralPlan(chunks) if chunks else self._until_finish

    def _prompts(self, view: GeneralState) -> list[Chunk]:
        seats, left, free = self.seats - len(view.running), self.budget, view.free_blocks
        chunks: list[Chunk] = []
        for request in view.waiting:
            tokens = view.requests.target[request]
            free += -self.reserve(view.requests, request) // self.block_size
            if not seats or free < 0 or (tokens > left and chunks):
                break
            chunks.append((request, tokens))
            left -= tokens
            seats -= 1
        return chunks
