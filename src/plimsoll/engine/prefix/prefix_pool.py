"""KV blocks with content: vLLM's prefix cache and free-block order (``vllm/v1/core/block_pool.py``), in runs of blocks.

vLLM keeps a free list of single blocks. Blocks are taken from its front, and a block that is taken loses its content;
what a request lets go of is appended tail block first, blocks without content to the front. So the list is always

    front [ blocks without content | least recently freed … most recently freed ] back

and blocks without content are a mere count. With content, the blocks that one request filled one after another stay
together: a `Run` is a stretch of a chain of blocks that are used alike and lie beside each other in the list, deepest
block first. A look-up, a hit, a release cost something for each run, not for each block: a prompt of 12,000 tokens is a
handful of runs.

    chain of request 7      | 0 1 2 3 4 5 | 6 7 8 | 9 10 |        block numbers within the request
    runs                      shared        copy    own

A stretch that several requests computed for themselves has several copies, the oldest first; runs of equal content are
cut at equal places. While a block is cached, all blocks before it are, because they are freed no earlier and after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.engine.prefix.contents import Chain


class Run:
    """Blocks `low` to `high` - 1 of a chain, in one copy.

    Attributes:
        chain: whose content it is.
        users: requests that hold it; without any it is on the free list.
        newer: the next copy of the same content.
        rest: what was cut off behind it; those that held the whole hold that as well.
        before, after: neighbours on the free list.
    """

    __slots__ = ("after", "before", "chain", "high", "low", "newer", "rest", "users")

    after: Run
    before: Run

    def __init__(self, chain: Chain, low: int, high: int, users: int) -> None:
        self.chain = chain
        self.low = low
        self.high = high
        self.users = users
        self.newer: Run | None = None
        self.rest: Run | None = None


class Holding:
    """The blocks with content that one request holds, in order: runs, and where each ended when it was taken."""

    __slots__ = ("chain", "ends", "num_filled", "runs")

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.runs: list[Run] = []
        self.ends: list[int] = []
        self.num_filled = 0


class PrefixPool:
    """The block pool of one replica.

    Attributes:
        num_free: blocks that nobody uses, with content or not.
        num_empty: those without content.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_free = self.num_empty = num_blocks
        self._oldest: dict[int, Run] = {}
        self._list = Run(Chain([], 0, 1, 0), 0, 0, 0)  # the free list's two ends in one
        self._list.before = self._list.after = self._list

    # -- looking up ------------------------------------------------------------------------------------------------

    def find(self, chain: Chain, most: int) -> list[Run]:
        """The runs that hold the first blocks of `chain`, at most `most` blocks, each the oldest of its copies.

        A run that goes on beyond what was found is cut, which changes nothing that anybody could see.
        """
        found: list[Run] = []
        begin, oldest = 0, self._oldest
        while begin < most:
            run = oldest.get(chain.key(begin))
            if run is None:
                break
            end = run.high
            if run.chain is not chain:
                end = chain.common(run.chain, end)
            if end > most:
                end = most
            if end < run.high or run.newer is not None:
                self._cut(run, end)
            found.append(run)
            begin = end
        return found

    def share(self, holding: Holding, runs: Sequence[Run]) -> None:
        """Let the request of an empty `holding` use `runs`, the result of `find`."""
        for run in runs:
            if not run.users:
                run.before.after, run.after.before = run.after, run.before
                self.num_free -= run.high - run.low
            run.users += 1
            holding.runs.append(run)
            holding.ends.append(run.high)
            holding.num_filled = run.high

    def _cut(self, run: Run, at: int) -> None:
        """Cut all copies of the content of `run` at block `at`."""
        copy: Run | None = run
        last: Run | None = None
        while copy is not None:
            if copy.high > at:
                tail = Run(copy.chain, at, copy.high, copy.users)
                tail.rest, copy.rest = copy.rest, tail
                copy.high = at
                if not copy.users:  # the deeper part is taken first
                    tail.before, tail.after = copy.before, copy
                    copy.before.after = copy.before = tail
                if last is None:
                    self._oldest[tail.chain.key(at)] = tail
                else:
                    last.newer = tail
                last = tail
            copy = copy.newer

    # -- taking and filling ----------------------------------------------------------------------------------------

    def take(self, count: int) -> None:
        """Take `count` blocks from the front of the free list; what they held is forgotten."""
        self.num_free -= count
        assert self.num_free >= 0, "more blocks taken than there are"
        if count <= self.num_empty:
            self.num_empty -= count
            return
        count -= self.num_empty
        self.num_empty = 0
        ends = self._list
        while count:
            run = ends.after
            size = run.high - run.low
            if size > count:
                run.high -= count
                return
            count -= size
            self._forget(run)
            ends.after, run.after.before = run.after, ends

    def _forget(self, run: Run) -> None:
        key = run.chain.key(run.low)
        copy = self._oldest[key]
        if copy is run:
            if run.newer is None:
                del self._oldest[key]
            else:
                self._oldest[key] = run.newer
            return
        while copy.newer is not run:
            assert copy.newer is not None
            copy = copy.newer
        copy.newer = run.newer

    def fill(self, holding: Holding, end: int) -> None:
        """Say that the request's blocks up to `end` are full, and so findable."""
        begin = holding.num_filled
        if begin >= end:
            return
        chain = holding.chain
        while begin < end:
            high = chain.num_shared if begin < chain.num_shared < end else end
            key = chain.key(begin)
            run = self._oldest.get(key)
            if run is not None:
                high = self._add_copy(holding, run, begin, high)
            elif not self._lengthen(holding, begin, high):
                run = self._oldest[key] = Run(chain, begin, high, 1)
                holding.runs.append(run)
                holding.ends.append(high)
            begin = high
        holding.num_filled = end

    def _lengthen(self, holding: Holding, begin: int, end: int) -> bool:
        """Append to the request's last run, if that is its own, has no copies, and nobody else holds it."""
        chain = holding.chain
        if not holding.runs or begin == chain.num_shared:
            return False
        run = holding.runs[-1]
        while run.high < begin:
            assert run.rest is not None
            run = run.rest
        if run.chain is not chain or run.users > 1 or run.newer is not None:
            return False
        if self._oldest[chain.key(run.low)] is not run:
            return False
        run.high = holding.ends[-1] = end
        return True

    def _add_copy(self, holding: Holding, oldest: Run, begin: int, end: int) -> int:
        """The request has computed what others hold already; returns up to where, at most `end`."""
        last = longest = oldest
        while last.newer is not None:
            last = last.newer
            if last.high > longest.high:
                longest = last
        end = min(end, longest.high)
        if longest.chain is not holding.chain:
            end = holding.chain.common(longest.chain, end)
        if end < longest.high:
            self._cut(oldest, end)
        last.newer = run = Run(holding.chain, begin, end, 1)
        holding.runs.append(run)
        holding.ends.append(end)
        return end

    def release(self, holding: Holding, num_blocks: int) -> None:
        """A request lets go of its `num_blocks` blocks; those beyond the filled ones have no content."""
        num_empty = num_blocks - holding.num_filled
        self.num_empty += num_empty
        self.num_free += num_empty
        ends = self._list
        for run in reversed(_as_cut(holding)):
            run.users -= 1
            if not run.users:
                self.num_free += run.high - run.low
                run.before, run.after = ends.before, ends
                ends.before.after = ends.before = run


def _as_cut(holding: Holding) -> list[Run]:
    """The runs of a holding, in order, as they have been cut since."""
    runs: list[Run] = []
    for place, end in enumerate(holding.ends):
        run = holding.runs[place]
        runs.append(run)
        while run.high < end:
            assert run.rest is not None
            run = run.rest
            runs.append(run)
    return runs
