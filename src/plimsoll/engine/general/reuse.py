"""A replica of the general kernel whose blocks are found again: TensorRT-LLM's KV cache reuse.

A request takes the blocks of its whole prompt when it is admitted: those that are stored and hold what it begins with,
and new ones. Its prompt is stored when it is complete, all of it once more when the request ends or gives way. The
capacity policy decides before anything is looked up: it counts all blocks of a prompt, found or not.

    unpromised = free blocks - what those who run will still take until they have all they were told they may generate

Between steps in which somebody comes or goes, blocks are only counted; `plimsoll.engine.prefix.reuse_pool` lags behind.

Source: https://github.com/NVIDIA/TensorRT-LLM of 1.2: cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp
(``addSequence``, ``getRemainingBlocksToCompletion``, ``findNewContextBlock``), ``setPrepopulatedPromptLen`` in
cpp/include/tensorrt_llm/batch_manager/llmRequest.h, and tensorrt_llm/_torch/pyexecutor/resource_manager.py
(``prepare_resources``: prompts take their blocks before decodes do; ``update_resources`` stores them).
"""

from __future__ import annotations

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.general.replica import GeneralReplica
from plimsoll.engine.policy import Chunk, Policy
from plimsoll.engine.prefix.contents import Chain, Contents
from plimsoll.engine.prefix.reuse_pool import Holding, ReusePool, Run
from plimsoll.engine.replicas.replica import Observer
from plimsoll.engine.requests import Requests


class ReuseReplica(GeneralReplica):
    """A `GeneralReplica` over a `ReusePool`, for a policy whose admissions take the prompt (memory ``prompt``).

    Attributes:
        partial: whether the last block of a prompt, which must not be found whole, is found but for its last token.
        promises: whether whoever is admitted may count on the memory of all it may generate (`GeneralPolicy.reserve`).
        unpromised: with `promises`, free blocks that nobody counts on.

    Raises:
        InputError: the block size does not go with the workload's content ids.
    """

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer)
        if requests.contents is None:
            requests.contents = Contents(requests.workload, config.block_size)
        self.contents = requests.contents
        self.unpromised = config.num_blocks
        self.partial = self.promises = True
        self._pool = ReusePool(config.num_blocks)
        self._chains: dict[int, Chain] = {}
        self._holdings: dict[int, Holding] = {}

    # -- what the policy asks --------------------------------------------------------------------------------------

    def first_new(self, request: int) -> int | None:
        """A number that stands for the first full block of a request's prompt, and all before it, that is not stored.

        None where all are. Equal numbers are equal contents.
        """
        self._catch_up()
        chain, full = self._chain(request), self.requests.target[request] // self.block_size
        found = self._pool.num_found(chain, full)
        return None if found == full else chain.key(found)

    @property
    def under_way(self) -> list[int]:
        """Requests that the policy does not see and whose prompts will be complete with a batch in flight."""
        if self.stages is None:
            return []
        return [request for _, _, _, complete in self.stages.in_flight for request in complete]

    def would_free(self, request: int, tally: dict[Run, int]) -> int:
        """Blocks that come free when a running request lets go after those whose runs `tally` has counted."""
        holding = self._holdings[request]
        blocks = self.held_blocks(request) - holding.end
        for run in holding.whole():
            tally[run] = gone = tally.get(run, 0) + 1
            if gone == run.users:
                blocks += run.high - run.low
        return blocks

    # -- what the policy does while it plans -----------------------------------------------------------------------

    def let_in(self, chunks: list[Chunk]) -> list[Chunk]:
        """Admit those who begin, in order; returns the chunks without what was found.

        A chunk that does not end its prompt is whole blocks, and so is what was found before it.
        """
        target, prefilling = self.requests.target, self.prefilling
        left: list[Chunk] = []
        for request, tokens in chunks:
            if request not in prefilling:
                self._admit(request)
                tokens = min(tokens, target[request] - prefilling[request])
            left.append((request, tokens))
        return left

    # -- steps -----------------------------------------------------------------------------------------------------

    def _hand_out(self, end_s: float, complete: list[int]) -> None:
        """The end of a step: prompts that are complete are stored."""
        lane, requests = self.lane, self.requests
        lane.ends.append(end_s)
        lane.read += lane.grow
        if lane.crossings:
            lane.settle()
        if complete:
            self._catch_up()
        for request in complete:
            lane.start(request, requests.target[request], requests.left[request] - 1)
            self._pool.store(self._holdings[request], requests.target[request] // self.block_size)
        if lane.due <= len(lane.ends):
            self._take_finished()

    # -- memory ----------------------------------------------------------------------------------------------------

    def _chain(self, request: int) -> Chain:
        chain = self._chains.get(request)
        if chain is None:
            chain = self._chains[request] = self.contents.chain(request)
        return chain

    def _catch_up(self) -> None:
        """Let the pool give what the steps since the last time have taken."""
        taken = self._pool.num_free - self.free_blocks
        if taken:
            self._pool.take(taken)

    def _promised(self, request: int) -> int:
        return -(-self.rules.reserve(self.requests, request) // self.block_size)

    def _admit(self, request: int) -> None:
        """Take the blocks of the prompt; what was found of it is in place."""
        self._catch_up()
        super()._admit(request)
        requests, pool, length = self.requests, self._pool, self.requests.target[request]
        chain = self._chain(request)
        holding = self._holdings[request] = Holding(chain)
        last = (length - 1) // self.block_size
        used = pool.share(holding, pool.find(chain, last))
        have = holding.end * self.block_size
        if self.partial and holding.end == last and not length % self.block_size and pool.has(chain, last):
            have = length - 1
        pool.take(last + 1 - holding.end)
        self.free_blocks = pool.num_free
        self.prefilling[request] = have
        if not requests.preemptions[request]:
            requests.cached[request] = have
        if self.promises:
            self.unpromised -= self._promised(request) - used

    def _take_memory(self, request: int) -> None:
        """Let go of the blocks of a request that gives way; it may find them again."""
        self._catch_up()
        full = self.cached_tokens(request) // self.block_size
        self._pool.release(self._holdings.pop(request), self.held_blocks(request), full)
        self.free_blocks = self._pool.num_free

    def _take_finished(self) -> None:
        """Let go of everybody whose last token the steps so far have brought, in order of arrival."""
        taken, _ = self.lane.take_finished()
        self._catch_up()
        for request in taken:
            tokens, chain = self.requests.final[request], self._chains.pop(request)
            full = min(tokens // self.block_size, chain.num_shared)  # nobody will look for the rest
            blocks = -(-tokens // self.block_size)
            freed = self._pool.release(self._holdings.pop(request), blocks, full)
            if self.promises:
                self.unpromised += freed + self._promised(request) - blocks
        self.free_blocks = self._pool.num_free
        self._leave(taken)
