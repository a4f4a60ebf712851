"""Who gets memory by gain per KV token, without ranking everybody: the decision of `plimsoll.engine.policies.andes`.

A request gains ``min(max(waits_s, 0), interval_s) / tokens``: what its user would wait until the next decision, for
each token of KV. Whoever is so late as to wait all that time gains ``interval_s / tokens``. So those are ranked by
their tokens alone, and who does not run keeps its place from decision to decision:

    late, does not run      a sorted list that is kept
    late, runs              sorted anew, since they grow
    not so late             few: each is looked at for itself

Memory is handed out from the front, to whoever fits. Of the late, nobody behind the first one who does not fit is
smaller, and so nobody fits. From "everybody who runs stays" that border is a few places away, and no others are looked
at. Behind it only those who are not so late may fit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from heapq import heapify, heappop, merge
from itertools import chain

from plimsoll.engine.requests import KEY_BITS

OUTSIDE = 1 << KEY_BITS
BEHIND = OUTSIDE << 1
REQUEST = OUTSIDE - 1
TOKENS_BITS = KEY_BITS + 2
"""A place in the ranking: tokens, a bit for who comes behind the late ones with as many, one for who does not run, and
the request. The smallest comes first; among equals those who run, since moving them would gain nothing."""

Early = tuple[float, int, int]
"""Of one who is not so late: less its gain, its number (with `OUTSIDE`, if it does not run), its tokens."""


class Ranking:
    """Those who could run and do not, and how memory is shared among them and those who run.

    Args:
        interval_s: between decisions.
        block_size: tokens of a block.
    """

    def __init__(self, interval_s: float, block_size: int) -> None:
        self.interval_s, self.size = interval_s, block_size
        self._tokens: dict[int, int] = {}
        self._late: list[int] = []
        self._fresh: dict[int, float] = {}

    def clear(self) -> None:
        """Forget everybody."""
        self._tokens.clear()
        self._late.clear()
        self._fresh.clear()

    def add(self, request: int, tokens: int, busy_s: float, horizon_s: float) -> None:
        """Somebody who does not run: the KV tokens it needs, until when its user is busy reading; the next decision."""
        self._tokens[request] = tokens
        if horizon_s - busy_s >= self.interval_s:
            insort(self._late, tokens << TOKENS_BITS | OUTSIDE | request)
        else:
            self._fresh[request] = busy_s

    def drop(self, request: int) -> None:
        """Somebody who is about to run, if known."""
        tokens = self._tokens.pop(request, None)
        if tokens is not None and (not self._fresh or self._fresh.pop(request, None) is None):
            del self._late[bisect_left(self._late, tokens << TOKENS_BITS | OUTSIDE | request)]

    def share(
        self, stay: list[int], early: list[Early], free: int, seats: int, horizon_s: float
    ) -> tuple[list[int], list[int]]:
        """Who must give way, and who may run instead, both in any order.

        Args:
            stay: who runs, is late and could be made to give way: places, below 0; used up.
            early: the same of those who are not so late.
            free: blocks that are left if all of them stay; below 0 if not all can.
            seats: likewise.
            horizon_s: the next decision.
        """
        if self._fresh:
            early += self._still_fresh(horizon_s)
        others: Iterable[int] = self._late
        between: dict[int, Early] = {}
        if early:
            early.sort()
            between = {self._place(one, rank): one for rank, one in enumerate(early) if one[0] < 0}
            stay += [-place for place, one in between.items() if one[1] < OUTSIDE]
            extra = sorted(place for place, one in between.items() if one[1] >= OUTSIDE)
            if extra:
                others = merge(others, extra)
            for minus_gain, number, tokens in early:
                if minus_gain >= 0 and number < OUTSIDE:
                    free += tokens // self.size + 1
                    seats += 1
        heapify(stay)
        gone, taken, free, seats = self._border(stay, others, between, free, seats)
        if early:
            still = [-place for place in stay] + taken if between else []
            settled = {between[place][1] for place in still if place in between}
            gone = [place for place in gone if place not in between]
            taken = [place for place in taken if place not in between]
            for _, number, tokens in early:
                fits = number in settled
                if not fits and seats > 0 and tokens // self.size + 1 <= free:
                    free -= tokens // self.size + 1
                    seats -= 1
                    fits = True
                if fits != (number < OUTSIDE):
                    (taken if fits else gone).append(number)
        return [place & REQUEST for place in gone], [place & REQUEST for place in taken]

    def _border(
        self, stay: list[int], others: Iterable[int], between: dict[int, Early], free: int, seats: int
    ) -> tuple[list[int], list[int], int, int]:
        """Whose places lie behind the first who does not fit, of `stay`, and before, of `others`; and what is left.

        `stay` is a heap of places below 0, so that the last of them comes first.
        """
        size = self.size
        gone: list[int] = []
        taken: list[int] = []
        for place in chain((-1,), others):
            if gone and place > gone[-1]:
                break  # behind somebody who did not fit
            if place >= 0:
                blocks = (between[place][2] if place in between else place >> TOKENS_BITS) // size + 1
                free -= blocks
                seats -= 1
            while (free < 0 or seats < 0) and stay and -stay[0] > place:
                last = -heappop(stay)
                free += (between[last][2] if last in between else last >> TOKENS_BITS) // size + 1
                seats += 1
                gone.append(last)
            if place >= 0:
                if free < 0 or seats < 0:
                    return gone, taken, free + blocks, seats + 1
                taken.append(place)
        return gone, taken, free, seats

    def _still_fresh(self, horizon_s: float) -> list[Early]:
        """Who does not run and is not so late; whoever has become late gets a place."""
        early = []
        for request, busy_s in list(self._fresh.items()):
            tokens, waits_s = self._tokens[request], horizon_s - busy_s
            if waits_s >= self.interval_s:
                del self._fresh[request]
                insort(self._late, tokens << TOKENS_BITS | OUTSIDE | request)
            else:
                early.append((less_gain(waits_s, tokens), OUTSIDE | request, tokens))
        return early

    def _place(self, one: Early, rank: int) -> int:
        """Where one with some gain comes among the late ones."""
        interval_s, gain = self.interval_s, -one[0]
        tokens = int(interval_s / gain)
        while interval_s / (tokens + 1) >= gain:
            tokens += 1
        while interval_s / tokens < gain:
            tokens -= 1
        return tokens << TOKENS_BITS | (one[1] if interval_s / tokens == gain else BEHIND | rank)


def less_gain(waits_s: float, tokens: int) -> float:
    """To sort by: no gain is 0; who has no target, not even an infinite one, comes last."""
    if waits_s > 0:
        return -(waits_s / tokens)
    return 0.0 if waits_s <= 0 else 1.0
