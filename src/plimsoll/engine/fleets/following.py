"""The fleet of replicas behind a router that counts tokens still to come (`plimsoll.engine.fleets.course`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plimsoll.engine.fleets.course import Course
from plimsoll.engine.fleets.fleet import Fleet, expected_tokens
from plimsoll.engine.fleets.late_course import LateCourse, can_be_followed_late
from plimsoll.engine.fleets.outlook import serves_in_turn
from plimsoll.engine.fleets.smallest import place_of, soonest
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.replica import INFINITE, Replica
from plimsoll.engine.requests import Requests

if TYPE_CHECKING:
    from plimsoll.engine.cluster import Router


class FollowingFleet(Fleet):
    """A `Fleet` for routers that ask for nothing but `least_pending` and `pending_tokens`, in an open loop.

    Args:
        replicas, requests: as of a `Fleet`; all of them `can_be_followed`.
        known: for each request the tokens that are expected in the cache when it ends; no fewer than there will be.
        until_s: no step begins then or later.
    """

    def __init__(self, replicas: Sequence[Replica], requests: Requests, known: list[int], until_s: float) -> None:
        super().__init__(replicas, requests)
        self._tokens = known
        more: list[int] | None = None
        if known is not requests.final:
            more = [expected - final for expected, final in zip(known, requests.final, strict=True)]
        self._courses: list[Course] = [
            LateCourse(replica, until_s)
            if isinstance(replica, LateReplica)
            else Course(replica, more if more and any(more) else None, until_s)
            for replica in replicas
        ]
        self._valid_s = [INFINITE] * len(replicas)  # as of their courses, and so are these: what is left at least,
        self._fewest = [0.0] * len(replicas)
        self._fewer_per_s = [0.0] * len(replicas)  # how much fewer from second to second,
        self._num_falling = 0  # of how many replicas it does,
        self._until_s = [INFINITE] * len(replicas)  # and how long that is true

    def serve(self, router: Router, sent: list[int], times: list[float]) -> None:
        """Route arrivals, in order of time."""
        choose, known, takes_least = router.choose, self._tokens, getattr(router, "takes_least_pending", False)
        valid_s, until_s, fewest, sent_tokens = self._valid_s, self._until_s, self._fewest, self._sent_tokens
        replicas, courses = self.replicas, self._courses
        for at, request in enumerate(sent):
            self.now_s = now_s = times[at]
            number = self.least_pending() if takes_least else choose(self, request, now_s)
            replica = replicas[number]
            replica.sent.append(request)
            replica.sent_s.append(now_s)
            tokens = known[request]
            sent_tokens[number] += tokens
            fewest[number] += tokens
            course = courses[number]
            seen_s = course.ran_s  # whoever is sent here is seen after the step under way
            if seen_s < now_s:
                seen_s = now_s
            if seen_s < valid_s[number]:
                valid_s[number] = course.valid_s = seen_s
                if seen_s < until_s[number]:
                    until_s[number] = seen_s

    def pending_tokens(self) -> list[int]:
        """For each replica the tokens still to come, as `Fleet.pending_tokens` counts them."""
        self._follow()
        return [self._pending(number) for number in range(len(self.replicas))]

    def least_pending(self) -> int:
        """The replica with the fewest of them; of several the first."""
        now_s = self.now_s
        if soonest(self._until_s) < now_s:
            self._follow()
        lows = self._fewest
        if not self._num_falling:
            return place_of(lows, soonest(lows))
        per_s = self._fewer_per_s
        chosen, lowest = 0, lows[0] - per_s[0] * now_s
        for number in range(1, len(lows)):
            low = lows[number] - per_s[number] * now_s
            if low < lowest:
                chosen, lowest = number, low
        if not per_s[chosen]:
            return chosen
        first, least = chosen, self._pending(chosen)
        for number in range(len(lows)):
            low = lows[number] - per_s[number] * now_s
            if low <= least and number != first:
                tokens = self._pending(number)
                if tokens < least or (tokens == least and number < chosen):
                    chosen, least = number, tokens
        return chosen

    def finish(self, until_s: float) -> None:
        """Run everything that begins before `until_s`: nobody will look any more."""
        placed = np.frombuffer(self._requests.replica, dtype=np.int64)
        for number, replica in enumerate(self.replicas):
            placed[replica.sent] = number
            if replica.next_arrival_s == INFINITE and len(replica.sent) > replica.num_arrived:
                replica.next_arrival_s = replica.sent_s[replica.num_arrived]
            replica.advance(until_s)

    def _follow(self) -> None:
        """Look again at every replica of which what was said is over."""
        now_s, valid_s, courses = self.now_s, self._valid_s, self._courses
        sent, fewest, per_s, until_s = self._sent_tokens, self._fewest, self._fewer_per_s, self._until_s
        for number, time_s in enumerate(until_s):
            if time_s < now_s:
                course = courses[number]
                if valid_s[number] < now_s:
                    course.turn(now_s)
                    valid_s[number] = course.valid_s
                course.look(now_s)
                fewest[number] = sent[number] - course.most
                if per_s[number] != course.most_per_s:
                    self._num_falling += (course.most_per_s > 0) - (per_s[number] > 0)
                    per_s[number] = course.most_per_s
                until_s[number] = course.most_until_s

    def _pending(self, number: int) -> int:
        """What one replica has left now."""
        course = self._courses[number]
        progress = course.progress(self.now_s)
        if progress is None:
            self._valid_s[number] = self._until_s[number] = -math.inf
            self._follow()
            progress = course.progress(self.now_s)
            assert progress is not None
        return self._sent_tokens[number] - progress


def followed(replicas: Sequence[Replica], requests: Requests) -> list[int] | None:
    """The expected tokens of all requests, if replicas like these may be followed; else None.

    Sums are kept, so nobody may outlive what was expected of them, or linger with more than they had.
    """
    late = 0
    for one in replicas:
        if one.observer is not None or one.lane.windows:
            return None
        if can_be_followed_late(one):
            late += 1
        elif not serves_in_turn(one):
            return None
    workload = requests.workload
    if workload.predicted_output_tokens is None and workload.max_output_tokens is None:
        return requests.final
    known = expected_tokens(workload, requests.output)
    if late:
        return requests.final if known == requests.final else None
    return known if all(map(int.__ge__, known, requests.final)) else None
