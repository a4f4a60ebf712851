"""Replicas behind a router that only counts: they are left alone until a count can have changed.

A count of outstanding requests falls when somebody ends. Each replica has a time before which nobody does: the end of
one that was run ahead, or that until which it was put off (`plimsoll.engine.outlook`).

That a replica may be put off so long is checked when its steps are run, and a simulation in which it turns out to be
wrong is run again with a fleet that puts nothing off (`TooPatientError`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from plimsoll.engine.fleet import Fleet
from plimsoll.engine.outlook import ANYBODY, Outlook
from plimsoll.engine.replica import INFINITE, Replica
from plimsoll.engine.requests import Requests

if TYPE_CHECKING:
    from plimsoll.engine.cluster import Router


class TooPatientError(Exception):
    """A request ended before the time up to which the router had been told that none would."""


class CountingFleet(Fleet):
    """A `Fleet` for routers that look at nothing but `loads`, `load` and `fewer`, in an open loop.

    What is to come of all replicas is one heap: ``(time, replica)`` where somebody ends, ``(time, ~replica)`` where a
    replica has to be turned to.

    Args:
        replicas, requests: as of a `Fleet`; all of them `can_be_counted`.
        until_s: no step begins then or later.
    """

    def __init__(self, replicas: Sequence[Replica], requests: Requests, until_s: float) -> None:
        super().__init__(replicas, requests)
        self._outlooks = [Outlook(replica, until_s) for replica in replicas]
        self._events: list[tuple[float, int]] = [(math.inf, len(replicas))]
        self._least = [ANYBODY] * len(replicas)

    def serve(self, router: Router, sent: Iterable[int], times: Iterable[float]) -> None:
        """Route arrivals, in order of time."""
        loads, least, output = self._loads, self._least, self._requests.output
        queues = [(replica.sent.append, replica.sent_s.append) for replica in self.replicas]
        choose, pick, events = router.choose, getattr(router, "pick", None), self._events
        for request, now_s in zip(sent, times, strict=True):
            if pick is None:
                self.now_s = now_s
                number = choose(self, request, now_s)
            else:
                if events[0][0] <= now_s:
                    self.now_s = now_s
                    self.loads()
                number = pick(loads)
            send, send_s = queues[number]
            send(request)
            send_s(now_s)
            loads[number] += 1
            if output[request] < least[number]:
                self._hurry(number, self._outlooks[number].sent(now_s, output[request]))

    def loads(self) -> list[int]:
        """For each replica the requests sent to it and not answered by `now_s`; not to be changed."""
        now_s, events, loads, due_s = self.now_s, self._events, self._loads, self._due_s
        while (time_s := events[0][0]) <= now_s:
            number = events[0][1]
            if number >= 0:
                heappop(events)
                loads[number] -= 1
                continue
            number = ~number
            if due_s[number] != time_s:  # it has been turned to meanwhile
                heappop(events)
                continue
            ended = self._turn(number)
            if ended:
                for end_s in ended:
                    if end_s <= now_s:
                        loads[number] -= 1
                    else:
                        heappush(events, (end_s, number))
                ended.clear()
            heapreplace(events, (due_s[number], ~number))
        return loads

    def load(self, number: int) -> int:
        """The same of one replica."""
        return self.loads()[number]

    def fewer(self, first: int, second: int) -> int:
        """Which of two replicas has fewer requests; at a tie the first."""
        loads = self.loads()
        return second if loads[second] < loads[first] else first

    def finish(self, until_s: float) -> None:
        """Run everything that begins before `until_s`: nobody will look any more."""
        self.now_s = self._last_sent_s()
        for number, outlook in enumerate(self._outlooks):
            outlook.ended.clear()
            self._turn(number)  # whoever has ended since it was put off would have been counted
            replica = outlook.replica
            replica.ended = None
            if replica.next_arrival_s == INFINITE and len(replica.sent) > replica.num_arrived:
                replica.next_arrival_s = replica.sent_s[replica.num_arrived]
            for request in replica.sent:
                self._requests.replica[request] = number
            replica.advance(until_s)

    def _hurry(self, number: int, bound_s: float) -> None:
        """Somebody was sent here who may end at `bound_s`."""
        if bound_s < self._due_s[number]:
            self._due_s[number] = bound_s
            heappush(self._events, (bound_s, ~number))

    def _turn(self, number: int) -> deque[float]:
        """Turn to a replica whose next end is due; returns who has ended since it was put off, and will."""
        outlook, now_s, due_s = self._outlooks[number], self.now_s, self._due_s
        outlook.turn(now_s)
        ended, bound_s = outlook.ended, outlook.bound_s
        if ended and ended[0] < due_s[number] and ended[0] <= self._last_sent_s():
            raise TooPatientError
        self._least[number] = outlook.least
        due_s[number] = bound_s if bound_s > now_s else math.nextafter(now_s, INFINITE)
        return ended

    def _last_sent_s(self) -> float:
        """When a request was sent last, to any replica."""
        return max((replica.sent_s[-1] for replica in self.replicas if replica.sent), default=-math.inf)


class PairFleet(CountingFleet):
    """One for routers that look at few replicas at a time: each is turned to when it is looked at."""

    def __init__(self, replicas: Sequence[Replica], requests: Requests, until_s: float) -> None:
        super().__init__(replicas, requests, until_s)
        self._next_s = [math.inf] * len(replicas)  # what is to come of each: an end, or that it is due

    def loads(self) -> list[int]:
        """For each replica the requests sent to it and not answered by `now_s`; not to be changed."""
        return [self.load(number) for number in range(len(self.replicas))]

    def load(self, number: int) -> int:
        """The same of one replica; the others are left alone."""
        if self._next_s[number] <= self.now_s:
            self._catch_up(number)
        return self._loads[number]

    def fewer(self, first: int, second: int) -> int:
        """Which of two replicas has fewer requests; at a tie the first. The others are left alone."""
        next_s, now_s, loads = self._next_s, self.now_s, self._loads
        if next_s[first] <= now_s:
            self._catch_up(first)
        if next_s[second] <= now_s:
            self._catch_up(second)
        return second if loads[second] < loads[first] else first

    def _hurry(self, number: int, bound_s: float) -> None:
        if bound_s < self._due_s[number]:
            self._due_s[number] = bound_s
            self._next_s[number] = min(self._next_s[number], bound_s)

    def _catch_up(self, number: int) -> None:
        """Count who has ended at one replica."""
        now_s, due_s, ended = self.now_s, self._due_s, self._outlooks[number].ended
        while True:
            while ended and ended[0] <= now_s:
                ended.popleft()
                self._loads[number] -= 1
            if due_s[number] > now_s:
                break
            self._turn(number)
        self._next_s[number] = ended[0] if ended and ended[0] < due_s[number] else due_s[number]
