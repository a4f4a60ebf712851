"""GUIDE's model analyser as a scheduler: batches and prompts cut to the memory there is.

GUIDE does not serve requests; it predicts the latency of a batch on a framework, after adjusting the batch. Here its
adjustments are carried out, so that what they cost and gain shows beside real schedulers:

1. Dynamic batch size adjustment. A batch is formed when none runs, of the earliest requests. The KV memory of a request
   is that of the longest sequence among them; as many requests as the free memory holds make the batch.
2. The batch is divided into sub-batches of `split_size` requests (the rest makes one more), whose prompts are processed
   one sub-batch after another. Then all of the batch decode together.
3. Dynamic sequence length adjustment. Prompts are divided into segments of ``base_split × tuning_factor`` tokens, as
   many as it takes, rounded up; a segment that is not full costs as much as a full one.

Source: https://arxiv.org/abs/2412.04788, sections 3.3.1 and 3.3.2. The paper names the base value and the tuning factor
and prints no figures for them, nor for the split size: the defaults are ours.

NOTE: GUIDE shortens sequences that do not fit into memory; a request that does not is rejected here, since a shorter
answer is another request. Its batches have one length for all; here requests differ, and one that ends leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import check_at_least

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class Guide(GeneralPolicy):
    """Batches in sub-batches, prompts in segments.

    Args:
        config: requests of a batch (`max_num_seqs`), block size.
        dynamic_batch_size: whether memory is counted for the longest sequence of the batch; if not, for the longest
            that the engine takes.
        split_size: requests of a sub-batch; 0 is the whole batch.
        dynamic_sequence_length: whether prompts are divided into segments.
        base_split: tokens of a segment.
        tuning_factor: what they are multiplied by.
    """

    memory = "fixed"

    def __init__(
        self,
        config: EngineConfig,
        *,
        dynamic_batch_size: bool = True,
        split_size: int = 8,
        dynamic_sequence_length: bool = True,
        base_split: int = 512,
        tuning_factor: float = 1.0,
    ) -> None:
        if split_size < 0:
            raise InputError("split_size", split_size, "give a number of requests, 0 for all")
        check_at_least(0, base_split=base_split, tuning_factor=tuning_factor)
        self.segment = int(base_split * tuning_factor) if dynamic_sequence_length else UNLIMITED
        if self.segment < 1:
            raise InputError("base_split, tuning_factor", (base_split, tuning_factor), "give at least 1 token together")
        self.seats, self.size = config.max_num_seqs, config.block_size
        self.split_size = split_size or UNLIMITED
        self.longest = 0 if dynamic_batch_size else min(config.max_model_len, config.num_blocks * config.block_size)
        self.pad_prompt = self.segment if dynamic_sequence_length else 0
        self._to_come = 0
        self._decodes = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)

    def reserve(self, requests: Requests, request: int, /) -> int:
        """The prompt and all that it may generate."""
        return requests.prompt[request] + requests.told_output[request] - 1

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """The next segments of a sub-batch, the next sub-batch, or all decodes; without any of them, a new batch."""
        target = view.requests.target
        chunks: list[Chunk] = [
            (request, min(target[request] - done, self.segment)) for request, done in view.prefilling.items()
        ]
        if not chunks and not view.running:
            self._to_come = self._batch_size(view)
        if not chunks and self._to_come:
            count = min(self._to_come, self.split_size)
            self._to_come -= count
            chunks = [(request, min(target[request], self.segment)) for request in self._first(view, count)]
        if not chunks:
            return self._decodes
        return GeneralPlan(chunks, decode=False, wakes_on_arrival=False, pad_prompt=self.pad_prompt)

    def _batch_size(self, view: GeneralState) -> int:
        """As many of the earliest requests as fit if each is as long as the longest among them; at least one."""
        longest, count = self.longest, 0
        for request in view.waiting:
            longest = max(longest, self.reserve(view.requests, request))
            if count == self.seats or (count + 1) * -(-longest // self.size) > view.free_blocks:
                break
            count += 1
        return max(count, 1)

    @staticmethod
    def _first(view: GeneralState, count: int) -> list[int]:
        """The first of the queue."""
        return [request for request, _ in zip(view.waiting, range(count), strict=False)]
