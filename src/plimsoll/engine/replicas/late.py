"""Asynchronous scheduling: step s + 1 is scheduled before the results of step s are known.

As vLLM's engine core does with a batch queue of two (``vllm/v1/engine/core.py``, `step_with_batch_queue`):

    GPU        |--- s - 1 ---|----- s -----|--- s + 1 ---|
    scheduler  s           s + 1         s + 2              at these moments
    results               of s - 1        of s

So a step is planned when the one before it begins, with the arrivals up to then. A token that is under way counts as if
it were known; a request whose last token is under way gets nothing more, but keeps its seat and its blocks until the
result is taken, after one more step has been scheduled.

Between arrivals, decodes and the chunks of one prompt are the same arithmetic as ever
(`plimsoll.engine.replicas.lane`). Where it is certain that a plan would not change, they run through ends without being
planned again: that a seat or a block is free a step later changes nothing for those who run. Blocks that they lack only
because somebody lingers are found by the plan that follows.

NOTE: scheduling hides behind the step that runs, so a step that nobody works on takes no time here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mypy_extensions import mypyc_attr

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Policy, StepPlan
from plimsoll.engine.replicas.planned import PlannedReplica
from plimsoll.engine.replicas.replica import INFINITE, NOBODY, Observer
from plimsoll.engine.replicas.stretch import Stretch, note
from plimsoll.engine.requests import Requests

BELOW_ROUNDING = 1 - 1e-9
"""What a product is multiplied with to lie below the sum of as many terms."""
ONE_STEP = StepPlan([])
"""Everybody who decodes gets a token, once."""


@mypyc_attr(allow_interpreted_subclasses=True)
class LateReplica(PlannedReplica):
    """A `PlannedReplica` that takes results one step late.

    Attributes:
        now_s: when the next step is planned: the results known by then are those of the step before the last.
        busy_until_s: end of the last step that was planned; the next one begins then.
        calm_until_s, calm_line: where it was left behind (`advance_lazily`): nobody ends before; of the steps to come.
        noted: whoever wants to know what steps put in place that are run ahead puts a list here.
    """

    __slots__ = ("_got_none", "_lingers_from", "_stops", "busy_until_s", "calm_line", "calm_until_s", "noted")

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
        by_priority: bool = False,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer, by_priority)
        self.busy_until_s = self.calm_until_s = 0.0
        self._stops = self.log is not None
        self._lingers_from = 0
        self._got_none: Collection[int] = NOBODY
        self.calm_line: tuple[float, float, int] = (0.0, 0.0, 0)
        self.noted: list[Stretch] | None = None

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        if self.running or self.waiting or self.next_arrival_s <= self.now_s:
            return max(self.now_s, self.busy_until_s)
        return max(self.now_s, self.next_arrival_s)

    def advance(self, until_s: float, stop_at_finish: bool = False) -> None:
        """Run every step that starts before `until_s`; with `stop_at_finish` only up to one in which a request ends."""
        if not stop_at_finish and self.observer is None:
            self._advance_alone(until_s)
            return
        running, waiting = self.running, self.waiting
        while True:
            if not running and not waiting and self.next_arrival_s > self.now_s:
                if self.next_arrival_s >= until_s:
                    return
                self.now_s = self.next_arrival_s
                continue
            if self.now_s >= until_s or self.busy_until_s >= until_s:
                return
            self.run_steps(until_s)
            if self.log is not None:
                self._write_log()
            if stop_at_finish and self.last_finished:
                return

    def run_steps(self, until_s: float = INFINITE) -> None:
        """Plan and run one step, or several alike, then take the results of all but the last of them."""
        planned_s, last_s, ends = self.now_s, self.busy_until_s, self.lane.ends
        if self.next_arrival_s <= planned_s:
            self._take_arrivals()
        due, num_before, num_decode = self.lingering, len(ends), self.lane.num
        if last_s > planned_s:
            self.now_s = last_s
        plan = self.policy.plan(self)
        if plan.fill and not due and not plan.interrupts:
            self._part_way_steps(plan, until_s, True)
        else:
            self._carry_out(plan, until_s)
            if not due and self._holds_behind(plan, num_decode):
                taken = self.lingering
                if self._decode_behind(until_s):
                    due = taken
        self._got_none = plan.pause
        self.busy_until_s = self.now_s
        num = len(ends)
        known_s = ends[-2] if num > num_before + 1 else last_s
        self.now_s = known_s if known_s > planned_s else planned_s
        if self.lingering and (self.lingering is due or self._lingers_from < num):
            self.let_go(self.lingering)
            self.lingering = NOBODY
        self.last_finished = due

    def _carry_out(self, plan: StepPlan, until_s: float) -> None:
        """Run one step, or decodes until a result may change their plan."""
        if plan.interrupts:
            self._interrupted(plan, until_s)
        elif plan.chunks:
            self._mixed_step(plan)
        elif self.lane.num:
            self._decode(ONE_STEP if self.lingering else plan, until_s)
        else:
            self._empty_step(plan)

    # -- where nobody watches --------------------------------------------------------------------------------------

    def advance_lazily(self, until_s: float, limit_s: float, is_due: bool = False) -> bool:
        """As `advance`, but no further than it takes to know who ends before `until_s`; returns whether it lags behind.

        And past that, up to `limit_s`, as long as whoever arrives would wait behind others: for a policy whose plans
        change nothing but where they evict. Nobody observes or keeps a log. If somebody `is_due`, that stretch is run.
        """
        self.calm_until_s = -INFINITE
        self._advance_alone(until_s, limit_s, True, is_due)
        return self.calm_until_s > until_s

    def _advance_alone(  # noqa: C901
        self, until_s: float, limit_s: float = -INFINITE, lazy: bool = False, is_due: bool = False
    ) -> None:
        """The same steps, in stretches that go on where somebody ends; a log has a row where it would have one else."""
        running, waiting, prefilling, lane = self.running, self.waiting, self.prefilling, self.lane
        ends, policy = lane.ends, self.policy
        budget, logs = self.config.max_num_batched_tokens, self.log is not None
        notes, held = self.noted is not None and limit_s > until_s, -1
        while True:
            planned_s, begin_s = self.now_s, self.busy_until_s
            if not running and not waiting and self.next_arrival_s > planned_s:
                if self.next_arrival_s >= until_s:
                    return
                self.now_s = self.next_arrival_s
                continue
            past = planned_s >= until_s or begin_s >= until_s
            if past and (begin_s >= limit_s or planned_s >= limit_s or lane.num >= budget):
                return
            if past and not waiting and self._is_last_chunk(budget - lane.num):
                return
            if self.next_arrival_s <= planned_s:
                self._take_arrivals()
            elif not waiting and not prefilling:
                if past:
                    return
                if 0 < lane.num <= budget and self._decode_on(until_s, lazy, is_due):
                    is_due, held = False, -1
                    if lazy and self.calm_until_s > until_s:
                        return
                    continue
            if begin_s > planned_s:
                self.now_s = begin_s
            else:
                begin_s = planned_s
            due, num_before, num_decode, stop_s = self.lingering, len(ends), lane.num, until_s
            before = (held if held >= 0 else self.progress()) if notes else 0
            plan = policy.plan(self)
            if limit_s > until_s and num_decode < budget:
                if plan.interrupts or self._leaves_behind(plan):
                    stop_s = limit_s
                elif past:
                    self.now_s = planned_s
                    return
            self._run_planned(plan, num_decode, stop_s)
            self._got_none = plan.pause
            self.busy_until_s = self.now_s
            num = len(ends)
            if notes and (past or self.now_s > until_s):
                each = (plan.fill or plan.then_fill) if plan.chunks else num_decode
                held = self.progress()
                note(self.noted, ends, begin_s, num_before, before, each, held, bool(plan.chunks))
            else:
                held = -1
            self.now_s = ends[-2] if num > num_before + 1 else begin_s
            if self.lingering and (self.lingering is due or self._lingers_from < num):
                self.let_go(self.lingering)
                self.lingering = NOBODY
            if logs:
                self._write_log()

    def _run_planned(self, plan: StepPlan, num_decode: int, stop_s: float) -> None:
        """The steps of a plan made beside so many decodes, the last of them the first to end at `stop_s` or later."""
        due, stops, begin_s = self.lingering, self._stops, self.now_s
        if plan.interrupts or not plan.chunks:
            self._carry_out(plan, stop_s)
            if not due and self._holds_behind(plan, num_decode):
                self._decode_behind(stop_s)
        elif plan.fill and not (due and stops):
            self._part_way_steps(plan, stop_s, stops)
        else:
            self._mixed_step(plan)
            fill, request = plan.fill or plan.then_fill, plan.chunks[-1][0]
            if fill and request in self.prefilling and self.now_s < stop_s:
                left, chunk = self.requests.target[request] - self.prefilling[request], fill - self.lane.num
                if 0 < chunk < left and not (stops and self._breaks_off(due, begin_s)):
                    self._run_chunks(request, chunk, (left - 1) // chunk, fill, stop_s, stops)

    def _leaves_behind(self, plan: StepPlan) -> bool:
        """Whether a plan has nothing for anybody else who might arrive: a chunk takes the rest, or somebody waits."""
        if plan.fill:
            return True
        if not plan.chunks:
            return bool(self.waiting)
        request, chunk = plan.chunks[-1]
        have = self.prefilling.get(request, 0)
        num_new = len(plan.chunks) - (plan.chunks[0][0] in self.prefilling)
        target: int = self.requests.target[request]
        return len(self.waiting) > num_new or have + chunk < target

    def _is_last_chunk(self, room: int) -> bool:
        """Whether a prompt is on its way that the next step may end, so that its plan is not certain."""
        target = self.requests.target
        return any(target[request] - have <= room for request, have in self.prefilling.items())

    def _breaks_off(self, due: Sequence[int], begin_s: float) -> bool:
        """Whether somebody ended in a step that began then. If not, finish with it: others follow without a plan."""
        if self.lingering is not due:
            return True
        if due:
            self.let_go(due)
            self.lingering = NOBODY
        end_s, self.now_s = self.now_s, begin_s
        if self.log is not None:
            self._write_log()
        if self.next_arrival_s <= begin_s:
            self._take_arrivals()
        self.now_s = end_s
        return False

    def _decode_on(self, until_s: float, lazy: bool = False, is_due: bool = False) -> bool:
        """Decode while nobody waits, arrives or runs short of blocks, whoever ends; False where nothing could be run.

        If `lazy`, only until it is certain that nobody ends before `until_s`; if somebody `is_due`, from then on.

        Everybody gets a token in each step, whatever the policy (see `plimsoll.engine.policy`). A stretch that an
        arrival cuts short goes on for one more step: it was planned before.
        """
        lane, model, arrival_s, size = self.lane, self.model, self.next_arrival_s, self.block_size
        ends, logs = lane.ends, self.log is not None
        stop_s = arrival_s if arrival_s < until_s else until_s
        planned_s, end_s, begin = self.now_s, self.busy_until_s, len(ends)
        num = begin
        while True:
            steps = lane.steps_to_finish() if lane.stale else lane.due - num
            if (steps // size + 1) * lane.num > self.free_blocks:
                steps = lane.steps_within(self.free_blocks, steps)
                if not steps:
                    break
            if lazy and not is_due and stop_s < arrival_s and (calm_s := self._calm_until_s(end_s, steps)) > until_s:
                self.calm_until_s = calm_s
                break
            is_due = False
            if end_s > planned_s:
                planned_s = end_s
            if logs and self.lingering:
                end_s = self._decode_once(planned_s)
                num += 1
                self.let_go(self.lingering)
                self.lingering = NOBODY
            else:
                first = self.take_first() if self.lingering else 0
                end_s = lane.decode(model, planned_s, steps, stop_s)
                ran = len(ends) - num
                self.free_blocks -= lane.blocks_for(num, ran) - first
                num += ran
                if ran > 1:
                    planned_s = ends[-2]
                if ran < steps and planned_s < arrival_s and end_s < until_s:
                    if logs:
                        self.now_s = planned_s
                        self._write_log()
                    planned_s = end_s
                    end_s = self._decode_once(end_s)
                    num += 1
            if lane.due <= num:
                self._take_finished()
            if logs:
                self.now_s = planned_s
                self._write_log()
            if planned_s >= arrival_s or end_s >= until_s or not lane.num:
                break
        if num == begin:
            return lazy and self.calm_until_s > until_s
        self.now_s, self.busy_until_s = planned_s, end_s
        self._got_none = NOBODY
        return True

    def _calm_until_s(self, begin_s: float, steps: int) -> float:
        """A time before which so many steps in which all decode are not over, if they begin then."""
        lane = self.lane
        read, grown = lane.read, lane.grow * (steps - 1)
        base_s, per_token_s, below = self.calm_line = self.model.decode_line(lane.num, read)
        mean = read + 0.5 * grown if read + grown < below and not lane.crossings else read
        return begin_s + steps * (base_s + per_token_s * mean) * BELOW_ROUNDING

    def _holds_behind(self, plan: StepPlan, num_decode: int) -> bool:
        """Whether a plan of decodes holds for one more step behind somebody's last, whose result is not in yet.

        So it does where only results could change it, and where there is nobody else. Not where steps are watched.
        """
        if not self.lingering or plan.chunks or plan.interrupts or self.log is not None or self.observer is not None:
            return False
        others = self.waiting or self.prefilling or self.next_arrival_s <= self.now_s
        return num_decode < self.config.max_num_batched_tokens and not (plan.wakes_on_arrival and others)

    def _decode_behind(self, until_s: float) -> bool:
        """Run that step, if it begins in time and there are blocks for it."""
        lane, size = self.lane, self.block_size
        if not lane.num or self.now_s >= until_s or lane.hist[-len(lane.ends) % size] > self.free_blocks:
            return False
        self.now_s = self._decode_once(self.now_s)
        if lane.due <= len(lane.ends):
            self._take_finished()
        return True

    def _decode_once(self, begin_s: float) -> float:
        """One step in which everybody decodes; its end."""
        lane = self.lane
        self.free_blocks -= lane.hist[-len(lane.ends) % self.block_size]
        base_s, per_token_s, _ = self.model.decode_line(lane.num, lane.read)
        end_s = begin_s + (base_s + per_token_s * lane.read)
        lane.mixed(end_s)
        return end_s

    # -- results ---------------------------------------------------------------------------------------------------

    def _empty_step(self, plan: StepPlan) -> None:
        if self.observer is not None:
            self.observer.scheduled(self, plan, self.now_s)

    def take_first(self) -> int:
        """Decode-only steps are run for this replica: take the blocks of the first, and the results from before it.

        Returns:
            The number of blocks.
        """
        lane = self.lane
        blocks = lane.hist[-len(lane.ends) % self.block_size] if lane.num else 0
        self.free_blocks -= blocks
        if self.lingering:
            self.let_go(self.lingering)
            self.lingering = NOBODY
        self._got_none = NOBODY
        return blocks

    def _take_finished(self) -> None:
        """They linger until the results of their last step are taken."""
        if self.lingering:
            self.let_go(self.lingering)
        self.lingering = self.lane.take_finished()[0]
        self._lingers_from = len(self.lane.ends)

    def _in_flight(self, request: int) -> int:
        return 0 if request in self.prefilling or request in self._got_none else 1
