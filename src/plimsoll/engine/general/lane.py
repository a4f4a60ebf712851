"""Parts of the general kernel: a decode set that never takes pages, and a queue sorted by a policy's key."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from mypy_extensions import mypyc_attr

from plimsoll.core.step import AttentionLayers
from plimsoll.engine.replicas.lane import NOT_DUE, REQUEST_OF_KEY, Lane
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
        requests, step = self.requests, len(self.ends)
        finish = step + remaining
        requests.slice_begin[request] = step - 1
        requests.lane[request] = self.number
        requests.finish_key[request] = key = (finish - 1) << KEY_BITS | request
        self.num += 1
        self.read += self.full_weight * (done + 1)
        self.grow += self.full_weight
        if self.windows:
            self._start_windows(request, done, key)
        if self.stale and key in self.stale:
            self.stale.remove(key)  # stopped and back in the same step: its old entries hold again
        else:
            heappush(self.finish, key)
        if finish < self.due:
            self.due = finish
        room = self.reserved[request] * self.block_size - done
        if room < remaining:
            heappush(self.outgrow, (step + room) << KEY_BITS | request)

    def stop(self, request: int, done: int) -> None:
        """As in `Lane`."""
        super().stop(request, done)
        self.hist[(done - len(self.ends)) % self.block_size] = 0

    def blocks_for(self, begin: int, steps: int) -> int:
        """None."""
        del begin, steps
        return 0

    def take_finished(self) -> tuple[list[int], int]:
        """As in `Lane`, with the blocks that were reserved."""
        heap, requests, reserved, step = self.finish, self.requests, self.reserved, len(self.ends)
        final, last_step, stale = requests.final, requests.last_step, self.stale
        limit = step << KEY_BITS
        taken = []
        blocks = tokens = 0
        while heap[0] < limit:
            key = heappop(heap)
            if stale and key in stale:
                stale.remove(key)
                continue
            request = key & REQUEST_OF_KEY
            taken.append(request)
            last_step[request] = step - 1
            tokens += final[request] + 1
            blocks += reserved.pop(request)
            if self.windows:
                self._stop_windows(request, final[request])
        num, weight = len(taken), self.full_weight
        self.num -= num
        self.read -= weight * tokens
        self.grow -= weight * num
        self.due = (heap[0] >> KEY_BITS) + 1
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


@mypyc_attr(native_class=False)  # as what it is derived from
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

    def appendleft(self, request: int) -> None:
        """Put `request` where its key belongs."""
        self.append(request)

    def extend(self, requests: Iterable[int]) -> None:
        """Put several where they belong."""
        for request in requests:
            self.append(request)

    def remove(self, request: int) -> None:
        """Take `request` out."""
        place = bisect_left(self.items, (self.key(request), request))
        del self.items[place], self[place]


@mypyc_attr(native_class=False)
class NumberQueue(list[int]):
    """The same for keys that are whole numbers, several times faster: one number stands for key and request."""

    def __init__(self, key: Callable[[int], int]) -> None:
        super().__init__()
        self.key = key
        self.items: list[int] = []

    def append(self, request: int) -> None:
        """Put `request` where its key belongs."""
        item = self.key(request) << KEY_BITS | request
        place = bisect_left(self.items, item)
        self.items.insert(place, item)
        self.insert(place, request)

    def appendleft(self, request: int) -> None:
        """Put `request` where its key belongs."""
        self.append(request)

    def extend(self, requests: Iterable[int]) -> None:
        """Put several where they belong."""
        for request in requests:
            self.append(request)

    def first_from(self, key: int, low: int) -> int:
        """The place of the first request, from place `low` on, whose key is `key` or comes after it."""
        return bisect_left(self.items, key << KEY_BITS, low)

    def remove(self, request: int) -> None:
        """Take `request` out."""
        place = bisect_left(self.items, self.key(request) << KEY_BITS | request)
        del self.items[place], self[place]
