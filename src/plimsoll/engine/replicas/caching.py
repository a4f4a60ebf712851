"""A replica whose KV blocks have content: prefix caching.

What a look-up finds depends on which blocks were taken before it, hence a `PlannedReplica`. Between plans that look
something up it counts blocks, and the pool lags behind: blocks are alike once they are taken, so that a thousand decode
steps take theirs in one go at the end. `catch_up` brings the pool level.

What a request generates becomes findable when it lets go of it: nobody else could have found it before.
"""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr, trait

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Policy
from plimsoll.engine.prefix.contents import Contents
from plimsoll.engine.prefix.prefix_pool import Holding, PrefixPool, Run
from plimsoll.engine.replicas.planned import PlannedReplica
from plimsoll.engine.replicas.replica import Observer, Replica
from plimsoll.engine.requests import Requests


@trait
@mypyc_attr(allow_interpreted_subclasses=True)
class BlocksWithContent(PlannedReplica):
    """What a `PlannedReplica` over a `PrefixPool` does otherwise, whether its results come at once or late.

    Attributes:
        pool: the blocks. `free_blocks` counts what the plan in the making will leave, the pool what it has left so far.
        contents: what stands in the requests' prompts.
        holdings: for each request that has been looked up, its blocks.
    """

    pool: PrefixPool
    contents: Contents
    holdings: dict[int, Holding]
    _turn: dict[int, int]
    _num_admitted: int

    def _open_pool(self) -> None:
        """Begin with all blocks empty.

        Raises:
            InputError: the block size does not go with the workload's content ids.
        """
        requests = self.requests
        self.pool = PrefixPool(self.num_blocks)
        if requests.contents is None:
            requests.contents = Contents(requests.workload, self.block_size)
        self.contents = requests.contents
        self.holdings = {}
        self._turn = {}
        self._num_admitted = 0

    # -- taking blocks while a step is planned ---------------------------------------------------------------------

    def catch_up(self) -> None:
        """Let the pool give what the steps since the last time have taken."""
        pool = self.pool
        if pool.num_free != self.free_blocks:
            pool.take(pool.num_free - self.free_blocks)
        for request, tokens in self.prefilling.items():
            pool.fill(self.holdings[request], tokens // self.block_size)
        self._ahead = 0

    def num_left(self) -> int:
        """Free blocks, after what the step has taken so far."""
        return self.pool.num_free

    def take(self, count: int) -> None:
        """Take blocks for the coming step."""
        self.pool.take(count)
        self._ahead += count

    def give_back(self, request: int, tokens: int, findable: int) -> None:
        """Let go of the blocks of `tokens` tokens; full blocks of the first `findable` may be found again."""
        size, holding = self.block_size, self.holdings[request]
        self.pool.fill(holding, findable // size)
        self.pool.release(holding, -(-tokens // size))
        self.holdings[request] = Holding(holding.chain)

    def place(self, request: int, tokens: int) -> None:
        """Take what one running request needs for `tokens` more; full blocks of a prompt are findable at once."""
        super().place(request, tokens)
        if request in self.prefilling:
            self.pool.fill(self.holdings[request], (self.prefilling[request] + tokens) // self.block_size)

    def look_up(self, request: int) -> Sequence[Run]:
        """The cached runs that a waiting request's tokens begin with. At least one token is left to compute."""
        holding = self.holdings.get(request)
        if holding is None:
            holding = self.holdings[request] = Holding(self.contents.chain(request))
        return self.pool.find(holding.chain, (self.requests.target[request] - 1) // self.block_size)

    def admit(self, found: Sequence[Run], tokens: int) -> None:
        """Seat the head of the queue, on the cached runs `found` for it, with a first chunk of `tokens`."""
        requests, size = self.requests, self.block_size
        request = self.waiting[0]
        Replica._admit(self, request)
        self._num_admitted += 1
        self._turn[request] = self._num_admitted
        holding = self.holdings[request]
        start = found[-1].high * size if found else 0
        if not requests.preemptions[request]:
            requests.cached[request] = start
        if start:
            self.pool.share(holding, found)
            self.prefilling[request] = start
        self.take(-(-(start + tokens) // size) - start // size)
        self.pool.fill(holding, (start + tokens) // size)

    # -- what `Replica` does otherwise -----------------------------------------------------------------------------

    def let_go(self, finished: Sequence[int]) -> None:
        """Free the blocks and seats of requests whose last result has been taken, in scheduling order."""
        self.catch_up()
        final, turn = self.requests.final, self._turn
        for request in finished if len(finished) == 1 else sorted(finished, key=turn.__getitem__):
            if request in self.running:
                self.give_back(request, final[request], final[request])
                del self.running[request]
            del self.holdings[request], turn[request]
        self.free_blocks = self.pool.num_free


@mypyc_attr(allow_interpreted_subclasses=True)
class CachingReplica(BlocksWithContent):
    """A `PlannedReplica` with prefix caching, whose results are known at the end of each step.

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
        by_priority: bool = False,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer, by_priority)
        self._open_pool()

    def _take_finished(self) -> None:
        finished = self.lane.take_finished()[0]
        self.last_finished = finished
        self.let_go(finished)
