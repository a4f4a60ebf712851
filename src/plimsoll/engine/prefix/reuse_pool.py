"""KV blocks that are found again as TensorRT-LLM has it: one copy of each content, and one list of all free blocks.

Every free block stands in one list, whether it holds anything that can be found or not. Blocks are taken from its
front, and what a request lets go of is appended, its last block first: so what was used longest ago goes first, the end
of a prompt before its beginning. A block that is taken loses its content. When a request's prompt is complete, and
again when it lets go, its full blocks are stored: findable from then on, unless the same content is stored already.
Then the block stays a blank, which nobody finds, until it is let go of.

As in `plimsoll.engine.prefix.prefix_pool` blocks that are used alike and lie beside each other in the list are one
`Run`.

    free list   front [ blank 900 | 3 2 of A | blank 1 | 1 0 of A | blank 2 | 7 6 5 of B ] back

Source: https://github.com/NVIDIA/TensorRT-LLM, cpp/tensorrt_llm/batch_manager of 1.2: kvCacheManager.cpp
(``loadOrAllocateBlocks``, ``storeBlocks``, ``releaseBlocks``) and evictionPolicy.cpp (``LRUEvictionPolicy``, where all
blocks have the default priority).

NOTE: when a block is taken whose successors are stored, TensorRT-LLM unlinks these; here they keep their content, and
look-ups end before them. That takes a request that gave way, and a last block that was computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.engine.prefix.contents import Chain

NOTHING = Chain([], 0, 1, 0)


class Run:
    """Blocks `low` to `high` - 1 of a chain.

    Attributes:
        chain: whose content it is.
        users: requests that hold it; without any it is on the free list.
        stored: whether it can be found; if not, its blocks are blank.
        rest: what was cut off behind it; those that held the whole hold that as well.
        before, after: neighbours on the free list.
    """

    __slots__ = ("after", "before", "chain", "high", "low", "rest", "stored", "users")

    after: Run
    before: Run

    def __init__(self, chain: Chain, low: int, high: int, users: int, stored: bool) -> None:
        self.chain = chain
        self.low = low
        self.high = high
        self.users = users
        self.stored = stored
        self.rest: Run | None = None


class Holding:
    """The blocks that one request holds and has stored or tried to: runs, in order, and where each ended then.

    Attributes:
        end: the block after the last of them; those the request holds beyond are its own and blank.
    """

    __slots__ = ("chain", "end", "ends", "runs")

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.runs: list[Run] = []
        self.ends: list[int] = []
        self.end = 0

    def add(self, run: Run) -> None:
        """Hold another run, which goes on where the last one ends."""
        self.runs.append(run)
        self.ends.append(run.high)
        self.end = run.high

    def whole(self) -> list[Run]:
        """The runs, as they have been cut since."""
        found: list[Run] = []
        for place, end in enumerate(self.ends):
            run = self.runs[place]
            found.append(run)
            while run.high < end:
                assert run.rest is not None
                run = run.rest
                found.append(run)
        return found


class ReusePool:
    """The blocks of one replica.

    Attributes:
        num_free: blocks that nobody uses, with content or not.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_free = 0
        self._stored: dict[int, Run] = {}
        self._list = Run(NOTHING, 0, 0, 0, True)  # the free list's two ends in one
        self._list.before = self._list.after = self._list
        self._append_blank(num_blocks)

    # -- looking up ------------------------------------------------------------------------------------------------

    def num_found(self, chain: Chain, most: int) -> int:
        """How many of the first `most` blocks of `chain` are stored, up to the first that is not."""
        begin, stored = 0, self._stored
        while begin < most:
            run = stored.get(chain.key(begin))
            if run is None:
                break
            begin = run.high if run.chain is chain else chain.common(run.chain, run.high)
        return min(begin, most)

    def find(self, chain: Chain, most: int) -> list[Run]:
        """The runs that hold the first blocks of `chain`, at most `most` blocks.

        A run that goes on beyond what was found is cut, which changes nothing that anybody could see.
        """
        found: list[Run] = []
        begin, stored = 0, self._stored
        while begin < most:
            run = stored.get(chain.key(begin))
            if run is None:
                break
            end = run.high if run.chain is chain else chain.common(run.chain, run.high)
            if end > most:
                end = most
            if end < run.high:
                self._cut(run, end)
            found.append(run)
            begin = end
        return found

    def has(self, chain: Chain, block: int) -> bool:
        """Whether a block is stored, when all before it have just been found."""
        return chain.key(block) in self._stored

    def share(self, holding: Holding, runs: Sequence[Run]) -> int:
        """Let the request of an empty `holding` use `runs`, the result of `find`; returns blocks that others use."""
        used = 0
        for run in runs:
            if run.users:
                used += run.high - run.low
            else:
                self._unlist(run)
            run.users += 1
            holding.add(run)
        return used

    def _cut(self, run: Run, at: int) -> None:
        """Cut a run at block `at`. The deeper part is taken first."""
        tail = Run(run.chain, at, run.high, run.users, run.stored)
        tail.rest, run.rest = run.rest, tail
        run.high = at
        if run.stored:
            self._stored[tail.chain.key(at)] = tail
        if not run.users:
            tail.before, tail.after = run.before, run
            run.before.after = run.before = tail

    # -- taking and storing ----------------------------------------------------------------------------------------

    def take(self, count: int) -> None:
        """Take `count` blocks from the front of the free list; what they held is forgotten."""
        self.num_free -= count
        assert self.num_free >= 0, "more blocks taken than there are"
        ends = self._list
        while count:
            run = ends.after
            size = run.high - run.low
            if size > count:
                run.high -= count
                return
            count -= size
            if run.stored:
                del self._stored[run.chain.key(run.low)]
            ends.after, run.after.before = run.after, ends

    def store(self, holding: Holding, end: int) -> None:
        """Make the request's full blocks up to `end` findable, as far as their content is not."""
        self._store(holding, holding.end, end)

    def _store(self, holding: Holding, begin: int, end: int) -> None:
        chain, stored = holding.chain, self._stored
        while begin < end:
            high = chain.num_shared if begin < chain.num_shared < end else end
            key = chain.key(begin)
            other = stored.get(key)
            if other is None:
                stored[key] = run = Run(chain, begin, high, 1, True)
            else:
                same = other.high if other.chain is chain else chain.common(other.chain, other.high)
                run = Run(chain, begin, min(same, high), 1, False)
            holding.add(run)
            begin = run.high

    def release(self, holding: Holding, num_blocks: int, end: int) -> int:
        """A request lets go of its `num_blocks` blocks, of which those up to `end` are to be found.

        Returns:
            How many of them nobody else uses.
        """
        before = self.num_free
        if not all(run.stored for run in holding.runs):
            self._try_again(holding)
        self.store(holding, end)
        self._append_blank(num_blocks - holding.end)
        for run in reversed(holding.whole()):
            run.users -= 1
            if run.users:
                continue
            if run.stored:
                self._append(run)
            else:
                self._append_blank(run.high - run.low)
        return self.num_free - before

    def _try_again(self, holding: Holding) -> None:
        """Store what was stored already when the request tried, and may not be any more."""
        runs = holding.whole()
        holding.runs, holding.ends, holding.end = [], [], 0
        for run in runs:
            if run.stored:
                holding.add(run)
            else:
                self._store(holding, run.low, run.high)

    # -- the free list ---------------------------------------------------------------------------------------------

    def _unlist(self, run: Run) -> None:
        run.before.after, run.after.before = run.after, run.before
        self.num_free -= run.high - run.low

    def _append(self, run: Run) -> None:
        ends = self._list
        self.num_free += run.high - run.low
        run.before, run.after = ends.before, ends
        ends.before.after = ends.before = run

    def _append_blank(self, count: int) -> None:
        last = self._list.before
        if not count:
            return
        if last.stored:  # or the list's end
            self._append(Run(NOTHING, 0, count, 0, False))
        else:
            last.high += count
            self.num_free += count
