"""SARATHI: every batch is one prefill chunk and as many decodes as there are slots (decode-maximal batches).

One prompt at a time is cut into chunks of equal cost, and each chunk carries the decodes of all other slots. A slot
holds memory for the longest sequence, so nobody is ever evicted.

Source: https://arxiv.org/abs/2308.16369, sections 4.1 to 4.4: chunk sizes of 256 and 512; with `aligned` the chunk is
shorter by the decodes that ride along, so that a batch fills whole tiles of the matrix units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import longest_sequence

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class Sarathi(GeneralPolicy):
    """Chunked prefills of one prompt at a time, with piggybacked decodes.

    Args:
        config: slots (`max_num_seqs`), longest sequence.
        chunk_size: tokens of a chunk.
        aligned: whether chunk and decodes together make `chunk_size` tokens (a multiple of it with more decodes).
    """

    memory = "fixed"
    pipelined = True

    def __init__(self, config: EngineConfig, *, chunk_size: int = 256, aligned: bool = True) -> None:
        if chunk_size < 1:
            raise InputError("chunk_size", chunk_size, "give at least 1 token")
        self.slots = config.max_num_seqs
        self.longest = longest_sequence(config)
        self.slot_blocks = -(-self.longest // config.block_size)
        self.chunk_size, self.aligned = chunk_size, aligned
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._chunk_plan = GeneralPlan(wakes_on_arrival=False)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The longest sequence."""
        del requests, request
        return self.longest

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """The next chunk of the prompt under way, or the first of the next prompt, beside all decodes."""
        if view.prefilling:
            ((request, done),) = view.prefilling.items()
        elif len(view.running) == self.slots or view.free_blocks < self.slot_blocks:
            return self._until_finish
        elif not view.waiting:
            return self._until_arrival
        else:
            request, done = view.waiting[0], 0
        tokens = self.chunk_size
        if self.aligned:
            tokens -= view.num_decode % self.chunk_size
        left = view.requests.target[request] - done
        plan = self._chunk_plan
        plan.chunks = [(request, min(tokens, left))]
        plan.holds = max((left - 1) // tokens, 1)
        plan.fill = self.chunk_size if self.aligned and tokens < left and view.num_decode < self.chunk_size else 0
        return plan
