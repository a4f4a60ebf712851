"""A replica of which only the ends of requests are seen, turned to as seldom as they allow.

Nothing is to be seen before somebody ends, and there are two ways not to turn to a replica at every arrival:

    put off     The next end is some steps away, each of which takes at least as long as one that only decodes. Until
                then nothing is run at all. An arrival makes steps longer, not shorter.
    run ahead   Where a queue is served strictly in turn and a plan leaves somebody waiting, whoever arrives would wait
                behind them; and where a prompt takes what is left of a step, nobody else gets anything of it. So the
                replica runs on at once, past the arrivals that are still to come, as long as its plans are like that.

The former is no law of nature: a model's times may fall with the batch. Who puts off has to check it.
"""

from __future__ import annotations

import math
from collections import deque

from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.replica import INFINITE, NOBODY, Replica

BELOW_ROUNDING = 1 - 1e-9
"""What a product is multiplied with to lie below the sum of as many terms."""
ANYBODY = 1 << 62
"""More steps than any request has."""


class Outlook:
    """What is known of one replica beyond what was counted.

    Args:
        replica: whose it is; it `can_be_counted`.
        limit_s: no step begins then or later.

    Attributes:
        ended: when requests ended, in order; whoever reads it empties it.
        bound_s: nobody ends before, but for those of `ended`.
        least: whoever has a shorter answer than that and arrives now might end before; ANYBODY: whoever it is.
    """

    __slots__ = (
        "_alone_s", "_kept", "_limit_s", "_parts",
        "bound_s", "decode_line", "ended", "least", "replica",
    )  # fmt: skip

    def __init__(self, replica: Replica, limit_s: float) -> None:
        self.replica = replica
        self.decode_line = replica.model.decode_line
        self.ended: deque[float] = deque()
        replica.lane.ended = self.ended
        self._kept: StepPlan | None = None
        self._limit_s, in_turn = limit_s, serves_in_turn(replica)
        self._parts = (
            replica, limit_s, in_turn, replica.log is not None, replica.policy.plan, replica.lane,
            replica.running, replica.waiting, replica.prefilling, replica.config.max_num_batched_tokens,
            replica.requests.target,
        )  # fmt: skip
        self._alone_s = self.decode_line(1, 1)[0] * BELOW_ROUNDING
        self.bound_s, self.least = INFINITE, ANYBODY

    def turn(self, until_s: float) -> None:  # noqa: C901
        """Run every step that begins before `until_s`, and what is certain beyond; put off what nobody can see yet."""
        replica, limit_s, in_turn, logs, plan_step, lane, running, waiting, prefilling, budget, target = self._parts
        if replica.next_arrival_s == INFINITE and len(replica.sent) > replica.num_arrived:
            replica.next_arrival_s = replica.sent_s[replica.num_arrived]
        # A plan that was kept holds, unless somebody has come; if nobody has, it was turned to as its next end is near.
        kept, self._kept, is_due = self._kept, None, True
        while True:
            now_s = replica.now_s
            if replica.next_arrival_s <= now_s:
                replica._take_arrivals()
            horizon_s = until_s
            if waiting:
                if now_s >= until_s and (not in_turn or now_s >= limit_s):
                    break
                plan = plan_step(replica)
                if in_turn:
                    left = len(waiting) - len(plan.chunks)
                    if left > 0 or (not left and plan.chunks[0][0] in prefilling):
                        horizon_s = limit_s
                    elif now_s >= until_s:
                        break
            elif prefilling:
                if now_s >= until_s and (not in_turn or now_s >= limit_s):
                    break
                plan = kept or plan_step(replica)
                if in_turn and plan.fill:
                    horizon_s = limit_s
                elif now_s >= until_s:
                    self._kept = plan if in_turn else None
                    break
            elif running:
                quiet = replica.next_arrival_s == INFINITE and not is_due and lane.num
                if quiet and self._leave_alone(lane) > until_s:
                    return
                if now_s >= until_s:
                    break
                if in_turn and lane.num <= budget and replica._decode_all(until_s):
                    is_due = False
                    continue
                plan = plan_step(replica)
            else:
                if replica.next_arrival_s >= until_s:
                    break
                replica.now_s = replica.next_arrival_s
                continue
            is_due, kept = False, None
            if not in_turn or plan.interrupts or not plan.chunks:
                self._carry_out(plan, horizon_s)
                if logs:
                    replica._write_log()
            elif plan.fill or plan.holds > 1:
                replica._part_way_steps(plan, horizon_s, False)
            else:
                replica._mixed_step(plan)
                if plan.then_fill and (request := plan.chunks[-1][0]) in prefilling and replica.now_s < limit_s:
                    left, chunk = target[request] - prefilling[request], plan.then_fill - lane.num
                    if 0 < chunk < left:
                        replica._run_chunks(request, chunk, (left - 1) // chunk, plan.then_fill, limit_s, False)
        self._put_off()

    def _carry_out(self, plan: StepPlan, until_s: float) -> None:
        """What `Replica.advance` does for a plan."""
        replica = self.replica
        replica.last_finished = NOBODY
        if plan.interrupts:
            replica._interrupted(plan, until_s)
        elif not plan.chunks:
            if replica.lane.num:
                replica._decode(plan, until_s)
            else:
                replica._empty_step(plan)
        elif plan.fill or plan.holds > 1:
            replica._part_way_steps(plan, until_s, replica.log is not None)
        else:
            replica._mixed_step(plan)

    def _leave_alone(self, lane: Lane) -> float:
        """Say until when nobody will end where all decode and nobody is about to come."""
        steps = lane.due - len(lane.ends)
        if steps < 1:  # that was of somebody who has been evicted
            steps = lane.steps_to_finish()
        read, grown = lane.read, lane.grow * (steps - 1)
        base_s, per_token_s, below = self.decode_line(lane.num, read)
        mean = read + 0.5 * grown if read + grown < below and not lane.crossings else read
        self.least = steps
        self.bound_s = bound_s = self.replica.now_s + steps * (base_s + per_token_s * mean) * BELOW_ROUNDING
        return bound_s

    def _put_off(self) -> None:
        """Say until when nobody will end."""
        replica = self.replica
        left, lane = replica.requests.left, replica.lane
        steps = ANYBODY
        if lane.num:
            self._leave_alone(lane)
            steps = self.least
        if replica.prefilling:
            steps = min([steps, *(left[request] for request in replica.prefilling)])
        if replica.waiting:
            steps = min([steps, *(left[request] for request in replica.waiting)])
        if replica.next_arrival_s < INFINITE:
            steps = min([steps, *(left[request] for request in replica.sent[replica.num_arrived :])])
        if lane.num:
            if steps < self.least:
                self.bound_s = replica.now_s + steps * self._step_s()
                self.least = steps
            return
        self.least = steps
        begin_s = replica.now_s if replica.waiting or replica.prefilling else replica.next_arrival_s
        self.bound_s = INFINITE if steps == ANYBODY else begin_s + steps * self._alone_s

    def _step_s(self) -> float:
        """What a token takes at least."""
        lane = self.replica.lane
        if not lane.num:
            return self._alone_s
        base_s, per_token_s, _ = self.decode_line(lane.num, lane.read)
        return (base_s + per_token_s * lane.read) * BELOW_ROUNDING

    def sent(self, now_s: float, output: int) -> float:
        """A request of so few tokens has been sent here that it may end before `bound_s`; returns what that is now."""
        begin_s = self.replica.now_s
        end_s = (now_s if now_s > begin_s else begin_s) + output * self._step_s()
        if end_s < self.bound_s:
            self.bound_s = end_s if end_s > now_s else math.nextafter(now_s, INFINITE)
        return self.bound_s


def serves_in_turn(replica: Replica) -> bool:
    """Whether it may run ahead: plans change nothing, and nobody keeps a log of who waits."""
    return type(replica) is Replica and replica.log is None and getattr(replica.policy, "in_turn", False)
