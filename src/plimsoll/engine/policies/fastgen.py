"""DeepSpeed-FastGen (Dynamic SplitFuse): forward passes of one size, decodes first, prompts split and fused to fill.

1. Decodes in order, as far as each has room in its last block or finds a free one; the others wait for the next pass.
2. Prompts first come first served, as long as blocks for *all* that remains of a prompt are free; each takes what is
   left of the pass, and the remainder of a split one stays at the front. Blocks are taken chunk by chunk.
3. If nothing can run, the last request that holds KV is flushed, and starts over at the end of the queue with what it
   has generated as part of its prompt.

Source: https://github.com/microsoft/DeepSpeed-MII/blob/main/mii/batching/ragged_batching.py (``_schedule_token_gen``,
``_schedule_prompts``, ``reset_request_status``); https://arxiv.org/abs/2401.08671; defaults of DeepSpeed's
inference/v2/ragged/manager_configs.py: 768 tokens and 512 sequences a pass.

NOTE: MII starts prompts beyond the sequences of one pass and lets all take turns; here their number is a limit on the
requests in flight. A chunk that its last block has room for runs without a free block, where MII would start over.
Decodes are served in the order of admission, where MII moves whoever was served to the back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState


@mypyc_attr(allow_interpreted_subclasses=True)
class Fastgen(GeneralPolicy):
    """Dynamic SplitFuse.

    Args:
        config: seats, if fewer than the sequences of a pass.
        max_ragged_batch_size: tokens of a forward pass.
        max_ragged_sequence_count: sequences of a forward pass.
    """

    memory = "pages"

    def __init__(
        self, config: EngineConfig, *, max_ragged_batch_size: int = 768, max_ragged_sequence_count: int = 512
    ) -> None:
        if max_ragged_batch_size < 1 or max_ragged_sequence_count < 1:
            sizes = (max_ragged_batch_size, max_ragged_sequence_count)
            raise InputError("max_ragged_batch_size, max_ragged_sequence_count", sizes, "give at least 1 of both")
        self.budget = max_ragged_batch_size
        self.seats = min(max_ragged_sequence_count, max_ragged_batch_size, config.max_num_seqs)
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._chunks_plan = GeneralPlan(wakes_on_arrival=False)
        self._chunks_plan.then_fill = self.budget
        self._fill_plan = GeneralPlan(wakes_on_arrival=False, fill=self.budget)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Decodes, then prompts, to fill the pass."""
        free = view.free_blocks - view.decode_need
        if free < 0:
            return self._short_of_blocks(view)
        seats, prefilling = self.seats - len(view.running), view.prefilling
        if not prefilling and (not seats or not view.waiting):
            return self._until_arrival if seats else self._until_finish
        budget = self.budget - view.num_decode
        chunks = self._prompts(view, budget, free, seats)
        if not chunks:
            return self._until_finish if budget < self.budget else self._flush(view)
        plan = self._chunks_plan
        request, tokens = chunks[0]
        if tokens == budget:  # it is the only one
            total = view.requests.target[request]
            left = total - prefilling.get(request, 0)
            if tokens < left:
                plan = self._fill_plan
                plan.holds = (left - 1) // tokens
                plan.spare = -(-total // view.block_size)  # enough that the rest of the prompt still fits
        plan.chunks = chunks
        return plan

    def _prompts(self, view: GeneralState, budget: int, free: int, seats: int) -> list[Chunk]:
        """Chunks from the head of the queue, the prompt under way first."""
        size, target = view.block_size, view.requests.target
        chunks: list[Chunk] = []
        if budget <= 0:
            return chunks
        for request, done in view.prefilling.items():
            length = target[request]
            if -(-length // size) - -(-done // size) > free:
                return chunks
            tokens = length - done
            if tokens > budget:
                tokens = budget
            chunks.append((request, tokens))
            budget -= tokens
            free += -(done + tokens) // size - -done // size
        for request in view.waiting:
            if not budget or not seats:
                break
            length = target[request]
            if -(-length // size) > free:
                break
            tokens = length if length < budget else budget
            chunks.append((request, tokens))
            budget -= tokens
            free += -tokens // size
            seats -= 1
        return chunks

    def _short_of_blocks(self, view: GeneralState) -> GeneralPlan:
        """Decodes that need a block and find none wait; if that is everybody, and no prompt can go on, flush one."""
        pause = view.decodes_in_need()[view.free_blocks :]
        running = view.num_decode - len(pause)
        chunks = self._prompts(view, self.budget - running, 0, self.seats - len(view.running))
        if not running and not chunks:
            return self._flush(view)
        # Prompts that were refused although the pass has room need blocks, as those who pause do.
        return GeneralPlan(chunks, pause=tuple(pause), all_wait=not chunks and running < self.budget)

    def _flush(self, view: GeneralState) -> GeneralPlan:
        decodes = [request for request in view.running if request not in view.prefilling]
        last = decodes[-1] if decodes else next(iter(view.prefilling))
        return GeneralPlan(evict=((last, "recompute", "back"),), decode=False)
