"""A `Course` of a replica that takes its results a step late.

Its steps are counted by their beginnings like any others. Who ends makes no difference to the others' progress, so what
all decode is foretold up to there, and run through without a plan.
"""

from __future__ import annotations

from plimsoll.engine.fleets.course import Course
from plimsoll.engine.fleets.late_outlook import runs_ahead
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.replica import INFINITE, Replica


class LateCourse(Course):
    """The same for a `LateReplica`, of whose requests as much is expected as they will have."""

    __slots__ = ("_ahead_s", "_late", "_limit_s")

    def __init__(self, replica: LateReplica, limit_s: float) -> None:
        super().__init__(replica, None, limit_s)
        self._late = replica
        self._ahead_s = -INFINITE
        if runs_ahead(replica):
            self._ahead_s = limit_s
            replica.noted = self._ahead
        replica.lane.counted = replica.requests.final
        self._limit_s = limit_s

    def turn(self, until_s: float) -> None:
        """Run every step that begins before `until_s`, and what is certain beyond."""
        replica = self._late
        come = len(replica.sent) > replica.num_arrived
        if come and replica.next_arrival_s == INFINITE:
            replica.next_arrival_s = replica.sent_s[replica.num_arrived]
        self._ahead.clear()
        self._at = self._per_step = 0
        # If nobody has come, it was turned to as its next end is near, or cannot be told from it.
        lags = replica.advance_lazily(until_s, self._ahead_s, not come)
        self._say(lags)
        if lags and self.valid_s <= until_s:
            self._per_step = 0
            replica._advance_alone(until_s, self._ahead_s)
            self._say(False)

    def _say(self, lags: bool) -> None:
        """What is certain of the steps that are to be run."""
        replica = self._late
        self._now = replica.progress()
        begin_s = replica.busy_until_s if replica.busy_until_s > replica.now_s else replica.now_s
        self.valid_s = self.ran_s = begin_s
        if replica.waiting or replica.prefilling or replica.next_arrival_s < INFINITE:
            if begin_s >= self._limit_s:
                self.valid_s = INFINITE
        elif replica.lane.num:
            line = replica.calm_line if lags else replica.model.decode_line(replica.lane.num, replica.lane.read)
            self._foretell_on(begin_s, line, 1)
        else:
            self.valid_s = INFINITE


def can_be_followed_late(replica: Replica) -> bool:
    """Whether a replica is a late one whose progress is that of its lane, and is not planned by urgency."""
    return type(replica) is LateReplica and replica.log is None and replica.queue is None
