"""The general kernel: one replica of a serving system that is not of vLLM V1's family.

It carries out what `plimsoll.engine.general.plan` lets a policy answer, at a cost per event. Two lanes:

    lane          every step in which decodes run
    prompt_lane   steps of chunks alone, while decodes wait. The first token of a request is a slice in here, the rest a
                  slice in `lane`: so letting all decodes wait costs nothing

What happens at one instant is ordered as in `plimsoll.engine.replicas.replica`: results, arrivals, the next plan.
"""

from __future__ import annotations

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.general.pipeline import Stages
from plimsoll.engine.general.plan import GeneralPlan
from plimsoll.engine.general.steps import GeneralSteps
from plimsoll.engine.policy import Policy, StepPlan
from plimsoll.engine.replicas.replica import INFINITE, NOBODY, SHORT_OF_BLOCKS, Observer
from plimsoll.engine.requests import KEY_BITS, Requests

Paused = tuple[int, int, int]
"""A decode that waits: request, tokens in place, tokens to come."""


class GeneralReplica(GeneralSteps):
    """The clock of one replica, and what is more than one plain step.

    Attributes:
        stages: its pipeline, where the step model has several stages (see `plimsoll.engine.general.pipeline`).
    """

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer)
        self.stages: Stages | None = None
        if model.num_stages > 1:
            self.seated = {}
            self.stages = stages = Stages(self, model.num_stages)
            pairs = zip(stages.decode_lanes, stages.prompt_lanes, strict=True)
            self.lanes = [lane for pair in pairs for lane in pair]
            stages.enter(0)

    # -- the clock -------------------------------------------------------------------------------------------------

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        if self.stages is not None:
            return super().next_step_s()
        if self.running or self.waiting or self.swapped:
            return max(self.now_s, min(self.idle_until_s, self.next_arrival_s))
        return max(self.now_s, self.next_arrival_s)

    def advance(self, until_s: float, stop_at_finish: bool = False) -> None:
        """Run every step that starts before `until_s`; with `stop_at_finish` only up to one in which a request ends."""
        if self.stages is not None:
            self.stages.advance(until_s, stop_at_finish)
            return
        rules, lane, running = self.rules, self.lane, self.running
        waiting, swapped, outgrow, ends = self.waiting, self.swapped, self.fixed.outgrow, lane.ends
        reserves = lane is self.fixed
        attended = stop_at_finish or self.log is not None or self.observer is not None or not self.plain_attention
        while True:
            now_s = self.now_s
            if self.next_arrival_s <= now_s:
                self._take_arrivals()
            if not running and not waiting and not swapped:
                if self.next_arrival_s >= until_s:
                    return
                self.now_s = self.next_arrival_s
                continue
            if now_s >= until_s:
                return
            self.last_finished = NOBODY
            if reserves and outgrow[0] < (len(ends) + 1) << KEY_BITS:
                self._find_outgrown()
            plan = rules.plan(self)
            if plan.unusual or self.outgrown:
                self._unusual(plan, until_s)
            elif plan.chunks:
                if plan.holds > 1 or plan.fill:
                    self._chunk_run(plan, until_s, attended)
                else:
                    self._chunk_step(plan)
                    if plan.then_fill and not attended and plan.chunks[-1][0] in self.prefilling:
                        self._then_fill(plan, until_s)
            elif lane.num and plan.decode:
                self._decode_run(plan, until_s)
                if plan.then_once and self.last_finished and not attended:
                    self._then_once(until_s)
            else:
                self._idle(plan, until_s)
            if attended and self._ends_with(stop_at_finish):
                return

    def _ends_with(self, a_finish: bool) -> bool:
        """Write down what the step leaves; whether `advance` ends with it, where it ends with a finish."""
        if self.log is not None:
            self._write_log()
        return a_finish and bool(self.last_finished)

    def _idle(self, plan: GeneralPlan, until_s: float) -> None:
        """Nothing to do until somebody arrives or the policy wants to be asked again."""
        self.idle_until_s = max(plan.until_s, self.now_s)
        wake_s = min(plan.until_s, self.next_arrival_s, until_s)
        if not self.now_s < wake_s < INFINITE:
            raise AssertionError("the policy leaves requests waiting, with nothing running and nothing to wait for")
        self.now_s = wake_s

    # -- runs of chunks --------------------------------------------------------------------------------------------

    def _chunk_run(self, plan: GeneralPlan, until_s: float, stop_at_finish: bool) -> None:
        """Chunks of one prompt, step after step, none of which ends it: to its last chunk, a shortage or a finish.

        With `plan.fill` the steps go on after a finish, with a chunk that is longer by the decodes that are gone.
        """
        if self.observer is not None or not self.plain_attention or plan.pass_tokens:
            self._chunk_step(plan)
            return
        request, chunk = plan.chunks[0]
        if request not in self.prefilling:
            self._admit(request)
            self.prefilling[request] = 0
        if self.lane.num and not plan.decode:
            self._lone_chunk_run(request, chunk, plan.holds, until_s)
            return
        begin = len(self.lane.ends)
        self._go_on_filling(plan, chunk, 0, until_s, stop_at_finish)
        if len(self.lane.ends) == begin:
            raise AssertionError(SHORT_OF_BLOCKS)

    def _then_fill(self, plan: GeneralPlan, until_s: float) -> None:
        """Go on with a prompt whose first part filled a step (see `GeneralPlan`)."""
        request = plan.chunks[-1][0]
        chunk, target = plan.then_fill - self.lane.num, self.requests.target[request]
        if 0 < chunk < target - self.prefilling[request] and self.now_s < until_s:
            plan.spare = -(-target // self.block_size)
            self._go_on_filling(plan, chunk, plan.spare, until_s, False)

    def _then_once(self, until_s: float) -> None:
        """Let those who are left decode once more (see `GeneralPlan`)."""
        if self.waiting and self.lane.num and self.now_s < until_s and self.decode_need <= self.free_blocks:
            self.last_finished = NOBODY
            self.rules.goes_on()
            self._decode_once(self.lane)

    def _go_on_filling(self, plan: GeneralPlan, chunk: int, spare: int, until_s: float, stop_at_finish: bool) -> None:
        """Chunks of the last prompt of a plan, as long as `spare` blocks are left in the first step and then its own.

        NOTE: in one piece, as in `Replica._run_chunks`.
        """
        lane, size, target, fill = self.lane, self.block_size, self.requests.target, plan.fill or plan.then_fill
        request = plan.chunks[-1][0]
        ends, hist, have, now_s = lane.ends, lane.hist, self.prefilling[request], self.now_s
        holds = (target[request] - have - 1) // chunk if plan.then_fill else plan.holds
        paged = have if self.by_page else 0
        free = self.free_blocks - -paged // size  # as if this prompt held none
        step, seconds = len(ends), 0.0
        while holds:
            read, grow, page = lane.read, lane.grow, chunk if self.by_page else 0
            pairs_of_chunk = chunk * (chunk + 1) // 2
            begin, last = step, step + holds
            if lane.due < last:
                last = lane.due
            line = self.chunk_lines.get((chunk, lane.num)) or self._new_chunk_line(chunk)
            fixed_s, prompt_s, pair_s, context_s, base_s, slope_s, below = line
            while step < last:
                paged += page
                free -= hist[-step % size]
                if free + -paged // size < spare:
                    free += hist[-step % size]
                    paged -= page
                    holds = 0
                    break
                pairs = chunk * have + pairs_of_chunk
                if read < below:
                    seconds = fixed_s + (prompt_s + pair_s * pairs + context_s * have) + (base_s + slope_s * read)
                else:
                    seconds = self.step_s(chunk, 1, pairs, have, 0, lane.num, read)
                now_s += seconds
                ends.append(now_s)
                step += 1
                have += chunk
                read += grow
                spare = plan.spare
                if now_s >= until_s:
                    holds = 0
                    break
            lane.read = read
            if step > begin:
                self.last_finished = NOBODY  # who ended before is seen by now
            if lane.due > step:
                break
            self.free_blocks = free + -paged // size
            self._take_finished()
            free = self.free_blocks - -paged // size
            if stop_at_finish or not fill or not holds:
                break
            chunk = fill - lane.num
            holds = (target[request] - have - 1) // chunk
        self.free_blocks = free + -paged // size
        self.prefilling[request], self.now_s = have, now_s
        if seconds:
            self.last_prefill_s, self.prefill_mark = seconds, step

    def _lone_chunk_run(self, request: int, chunk: int, steps: int, until_s: float) -> None:
        """As many chunks of one prompt, while all decodes wait."""
        ends, have, now_s, step_s = self.prompt_lane.ends, self.prefilling[request], self.now_s, self.step_s
        size, seconds = self.block_size, 0.0
        pairs_of_chunk = chunk * (chunk + 1) // 2
        for _ in range(steps):
            if self.by_page:
                self.free_blocks += -(have + chunk) // size - -have // size
            seconds = step_s(chunk, 1, chunk * have + pairs_of_chunk, have, 0, 0, 0)
            now_s += seconds
            ends.append(now_s)
            have += chunk
            if now_s >= until_s:
                break
        if self.free_blocks < 0:
            raise AssertionError(SHORT_OF_BLOCKS)
        self.prefilling[request], self.now_s = have, now_s
        self.last_prefill_s, self.prefill_mark = seconds, len(self.lane.ends)

    def _unusual(self, plan: GeneralPlan, until_s: float) -> None:
        """A step before which requests give up or get back memory, or in which some decodes wait."""
        lane = self.lane
        self.preempted, self.paused = plan.preempt, plan.pause
        for eviction in plan.evict:
            self.evict(eviction)
        if any(request in self.running for request in self.outgrown):
            raise AssertionError("the policy lets requests decode that have filled their reservation")
        self.outgrown = []
        for request in plan.swap_in:
            self._swap_in(request)
        paused = [(request, self.cached_tokens(request), lane.remaining(request)) for request in plan.pause]
        for request, cached, _ in paused:
            self._end_slice(request)
            lane.stop(request, cached)
        if plan.chunks:
            self._chunk_step(plan)
        elif lane.num and plan.decode:
            holds, plan.holds = plan.holds, 1 if paused else plan.holds
            self._decode_run(plan, until_s)
            plan.holds = holds
            if plan.all_wait and self.observer is None:
                self._wait_for_blocks(paused, until_s)
        else:
            self._empty_step(plan)
        for request, cached, remaining in paused:
            lane.resume(request, cached, remaining)
        self.preempted = self.paused = ()

    def _wait_for_blocks(self, paused: list[Paused], until_s: float) -> None:
        """After a step that took the last block: decodes without those who come to need one, to the next finish."""
        lane, size, requests = self.lane, self.block_size, self.requests
        final, finish_key, out = requests.final, requests.finish_key, {request for request, _, _ in paused}
        out.update(self.prefilling)
        needy: list[list[int]] = [[] for _ in range(size)]  # in step s those of -s: they have whole blocks by then
        for request in self.running:
            if request not in out:
                needy[(final[request] - (finish_key[request] >> KEY_BITS) - 1) % size].append(request)
        while not self.last_finished and self.now_s < until_s:
            step = len(lane.ends)
            waiting, needy[-step % size] = needy[-step % size], []
            if len(waiting) == lane.num:
                return
            if self.log is not None:
                self._write_log()
                if self.next_arrival_s <= self.now_s:
                    self._take_arrivals()
            for request in waiting:
                cached = self.cached_tokens(request)
                paused.append((request, cached, lane.remaining(request)))
                self._end_slice(request)
                lane.stop(request, cached)
            steps = 1
            while self.log is None and steps < size and not needy[(-step - steps) % size]:
                steps += 1
            self.now_s = lane.decode(self.model, self.now_s, min(steps, lane.steps_to_finish()), until_s)
            if lane.due <= len(lane.ends):
                self._take_finished()

    def _empty_step(self, plan: StepPlan) -> None:
        """Nobody works: the scheduler has run, and blocks may have moved, for nothing."""
        if self.observer is not None:
            self.observer.scheduled(self, plan, self.now_s)
        self.now_s += self.step_s(0, 0, 0, 0, 0, 0, 0) + self._moving_s()
        self.prompt_lane.ends.append(self.now_s)  # not a step of those who decode
        if self.observer is not None:
            self.observer.stepped(self, [], self.now_s)

    def _find_outgrown(self) -> None:
        self.outgrown = [request for request in self.fixed.take_outgrown() if request not in self.prefilling]
