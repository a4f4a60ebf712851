"""Orca: iteration-level batches, first come first served, whole prompts beside decodes, reservations, no preemption.

Every iteration takes the earliest requests up to the batch size. A request is let in when its whole reservation fits,
its prompt runs whole in the same iteration as the decodes of the others, and it stays to its end: what is reserved
suffices, so nobody is ever evicted. Admission stops at the first request that does not fit.

Source: https://www.usenix.org/conference/osdi22/presentation/yu, section 4.2, algorithm 1 (``max_bs``, ``n_slots``).
The three reservations, over a buddy allocator, are those by which https://arxiv.org/abs/2309.06180, section 6.1,
compares Orca: `max` reserves the longest sequence, `pow2` the prompt and the next power of two of the output, `oracle`
the prompt and the true output. `told` reserves the prompt and what the request asks for at most, as Orca itself does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import UnknownNameError
from plimsoll.engine.general.buddy import Buddy
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import RESERVATIONS, check_at_least, longest_sequence, next_power_of_two

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class Orca(GeneralPolicy):
    """Iteration-level scheduling with reservations.

    Args:
        config: longest sequence, block size; seats where `max_batch_size` is 0.
        reservation: ``max``, ``pow2``, ``oracle`` or ``told``.
        max_batch_size: requests of an iteration; 0 is `max_num_seqs`.
        buddy: whether reservations come from a buddy allocator: their size is a power of two of blocks, and so is
            their place. Orca does not say how its own memory is cut; the vLLM paper's Orca uses one.
    """

    memory = "fixed"
    pipelined = True

    def __init__(
        self, config: EngineConfig, *, reservation: str = "max", max_batch_size: int = 0, buddy: bool = False
    ) -> None:
        if reservation not in RESERVATIONS:
            raise UnknownNameError("reservation", reservation, RESERVATIONS)
        check_at_least(0, max_batch_size=max_batch_size)
        self.reservation = reservation
        self.seats = max_batch_size or config.max_num_seqs
        self.longest = longest_sequence(config)
        self.block_size = config.block_size
        self.buddy = Buddy(config.num_blocks) if buddy else None
        self._tokens: list[int] = []
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._chunks_plan = GeneralPlan()

    def reserve(self, requests: Requests, request: int, /) -> int:
        """By the kind of reservation; from a buddy allocator, a power of two of blocks."""
        if not self._tokens:
            self._tokens = self._reservations(requests)
        return self._tokens[request]

    def _reservations(self, requests: Requests) -> list[int]:
        if self.reservation == "pow2":
            output = [next_power_of_two(tokens) for tokens in requests.output]
        else:
            output = requests.told_output if self.reservation == "told" else requests.output
        longest, size = self.longest, self.block_size
        tokens = [min(prompt + more, longest) for prompt, more in zip(requests.prompt, output, strict=True)]
        if self.reservation == "max":
            tokens = [longest] * len(requests)
        if self.buddy is not None:
            tokens = [next_power_of_two(-(-count // size)) * size for count in tokens]
        return tokens

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whose reservation fits; with a buddy allocator, into one piece of the memory."""
        if self.buddy is None:
            return super().accepts(requests, config)
        most = self.buddy.largest * config.block_size
        return np.array([self.reserve(requests, i) <= most for i in range(len(requests))])

    def released(self, view: GeneralState, request: int, /) -> None:
        """Give the piece back."""
        del view
        if self.buddy is not None:
            self.buddy.give_back(request)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Everybody who runs, and whoever fits from the head of the queue."""
        seats = self.seats - len(view.running)
        if not view.waiting:
            return self._until_arrival if seats else self._until_finish
        if not seats:
            return self._until_finish
        chunks = self._admissions(view, seats)
        if not chunks:
            return self._until_finish
        plan = self._chunks_plan
        plan.chunks = chunks
        return plan

    def _admissions(self, view: GeneralState, seats: int) -> list[Chunk]:
        requests, size, free, buddy = view.requests, self.block_size, view.free_blocks, self.buddy
        chunks: list[Chunk] = []
        for request in view.waiting:
            blocks = -(-self.reserve(requests, request) // size)
            free -= blocks
            if free < 0 or (buddy is not None and not buddy.take(request, blocks)):
                break
            chunks.append((request, requests.target[request]))
            if len(chunks) == seats:
                break
        return chunks
