"""Replicas behind a router that counts tokens still to come: their progress is foretold, or followed after the fact.

What is left on a replica changes in every step, but by a known law. Of what each replica will do, this much is certain:

    ahead       Steps that were run past the arrivals still to come, since these cannot change them
                (`plimsoll.engine.fleets.outlook`): what each put in place is kept, and looked up by its beginning.
    decoding    Nobody is prefilling, waits or is about to come: each step puts a token of everybody in place, and takes
                longer than the last by the same amount. So the steps that begin before a time are the root of a
                quadratic; nothing is run. Where the root is too close to a whole number to tell, the steps are run.

A step's tokens count from its beginning, and an answer that ends in it is no longer expected.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from plimsoll.engine.fleets.outlook import BELOW_ROUNDING
from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.replica import INFINITE, NOBODY, Replica
from plimsoll.engine.replicas.stretch import Stretch


class Course:
    """One replica, what it has put in place and what it is certain to.

    Args:
        replica: whose it is; it `can_be_followed`.
        more: for each request how many more tokens are expected than it will have; None: no request has any.
        limit_s: no step begins then or later.

    Attributes:
        ran_s: what begins before then has been run.
        valid_s: up to then `progress` knows.
        most: what it is at `now_s` at most is ``most + most_per_s * now_s``, up to `most_until_s`.
    """

    __slots__ = (
        "_ahead", "_at", "_budget", "_curve_s", "_kept", "_now", "_parts", "_per_step", "_slack", "_step_s",
        "most", "most_per_s", "most_until_s", "ran_s", "replica", "valid_s",
    )  # fmt: skip

    def __init__(self, replica: Replica, more: list[int] | None, limit_s: float) -> None:
        self.replica = replica
        self._budget = replica.config.max_num_batched_tokens
        self._now = self._per_step = 0
        self._ahead: list[Stretch] = []
        self._parts = (
            replica, limit_s, replica.policy.plan, replica.lane, replica.running, replica.waiting, replica.prefilling,
            self._ahead, more,
        )  # fmt: skip
        self._at = 0
        self._kept: StepPlan | None = None
        self._step_s = self._curve_s = self._slack = 0.0
        self.most = self.most_per_s = self.ran_s = 0.0
        self.valid_s = self.most_until_s = INFINITE

    def progress(self, now_s: float) -> int | None:
        """Tokens put in place by `now_s`, with what was expected of those who ended; None where that has to be run."""
        if now_s <= self.ran_s:
            self.look(now_s)
            return int(self.most)
        if not self._per_step:
            return self._now
        past_s, step_s = now_s - self.ran_s, self._step_s
        begun_frac = 2 * past_s / (step_s + math.sqrt(step_s * step_s + 2 * self._curve_s * past_s))
        whole = int(begun_frac)
        if self._slack < begun_frac - whole < 1 - self._slack:
            return self._now + self._per_step * (whole + 1)
        return None

    def look(self, now_s: float) -> None:
        """Say in `most` what there is at `now_s`, no later than `valid_s`, and until when it stays."""
        ahead = self._ahead
        while self._at < len(ahead):
            one = ahead[self._at]
            if now_s <= one.begin_s:
                self.most, self.most_per_s, self.most_until_s = float(one.before), 0.0, one.begin_s
                return
            if now_s <= one.end_s:
                self.most_per_s, self.most_until_s = 0.0, one.end_s
                step = one.first
                if step < one.last:
                    ends = self.replica.lane.ends
                    step = bisect_left(ends, now_s, step, one.last)
                    self.most_until_s = ends[step]
                self.most = float(one.before + one.tokens * (step - one.first + 1) if step < one.last else one.after)
                return
            self._at += 1
        self.most, self.most_per_s, self.most_until_s = float(self._now), 0.0, self.valid_s
        if self._per_step:
            if now_s <= self.ran_s:
                self.most_until_s = self.ran_s
            else:
                self.most_per_s = per_s = self._per_step / self._step_s
                self.most += self._per_step * (1 + 1e-6) - per_s * self.ran_s + 1e-12 * per_s * self.valid_s

    def turn(self, until_s: float) -> None:  # noqa: C901
        """Run every step that begins before `until_s`, and what is certain beyond."""
        replica, limit_s, plan_step, lane, running, waiting, prefilling, ahead, more = self._parts
        ends = lane.ends
        if replica.next_arrival_s == INFINITE and len(replica.sent) > replica.num_arrived:
            replica.next_arrival_s = replica.sent_s[replica.num_arrived]
        if ahead:
            ahead.clear()
        self._at = self._per_step = 0
        kept, self._kept = self._kept, None  # it still holds, unless somebody has come
        is_due = True  # if nobody has come, it was turned to because its next end is near, or cannot be told from it
        while True:
            now_s = replica.now_s
            if replica.next_arrival_s <= now_s:
                replica._take_arrivals()
            certain = False
            if waiting:
                if now_s >= limit_s:
                    break
                plan = plan_step(replica)
                left = len(waiting) - len(plan.chunks)
                certain = left > 0 or (not left and plan.chunks[0][0] in prefilling)
            elif prefilling:
                if now_s >= limit_s:
                    break
                plan = kept or plan_step(replica)
                certain = plan.fill > 0
            elif running:
                if not is_due and replica.next_arrival_s == INFINITE:
                    self._foretell(now_s)
                    if self.valid_s > until_s or now_s >= until_s:
                        return
                    self._per_step = 0
                if now_s >= until_s:
                    break
                first, tokens = len(ends), lane.num
                if tokens <= self._budget and replica._decode_all(until_s):
                    is_due = False
                    self._now += tokens * (len(ends) - first)
                    if more is not None:
                        self._now += sum([more[request] for request in replica.last_finished])
                    continue
                plan = plan_step(replica)
            else:
                if replica.next_arrival_s >= until_s:
                    break
                replica.now_s = replica.next_arrival_s
                continue
            if not certain and now_s >= until_s:
                self._kept = None if waiting else plan
                break
            is_due, kept = False, None
            self._carry_out(plan, certain, until_s)
        self.valid_s = self.ran_s = replica.now_s
        if replica.now_s >= limit_s or not (running or waiting or replica.next_arrival_s < INFINITE):
            self.valid_s = INFINITE
        elif not (waiting or prefilling or replica.next_arrival_s < INFINITE):
            self._foretell(replica.now_s)

    def _carry_out(self, plan: StepPlan, certain: bool, until_s: float) -> None:
        """What `Replica.advance` does for a plan; if that is `certain`, also past `until_s`, and noted in `_ahead`."""
        replica, limit_s, _, lane, _, _, prefilling, ahead, more = self._parts
        horizon_s = limit_s if certain else until_s
        replica.last_finished = NOBODY
        begin_s, first, tokens, before = replica.now_s, len(lane.ends), lane.num, self._now
        if plan.interrupts:
            held = self._in_place()
            replica._interrupted(plan, horizon_s)
            final = replica.requests.final
            tokens = self._in_place() - held + sum([final[request] for request in replica.last_finished])
        elif plan.chunks:
            for _, chunk in plan.chunks:
                tokens += chunk
            if plan.fill or plan.holds > 1:
                replica._part_way_steps(plan, horizon_s, more is not None)
            else:
                replica._mixed_step(plan)
                if plan.then_fill and plan.chunks[-1][0] in prefilling and more is None and replica.now_s < limit_s:
                    self._now = after = before + tokens
                    if certain and replica.now_s > until_s:
                        ahead.append(Stretch(begin_s, replica.now_s, first, first, before, tokens, after))
                    certain, begin_s, first, tokens, before = True, replica.now_s, first + 1, plan.then_fill, after
                    self._fill(plan, limit_s)
        elif lane.num:
            replica._decode(plan, horizon_s)
        else:
            replica._empty_step(plan)
        steps = len(lane.ends) - first
        self._now = after = before + tokens * steps
        if more is not None:
            for request in replica.last_finished:
                self._now = after = after + more[request]
        if certain and steps and replica.now_s > until_s:
            ahead.append(Stretch(begin_s, replica.now_s, first, first + steps - 1, before, tokens, after))

    def _fill(self, plan: StepPlan, until_s: float) -> None:
        """After a step that ended other prompts: more chunks of the last, which take what is left of each step."""
        replica, request = self.replica, plan.chunks[-1][0]
        left, chunk = replica.requests.target[request] - replica.prefilling[request], plan.then_fill - replica.lane.num
        if 0 < chunk < left:
            replica._run_chunks(request, chunk, (left - 1) // chunk, plan.then_fill, until_s, False)

    def _foretell(self, begin_s: float) -> None:
        """Say when the coming steps begin, up to that of somebody's last token."""
        lane = self.replica.lane
        self._foretell_on(begin_s, self.replica.model.decode_line(lane.num, lane.read), 0)

    def _foretell_on(self, begin_s: float, line: tuple[float, float, int], last: int) -> None:
        """The same on a line of the model, for so many steps more."""
        replica = self.replica
        lane = replica.lane
        num, read, grow = lane.num, lane.read, lane.grow
        self.valid_s = self.ran_s = begin_s
        steps = lane.due - len(lane.ends) - 1 + last
        if steps < 0:  # that was of somebody who has been evicted
            steps = lane.steps_to_finish() - 1 + last
        base_s, per_token_s, below = line
        if read + grow * steps >= below:
            steps = (below - read - 1) // grow
        if (
            per_token_s < 0
            or steps < 1
            or (steps // lane.block_size + 1) * num > replica.free_blocks
            or num > self._budget
        ):
            return
        self._curve_s = curve_s = per_token_s * grow
        self._step_s = step_s = base_s + per_token_s * read - 0.5 * curve_s
        self._per_step = num
        self.valid_s = end_s = begin_s + steps * (step_s + 0.5 * curve_s * steps) * BELOW_ROUNDING
        self._slack = 1e-9 + 1e-15 * (steps + 4) * end_s / step_s

    def _in_place(self) -> int:
        """KV tokens in place when all steps are over that were run."""
        lane = self.replica.lane
        return lane.read // lane.full_weight - lane.num + sum(self.replica.prefilling.values())
