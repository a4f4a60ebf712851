"""Replicas behind a router that only counts: they are left alone until a count can have changed.

A count of outstanding requests falls when somebody ends. So of a replica nothing is to be seen before that, and there
are two ways not to look at it at every arrival, of which most go elsewhere:

    run ahead   Where a queue is served strictly in turn and a plan leaves somebody waiting, whoever arrives would wait
                behind them. So the replica runs on at once, past the arrivals that are still to come, as long as its
                plans do so, and the ends of requests are noted for when their time has come.
    put off     Else the next end is some steps away, each of which takes at least as long as one that only decodes.
                Until then nothing is run at all. An arrival makes steps longer, not shorter.

The latter is no law of nature: a model's times may fall with the batch. So it is checked when the steps are run, and a
simulation in which it does not hold is run again with a fleet that puts nothing off (`TooPatientError`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from plimsoll.engine.fleet import Fleet
from plimsoll.engine.policy import Policy, StepPlan
from plimsoll.engine.replica import INFINITE, NOBODY, Replica
from plimsoll.engine.requests import Requests

if TYPE_CHECKING:
    from plimsoll.engine.cluster import Router

BELOW_ROUNDING = 1 - 1e-9
"""What a product is multiplied with to lie below the sum of as many terms."""
ANYBODY = 1 << 62
"""More steps than any request has."""


class TooPatientError(Exception):
    """A request ended before the time up to which the router had been told that none would."""


class QueueEndError(Exception):
    """Whoever arrives now may be let in at once."""


class InTurn:
    """A policy that is asked only while whoever arrives would have to wait behind others."""

    def __init__(self, policy: Policy) -> None:
        self._plan = policy.plan

    def plan(self, replica: Replica, /) -> StepPlan:
        """What the policy says, if it leaves anybody waiting."""
        waiting = replica.waiting
        if waiting:
            plan = self._plan(replica)
            left = len(waiting) - len(plan.chunks)
            if left > 0 or (left == 0 and plan.chunks[0][0] in replica.prefilling):
                return plan
        raise QueueEndError


class Outlook:
    """What is known of one replica beyond what was counted.

    Attributes:
        replica: whose it is.
        in_turn: its policy for running ahead; None where it may not.
        due_step: the first step in which somebody may end, if that was put off; else ANYBODY.
        least: whoever has a shorter answer than that and arrives now might end before; ANYBODY: whoever it is.
        step_s: what each of its tokens then takes at least; 0 where that is not known.
    """

    __slots__ = ("decode_line", "due_step", "in_turn", "least", "replica", "step_s")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.decode_line = replica.model.decode_line
        self.in_turn = InTurn(replica.policy) if _serves_in_turn(replica) else None
        self.due_step = self.least = ANYBODY
        self.step_s = 0.0


class CountingFleet(Fleet):
    """A `Fleet` for routers that look at nothing but `loads` and `load`, in an open loop.

    Args:
        replicas, requests: as of a `Fleet`; all of them `can_be_counted`.
        until_s: no step begins then or later.
    """

    def __init__(self, replicas: Sequence[Replica], requests: Requests, until_s: float) -> None:
        super().__init__(replicas, requests)
        self._until_s = until_s
        self._sent_s = -math.inf
        self._outlooks = [Outlook(replica) for replica in replicas]
        self._coming: list[list[float]] = [[] for _ in replicas]  # ends of requests that were run ahead, the last first

    def serve(self, router: Router, sent: Iterable[int], times: Iterable[float]) -> None:
        """Route arrivals, in order of time."""
        choose, loads, due_s, outlooks = router.choose, self._loads, self._due_s, self._outlooks
        output, placed = self._requests.output, self._requests.replica
        queues = [(replica.sent.append, replica.sent_s.append) for replica in self.replicas]
        for request, now_s in zip(sent, times, strict=True):
            self.now_s = now_s
            number = choose(self, request, now_s)
            placed[request] = number
            send, send_s = queues[number]
            send(request)
            send_s(now_s)
            outlook = outlooks[number]
            replica = outlook.replica
            if replica.next_arrival_s == INFINITE:
                replica.next_arrival_s = now_s
            loads[number] += 1
            if output[request] < outlook.least:
                step_s = outlook.step_s
                end_s = now_s + output[request] * step_s if step_s else math.nextafter(now_s, INFINITE)
                if end_s < due_s[number]:
                    due_s[number] = end_s
                    self._soonest_s = min(self._soonest_s, end_s)
            self._sent_s = now_s

    def loads(self) -> list[int]:
        """For each replica the requests sent to it and not answered by `now_s`; not to be changed."""
        now_s, due_s, loads, coming = self.now_s, self._due_s, self._loads, self._coming
        if self._soonest_s > now_s:
            return loads
        while (soonest_s := min(due_s)) <= now_s:
            number = due_s.index(soonest_s)
            if ends_s := coming[number]:
                ends_s.pop()
                loads[number] -= 1
                if ends_s:
                    due_s[number] = ends_s[-1]
                    continue
            self._refresh(number)
        self._soonest_s = soonest_s
        return loads

    def load(self, number: int) -> int:
        """The same of one replica; the others are left alone."""
        due_s, ends_s = self._due_s, self._coming[number]
        while due_s[number] <= self.now_s:
            if ends_s:
                ends_s.pop()
                self._loads[number] -= 1
            if ends_s:
                due_s[number] = ends_s[-1]
            else:
                self._refresh(number)
        return self._loads[number]

    def finish(self, until_s: float) -> None:
        """Run everything that begins before `until_s`: nobody will look any more."""
        for number, replica in enumerate(self.replicas):
            if not replica.last_finished:
                replica.advance(self._sent_s, True)
                if replica.last_finished:
                    self._came_early(number, replica.now_s)
            replica.advance(until_s)

    def _refresh(self, number: int) -> None:
        """Count who has ended, and run to the next end if that is certain or may be visible."""
        outlook, due_s, now_s = self._outlooks[number], self._due_s, self.now_s
        replica, in_turn = outlook.replica, outlook.in_turn
        while True:
            if replica.last_finished:
                if replica.now_s > now_s:
                    due_s[number] = replica.now_s
                    outlook.due_step, outlook.least = ANYBODY, 0
                    return
                self._loads[number] -= len(replica.last_finished)
                replica.last_finished = NOBODY
                if not replica.waiting and self._put_off(number, outlook):
                    return
            if replica.waiting and in_turn is not None and self._run_ahead(number, outlook, in_turn):
                return
            if outlook.due_step == ANYBODY or replica.next_arrival_s < INFINITE:
                replica.advance(now_s, True)
                if replica.last_finished:
                    self._came_early(number, replica.now_s)
            else:
                replica.advance(due_s[number])  # the step that begins before the next end is due brings it
                ends, step = replica.lane.ends, outlook.due_step
                if step <= len(ends) and self._came_early(number, ends[step - 1]):
                    self._loads[number] = replica.outstanding(now_s)  # there may have been more than one
                    if replica.now_s <= now_s:
                        replica.last_finished = NOBODY
            if not replica.last_finished and (self._put_off(number, outlook) or replica.now_s >= now_s):
                if due_s[number] <= now_s:
                    due_s[number] = math.nextafter(now_s, INFINITE)
                return

    def _run_ahead(self, number: int, outlook: Outlook, in_turn: InTurn) -> bool:
        """Run as long as nobody who might arrive could be let in; whether anybody ended."""
        replica = outlook.replica
        begin, policy, coming = len(replica.lane.ends), replica.policy, replica.num_arrived
        seated, waiting = set(replica.running), list(replica.waiting)
        replica.policy = in_turn
        with contextlib.suppress(QueueEndError):  # when that plan was asked for, nothing of its step was done
            replica.advance(self._until_s)
        replica.policy, replica.last_finished = policy, NOBODY
        running = replica.running
        num_ended = len(seated) + len(waiting) + replica.num_arrived - coming - len(running) - len(replica.waiting)
        if not num_ended:
            return False
        last_step, ends = self._requests.last_step, replica.lane.ends
        steps = [last_step[request] for request in seated.difference(running) if last_step[request] >= begin]
        if len(steps) < num_ended:  # some were let in meanwhile
            waiting += replica.sent[coming : replica.num_arrived]
            steps += [last_step[request] for request in waiting if last_step[request] >= begin]
        steps.sort(reverse=True)
        self._came_early(number, ends[steps[-1]])
        self._coming[number].extend([ends[step] for step in steps])
        self._due_s[number] = ends[steps[-1]]
        outlook.due_step, outlook.least = ANYBODY, 0
        return True

    def _put_off(self, number: int, outlook: Outlook) -> bool:
        """Say until when nobody will end, if that is later than now."""
        replica, left = outlook.replica, self._requests.left
        lane, due_s = replica.lane, replica.now_s
        if lane.num:
            steps = lane.due - len(lane.ends)
            if steps < 1:  # that was of somebody who has been evicted
                steps = lane.steps_to_finish()
            if replica.prefilling:
                steps = min([steps, *(left[request] for request in replica.prefilling)])
            if replica.waiting:
                steps = min([steps, *(left[request] for request in replica.waiting)])
            if replica.next_arrival_s < INFINITE:
                steps = min([steps, *(left[request] for request in replica.sent[replica.num_arrived :])])
            grown = lane.grow * (steps - 1)
            base_s, per_token_s, below = outlook.decode_line(lane.num, lane.read)
            mean = lane.read if lane.read + grown >= below or lane.crossings else lane.read + 0.5 * grown
            outlook.due_step, outlook.least = steps + len(lane.ends), steps
            outlook.step_s = (base_s + per_token_s * lane.read) * BELOW_ROUNDING
            due_s += steps * (base_s + per_token_s * mean) * BELOW_ROUNDING
        else:
            outlook.due_step, outlook.least, outlook.step_s = ANYBODY, ANYBODY, 0.0
            if not replica.seated and not replica.waiting:
                due_s = replica.next_arrival_s
        self._due_s[number] = due_s
        return due_s > self.now_s

    def _came_early(self, number: int, end_s: float) -> bool:
        """Whether `end_s`, the first end since a replica was put off, is before it was due."""
        if end_s >= self._due_s[number]:
            return False
        if end_s <= self._sent_s:
            raise TooPatientError
        return True


def can_be_counted(replica: Replica) -> bool:
    """Whether a replica like this one may be put off: one lane, whose steps bring a token to whoever decodes."""
    return type(replica).advance is Replica.advance and replica.observer is None and len(replica.lanes) == 1


def _serves_in_turn(replica: Replica) -> bool:
    """Whether it may run ahead: plans change nothing, and nobody keeps a log of who waits."""
    return type(replica) is Replica and replica.log is None and getattr(replica.policy, "in_turn", False)
