"""Parts of the general kernel: a decode set that never takes pages, and a queue sorted by a policy's key."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from plimsoll.core.step import AttentionLayers
from plimsoll.engine.lane import NOT_DUE, REQUEST_OF_KEY, Lane
from plimsoll.engine.requests import KEY_BITS, Requests


class FixedLane(Lane):
    """Decodes that live in reservations: nobody takes a block, but somebody may fill what was reserved.

    Attributes:
        reserved: blocks reserved, by running request.
        outgrow: a heap of ``step << KEY_BITS | request``, over a sentinel: before that step the reservation is full.
            Entries of requests that have left or reserved anew are skipped when they come up.
    """

    __slots__ = ("outgrow", "reserved")

    def __init__(self, requests: Requests, number: int, block_size: int, layers: AttentionLayers) -> None:
        super().__init__(requests, number, block_size, layers)
        self.reserved: dict[int, int] = {}
        self.outgrow = [NOT_DUE << KEY_BITS]

    def start(self, request: int, done: int, remaining: int) -> None:
        """As in `Lane`, with the step noted in which the reservation is full, if that comes before the finish."""
        super().start(request, done, remaining)
        step = len(self.ends)
        self.hist[(done - step) % self.block_size] -= 1
        room = self.reserved[request] * self.block_size
        if room < self.requests.final[request]:
            heappush(self.outgrow, (step + room - done) << KEY_BITS | request)

    def stop(self, request: int, done: int) -> None:
        """As in `Lane`."""
        super().stop(request, done)
        self.hist[(done - len(self.ends)) % self.block_size] += 1

    def take_finished(self) -> tuple[list[int], int]:
        """As in `Lane`, with the blocks that were reserved."""
        taken, _ = super().take_finished()
        blocks = 0
        for request in taken:
            blocks += self.reserved.pop(request)
            self.hist[(self.requests.final[request] - len(self.ends)) % self.block_size] += 1
        return taken, blocks

    def take_outgrown(self) -> list[int]:
        """Who has filled a reservation by now, ascending; entries that say nothing any more are dropped."""
        heap, step = self.outgrow, len(self.ends)
        limit = (step + 1) << KEY_BITS
        found = []
        while heap[0] < limit:
            request = heappop(heap) & REQUEST_OF_KEY
            if request in self.reserved and self._cached(request) == self.reserved[request] * self.block_size:
                found.append(request)
        return sorted(set(found))

    def _cached(self, request: int) -> int:
        return self.requests.final[request] - self.remaining(request)


class SortedQueue(list[int]):
    """A queue of requests in the order of a key, ties by request number. Has what a deque has, as far as used."""

    def __init__(self, key: Callable[[int], Any]) -> None:
        super().__init__()
        self.key = key
        self.items: list[tuple[Any, int]] = []

    def append(self, request: int) -> None:
        """Put `request` where its key belongs."""
        item = (self.key(request), request)
        place = bisect_left(self.items, item)
        self.items.insert(place, item)
        self.insert(place, request)

    appendleft = append

    def extend(self, requests: Iterable[int]) -> None:
        """Put several where they belong."""
        for request in requests:
            self.append(request)

    def first_from(self, key: Any, low: int) -> int:
        """The place of the first request, from place `low` on, whose key is `key` or comes after it."""
        return bisect_left(self.items, (key,), low)

    def remove(self, request: int) -> None:
        """Take `request` out."""
        place = bisect_left(self.items, (self.key(request), request))
        del self.items[place], self[place]
