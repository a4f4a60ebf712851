"""sarathi-serve's ablation without hybrid batches: steps of chunks and steps of decodes take turns.

1. In turn, chunks of the prompts under way; if there are none, of prompts from the head of the queue, as far as the
   budget, the seats, and blocks for all of a prompt beside the watermark last. The next turn is the decodes'.
2. Where nothing can be chunked, or it is their turn, all decodes.

Source: https://github.com/microsoft/sarathi-serve/blob/main/sarathi/core/scheduler/simple_chunking_scheduler.py

NOTE: the source preempts when blocks run out; the ablation's load never comes near that, and this policy does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.engine.general.plan import Chunk, GeneralPlan, GeneralPolicy

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState


class SimpleChunking(GeneralPolicy):
    """Chunks and decodes take turns.

    Args:
        config: seats and blocks.
        chunk_size: tokens of a step of chunks.
        watermark: share of blocks that admission leaves free.
    """

    def __init__(self, config: EngineConfig, *, chunk_size: int = 512, watermark: float = 0.01) -> None:
        self.seats, self.budget, self.block_size = config.max_num_seqs, chunk_size, config.block_size
        self.watermark = int(watermark * config.num_blocks)
        self._prompts_turn = True

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Chunks in their turn, if there are any, else decodes."""
        chunks = self._chunks(view) if self._prompts_turn else []
        self._prompts_turn = not chunks
        return GeneralPlan(chunks, decode=not chunks)

    def _chunks(self, view: GeneralState) -> list[Chunk]:
        target, left = view.requests.target, self.budget
        chunks: list[Chunk] = []
        for request, done in view.prefilling.items():
            tokens = min(target[request] - done, left)
            if tokens:
                chunks.append((request, tokens))
                left -= tokens
        if chunks:
            return chunks
        free, seats = view.free_blocks - self.watermark, self.seats - len(view.running)
        for request in view.waiting:
            free += -target[request] // self.block_size
            if free < 0 or not seats or not left:
                break
            tokens = min(target[request], left)
            chunks.append((request, tokens))
            left -= tokens
            seats -= 1
        return chunks
