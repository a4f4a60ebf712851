"""An `Outlook` of a replica that takes its results a step late.

It is only put off, not run ahead. Who ends is counted once the step after has begun, in which the result is taken:
strictly after the time of the last token, also where a request gives way before its result is in.
"""

from __future__ import annotations

import math

from plimsoll.engine.fleets.outlook import Outlook
from plimsoll.engine.policies.vllm_v1 import VllmV1
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.replica import INFINITE, Replica


class LateOutlook(Outlook):
    """The same for a `LateReplica`."""

    __slots__ = ("_ahead_s", "_late")

    def __init__(self, replica: LateReplica, limit_s: float) -> None:
        super().__init__(replica, limit_s)
        self._late = replica
        self._ahead_s = limit_s if runs_ahead(replica) else -INFINITE

    def turn(self, until_s: float) -> None:
        """Run every step that begins before `until_s`; put off what nobody can see yet."""
        replica, ended = self._late, self.ended
        if replica.next_arrival_s == INFINITE and len(replica.sent) > replica.num_arrived:
            replica.next_arrival_s = replica.sent_s[replica.num_arrived]
        known = len(ended)
        lags = replica.advance_lazily(until_s, self._ahead_s)
        for place in range(known, len(ended)):
            ended[place] = math.nextafter(ended[place], INFINITE)
        if lags:
            self.bound_s, self.least = replica.calm_until_s, replica.lane.due - len(replica.lane.ends)
            return
        self._put_off()
        under_way_s = replica.busy_until_s - replica.now_s
        if under_way_s > 0 and (replica.lane.num or replica.waiting or replica.prefilling):
            self.bound_s += under_way_s
        self._not_before_who_has_ended()

    def sent(self, now_s: float, output: int) -> float:
        """A request of so few tokens has been sent here that it may end before `bound_s`; returns what that is now."""
        begin_s, step_s = max(now_s, self._late.now_s, self._late.busy_until_s), self._step_s()
        if begin_s + output * step_s < self.bound_s:
            self.bound_s = max(begin_s + output * step_s, math.nextafter(now_s, INFINITE))
            self._not_before_who_has_ended()
        return self.bound_s

    def _not_before_who_has_ended(self) -> None:
        if self.ended and self.ended[-1] > self.bound_s:
            self.bound_s = self.ended[-1]


def runs_ahead(replica: LateReplica) -> bool:
    """Whether it may run ahead: plans change nothing but where they evict, and nobody keeps a log of who waits."""
    policy = replica.policy
    in_turn = isinstance(policy, VllmV1) and policy.in_turn and policy.chunked and policy.simple_budget > 0
    return type(replica) is LateReplica and replica.log is None and in_turn


def outlook_of(replica: Replica, limit_s: float) -> Outlook:
    """An outlook of its kind."""
    return LateOutlook(replica, limit_s) if isinstance(replica, LateReplica) else Outlook(replica, limit_s)


def can_be_counted(replica: Replica) -> bool:
    """Whether a replica like this one may be put off: one lane, whose steps bring a token to whoever decodes.

    A late one only without a log, which has a row for each stretch that it is run.
    """
    if replica.observer is not None or len(replica.lanes) > 1:
        return False
    advance = type(replica).advance
    return advance is Replica.advance or (advance is LateReplica.advance and replica.log is None)
