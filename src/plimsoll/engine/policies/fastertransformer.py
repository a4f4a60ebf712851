"""FasterTransformer behind a batching server: request-level static batches, reserved for the longest sequence, padded.

A batch is formed when none runs, of the earliest requests that fit, and no request joins or leaves until all of it is
done. Every row holds memory for the longest sequence from the first step to the last of the batch.

Sources: https://www.usenix.org/conference/osdi22/presentation/yu, sections 2 and 6 (how the Orca paper describes and
runs FasterTransformer); https://arxiv.org/abs/2309.06180, section 6.1 (the batch takes up to as many of the earliest
requests as memory for the longest sequence allows);
https://github.com/microsoft/sarathi-serve/blob/main/sarathi/core/scheduler/faster_transformer_scheduler.py (admission;
that copy drops finished rows from the batch: ``pad_rows=false``).

NOTE: prompts are padded to the longest of the batch in the linear layers and in attention. While decoding, a finished
row costs its share of the linear layers and no attention, and a row reads its own tokens, not the padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import longest_sequence

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class Fastertransformer(GeneralPolicy):
    """Static batches of at most `max_num_seqs` requests.

    Args:
        config: seats, longest sequence and block size.
        padding: whether prompts are padded to the longest of their batch.
        pad_rows: whether finished rows stay, with their memory and their share of each step, until the batch ends.
        return_together: whether a request's last token is handed out only when its batch ends.
    """

    memory = "fixed"

    def __init__(
        self, config: EngineConfig, *, padding: bool = True, pad_rows: bool = True, return_together: bool = True
    ) -> None:
        self.seats = config.max_num_seqs
        self.longest = longest_sequence(config)
        self.padding = padding
        self.static = self.pads_rows = pad_rows
        self.returns_together = return_together and pad_rows
        self._decode_plan = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The longest sequence."""
        del requests, request
        return self.longest

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """The running batch to its end, then the next one."""
        if view.running:
            return self._decode_plan
        size, target = view.block_size, view.requests.target
        fit = min(self.seats, view.free_blocks // -(-self.longest // size))
        chunks: list[Chunk] = []
        for request in view.waiting:
            if len(chunks) == fit:
                break
            chunks.append((request, target[request]))
        longest = max(chunk for _, chunk in chunks) if self.padding else 0
        return GeneralPlan(chunks, pad_prompt=longest)
