"""The prefix cache of one machine of a pool: vLLM's blocks with content, where KV moves between machines.

Fleets with prefill and decode pools run with a prefix cache on both sides. The rules here are those of vLLM with its
NIXL connector (docs.vllm.ai, "NixlConnector Usage Guide"; ``nixl_connector.py``, `get_num_new_matched_tokens` and
`_read_blocks`: "partial prefix cache hit: just read uncomputed blocks"), and of Mooncake (Qin et al., FAST 2025):

1. A prompt that begins to be computed is looked up where it is computed, as by `vllm-v1`: full blocks with equal
   content, at least one token left to compute. What is found is shared; only the other tokens are computed, and count
   against the tokens of a step. Full blocks are findable as soon as they are scheduled, in the same step too.
2. Blocks are let go of when the KV has left, or with the last token, and stay findable until they are taken: those
   without content first, then those that were let go of longest ago.
3. When KV begins to move, it is looked up where it goes: only what is not there crosses the link, at least one token.
   It is findable there once it has come (`decode_prefix_cache`; without, all of it crosses, and nobody finds it there).
   What the prompt's own machine had found crosses like the rest.
4. A prompt is sent where the fewest tokens are left to compute, those that wait there and its own together
   (`prefix_aware`; Mooncake's Algorithm 1 with tokens in the place of predicted seconds). NOTE: KV is never fetched
   from another prefill instance (the Algorithm's second branch), nor from host memory.

Answers are private: a conversation's next prompt finds the last prompt again, and not what was answered. What was
swapped out takes new blocks when it comes back.

A machine's blocks change only when somebody takes or lets go of them, so each of these first applies what has left or
come before it, in order of time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from plimsoll.engine.config import EngineConfig
from plimsoll.engine.prefix.contents import Chain, Contents
from plimsoll.engine.prefix.prefix_pool import Holding, PrefixPool, Run
from plimsoll.engine.requests import Requests


class MachineCache:
    """The blocks of one machine.

    Args:
        requests: of the run; `Requests.contents` is made where it is not there yet.
        config: sizes of the machine.
        keeps: whether KV that comes over the link can be found again.

    Attributes:
        leaving: whose KV is on its way out, in order of time.
        coming: KV that is on its way here: (when it is there, request), in order of time.

    Raises:
        InputError: the block size does not go with the workload's content ids.
    """

    __slots__ = ("_holdings", "_pool", "_received", "_requests", "_size", "coming", "contents", "keeps", "leaving")

    def __init__(self, requests: Requests, config: EngineConfig, *, keeps: bool) -> None:
        if requests.contents is None:
            requests.contents = Contents(requests.workload, config.block_size)
        self.contents = requests.contents
        self.keeps = keeps
        self.leaving: deque[int] = deque()
        self.coming: deque[tuple[float, int]] = deque()
        self._requests, self._size = requests, config.block_size
        self._pool = PrefixPool(config.num_blocks)
        self._holdings: dict[int, Holding] = {}
        self._received: set[int] = set()

    def level(self, free_blocks: int) -> None:
        """Let the pool give what decode steps have taken since the last time."""
        if self._pool.num_free != free_blocks:
            self._pool.take(self._pool.num_free - free_blocks)

    def receive(self, now_s: float, *, including: bool) -> None:
        """What has come before now, or up to now, is findable."""
        coming = self.coming
        while coming and (coming[0][0] < now_s or (including and coming[0][0] == now_s)):
            request = coming.popleft()[1]
            self._pool.fill(self._holdings[request], self._requests.prompt[request] // self._size)

    def expect(self, request: int, there_s: float) -> None:
        """KV that was accepted will be here at `there_s`, no sooner than that of those before."""
        if self.keeps:
            self.coming.append((there_s, request))

    def match(self, request: int, chain: Chain) -> int:
        """Tokens of a prompt that would be found now."""
        found = self._pool.find(chain, (self._requests.prompt[request] - 1) // self._size)
        return found[-1].high * self._size if found else 0

    def compute(self, request: int, num_blocks: int, *, if_room: bool = False) -> int:
        """Take `num_blocks` blocks for a prompt of the coming step; with `if_room` only where there are so many.

        Returns:
            Tokens that are found, -1 where there is no room.
        """
        chain, found = self._look_up(request)
        if if_room:
            shared = [run for run in found if run.users]
            used = sum(run.high - run.low for run in shared)
            if num_blocks - used > self._pool.num_free:
                return -1
        holding = self._place(request, chain, found, num_blocks)
        self._pool.fill(holding, self._requests.prompt[request] // self._size)
        return found[-1].high * self._size if found else 0

    def found_tokens(self, request: int) -> int:
        """Tokens of a prompt that would be found by `compute`."""
        found = self._look_up(request)[1]
        return found[-1].high * self._size if found else 0

    def accept(self, request: int, num_blocks: int) -> int:
        """Take `num_blocks` blocks for KV that begins to move here; returns the tokens of it that have to."""
        chain = self.contents.chain(request)
        found: Sequence[Run] = ()
        if self.keeps:
            chain, found = self._look_up(request)
        else:
            self._received.add(request)
        self._place(request, chain, found, num_blocks)
        return self._requests.prompt[request] - (found[-1].high * self._size if found else 0)

    def take_back(self, request: int, num_blocks: int) -> None:
        """Take blocks for KV that was elsewhere for a while; what it holds is not looked for."""
        self._place(request, self.contents.chain(request), (), num_blocks)

    def leave(self) -> int:
        """The first of those who leave has left; returns the blocks that are free by that."""
        request = self.leaving.popleft()
        prompt = self._requests.prompt[request]
        return self.let_go(request, -(-prompt // self._size), prompt)

    def let_go(self, request: int, num_blocks: int, tokens: int) -> int:
        """Let go of blocks with so many tokens in them; returns how many are free by that."""
        pool, holding = self._pool, self._holdings.pop(request)
        free = pool.num_free
        if request in self._received:
            self._received.remove(request)
        else:
            pool.fill(holding, tokens // self._size)
        pool.release(holding, num_blocks)
        return pool.num_free - free

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses."""
        return self._pool.num_free

    def _look_up(self, request: int) -> tuple[Chain, list[Run]]:
        chain = self.contents.chain(request)
        return chain, self._pool.find(chain, (self._requests.prompt[request] - 1) // self._size)

    def _place(self, request: int, chain: Chain, found: Sequence[Run], num_blocks: int) -> Holding:
        holding = self._holdings[request] = Holding(chain)
        if found:
            self._pool.share(holding, found)
        self._pool.take(num_blocks - holding.num_filled)
        return holding
