"""Replicas behind a router that only counts: they are left alone until a count can have changed.

A count of outstanding requests falls when somebody ends. Each replica has a time before which nobody does: the end of
one that was run ahead, or that until which it was put off (`plimsoll.engine.fleets.outlook`).

That a replica may be put off so long is checked when its steps are run, and a simulation in which it turns out to be
wrong is run again with a fleet that puts nothing off (`TooPatientError`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plimsoll.engine.fleets.fleet import Fleet
from plimsoll.engine.fleets.late_outlook import outlook_of
from plimsoll.engine.fleets.outlook import ANYBODY, Outlook
from plimsoll.engine.fleets.smallest import least_of, place_of, soonest
from plimsoll.engine.replicas.replica import INFINITE, Replica
from plimsoll.engine.requests import Requests

if TYPE_CHECKING:
    from plimsoll.engine.cluster import Router


class TooPatientError(Exception):
    """A request ended before the time up to which the router had been told that none would."""


class CountingFleet(Fleet):
    """A `Fleet` for routers that look at nothing but `loads`, `load` and `fewer`, in an open loop.

    Args:
        replicas, requests: as of a `Fleet`; all of them `can_be_counted`.
        until_s: no step begins then or later.
    """

    def __init__(self, replicas: Sequence[Replica], requests: Requests, until_s: float) -> None:
        super().__init__(replicas, requests)
        self._outlooks = [outlook_of(replica, until_s) for replica in replicas]
        self._next_s = [math.inf] * len(replicas)  # what is to come of each: an end, or that it is due
        self._least = [ANYBODY] * len(replicas)
        self._parts = self._next_s, self._due_s, self._loads, self._least, self._outlooks

    def serve(self, router: Router, sent: list[int], times: list[float]) -> None:
        """Route arrivals, in order of time."""
        loads, least, output, next_s = self._loads, self._least, self._requests.output, self._next_s
        replicas, outlooks = self.replicas, self._outlooks
        choose, pick = router.choose, getattr(router, "pick", None)
        is_least = pick is least_of  # a call of it would cost as much as what it does
        soon_s = math.inf
        for at, request in enumerate(sent):
            now_s = times[at]
            if pick is None:
                self.now_s = now_s
                number = choose(self, request, now_s)
            else:
                if soon_s <= now_s:
                    soon_s = self._catch_up_all(now_s)
                number = least_of(loads) if is_least else pick(loads)
            replica = replicas[number]
            replica.sent.append(request)
            replica.sent_s.append(now_s)
            loads[number] += 1
            tokens = output[request]
            if tokens < least[number]:
                self._hurry(number, outlooks[number].sent(now_s, tokens))
                if next_s[number] < soon_s:
                    soon_s = next_s[number]

    def loads(self) -> list[int]:
        """For each replica the requests sent to it and not answered by `now_s`; not to be changed."""
        self._catch_up_all(self.now_s)
        return self._loads

    def load(self, number: int) -> int:
        """The same of one replica; the others are left alone."""
        if self._next_s[number] <= self.now_s:
            self._catch_up(number, self.now_s)
        return self._loads[number]

    def fewer(self, first: int, second: int) -> int:
        """Which of two replicas has fewer requests; at a tie the first. The others are left alone."""
        next_s, now_s, loads = self._next_s, self.now_s, self._loads
        if next_s[first] <= now_s:
            self._catch_up(first, now_s)
        if next_s[second] <= now_s:
            self._catch_up(second, now_s)
        return second if loads[second] < loads[first] else first

    def finish(self, until_s: float) -> None:
        """Run everything that begins before `until_s`: nobody will look any more."""
        self.now_s = self._last_sent_s()
        placed = np.frombuffer(self._requests.replica, dtype=np.int64)
        for number, outlook in enumerate(self._outlooks):
            outlook.ended.clear()
            self._turn(outlook, number, self.now_s)  # whoever has ended since it was put off would have been counted
            replica = outlook.replica
            replica.lane.ended = None
            if replica.next_arrival_s == INFINITE and len(replica.sent) > replica.num_arrived:
                replica.next_arrival_s = replica.sent_s[replica.num_arrived]
            placed[replica.sent] = number
            replica.advance(until_s)

    def _hurry(self, number: int, bound_s: float) -> None:
        """Somebody was sent here who may end at `bound_s`."""
        if bound_s < self._due_s[number]:
            self._due_s[number] = bound_s
            if bound_s < self._next_s[number]:
                self._next_s[number] = bound_s

    def _catch_up_all(self, now_s: float) -> float:
        """Count who has ended; returns until when nobody does."""
        next_s, due_s, loads, least, outlooks = self._parts
        while (time_s := soonest(next_s)) <= now_s:
            number = place_of(next_s, time_s)
            outlook = outlooks[number]
            ended = outlook.ended
            if ended:
                ended.popleft()
                loads[number] -= 1
                next_s[number] = ended[0] if ended else due_s[number]  # later than they nobody is due
                continue
            outlook.turn(now_s)  # what `_turn` says, without the call
            bound_s = outlook.bound_s
            if bound_s <= now_s:
                bound_s = math.nextafter(now_s, INFINITE)
            if ended:
                if ended[0] < time_s and ended[0] <= self._last_sent_s():
                    raise TooPatientError
                next_s[number] = ended[0]
            else:
                next_s[number] = bound_s
            due_s[number] = bound_s
            least[number] = outlook.least
        return time_s

    def _catch_up(self, number: int, now_s: float) -> None:
        """Count who has ended at one replica."""
        outlook, next_s = self._outlooks[number], self._next_s
        ended = outlook.ended
        while next_s[number] <= now_s:
            if ended:
                ended.popleft()
                self._loads[number] -= 1
            else:
                self._turn(outlook, number, now_s)
            next_s[number] = ended[0] if ended else self._due_s[number]

    def _turn(self, outlook: Outlook, number: int, now_s: float) -> None:
        """Turn to a replica whose next end is due."""
        outlook.turn(now_s)
        ended, bound_s, due_s = outlook.ended, outlook.bound_s, self._due_s
        if ended and ended[0] < due_s[number] and ended[0] <= self._last_sent_s():
            raise TooPatientError
        self._least[number] = outlook.least
        due_s[number] = bound_s if bound_s > now_s else math.nextafter(now_s, INFINITE)

    def _last_sent_s(self) -> float:
        """When a request was sent last, to any replica."""
        return max((replica.sent_s[-1] for replica in self.replicas if replica.sent), default=-math.inf)
