"""The general kernel: one replica of a serving system that is not of vLLM V1's family.

It carries out what `plimsoll.engine.general_plan` lets a policy answer, at a cost per event. Two lanes:

    lane          every step in which decodes run
    prompt_lane   steps of chunks alone, while decodes wait. The first token of a request is a slice in here, the rest a
                  slice in `lane`: so letting all decodes wait costs nothing

What happens at one instant is ordered as in `plimsoll.engine.replica`: results, arrivals, the next plan.
"""

from __future__ import annotations

from plimsoll.engine.general_cost import passes_s
from plimsoll.engine.general_plan import GeneralPlan
from plimsoll.engine.general_state import GeneralState
from plimsoll.engine.policy import Chunk, StepPlan
from plimsoll.engine.replica import INFINITE, NOBODY, SHORT_OF_BLOCKS
from plimsoll.engine.requests import KEY_BITS


class GeneralReplica(GeneralState):
    """The steps of one replica."""

    # -- the clock -------------------------------------------------------------------------------------------------

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        if self.running or self.waiting or self.swapped:
            return max(self.now_s, min(self.idle_until_s, self.next_arrival_s))
        return max(self.now_s, self.next_arrival_s)

    def advance(self, until_s: float, stop_at_finish: bool = False) -> None:
        """Run every step that starts before `until_s`; with `stop_at_finish` only up to one in which a request ends."""
        plan_step, lane, fixed, running = self.rules.plan, self.lane, self.fixed, self.running
        waiting, swapped = self.waiting, self.swapped
        attended = stop_at_finish or self.log is not None
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
            if fixed.outgrow[0] < (len(lane.ends) + 1) << KEY_BITS:
                self._find_outgrown()
            plan = plan_step(self)
            if plan.unusual or self.outgrown:
                self._unusual(plan, until_s)
            elif plan.chunks:
                if plan.holds > 1 or plan.fill:
                    self._chunk_run(plan, until_s, attended)
                else:
                    self._chunk_step(plan)
            elif lane.num and plan.decode:
                self._decode_run(plan, until_s)
            else:
                self._idle(plan, until_s)
            if attended:
                if self.log is not None:
                    self._write_log()
                if stop_at_finish and self.last_finished:
                    return

    def _idle(self, plan: GeneralPlan, until_s: float) -> None:
        """Nothing to do until somebody arrives or the policy wants to be asked again."""
        self.idle_until_s = max(plan.until_s, self.now_s)
        wake_s = min(plan.until_s, self.next_arrival_s, until_s)
        if not self.now_s < wake_s < INFINITE:
            raise AssertionError("the policy leaves requests waiting, with nothing running and nothing to wait for")
        self.now_s = wake_s

    # -- steps -----------------------------------------------------------------------------------------------------

    def _decode_run(self, plan: GeneralPlan, until_s: float) -> None:
        """A stretch of decode-only steps, to the next event."""
        if self.observer is not None or self.moved_blocks or self.pad_rows:
            self._special_decode_run(plan, until_s)
            return
        lane, free = self.lane, self.free_blocks
        begin = len(lane.ends)
        steps = lane.steps_to_finish()
        if plan.holds < steps:
            steps = plan.holds
        if plan.until_s < until_s:
            until_s = plan.until_s
        if plan.wakes_on_arrival and self.next_arrival_s < until_s:
            until_s = self.next_arrival_s
        if lane is self.fixed:
            steps = min(steps, (self.fixed.outgrow[0] >> KEY_BITS) - begin)
            self.now_s = lane.decode(self.model, self.now_s, steps, until_s)
        else:
            if lane.hist[-begin % self.block_size] > free:
                raise AssertionError(SHORT_OF_BLOCKS)
            if steps > 1 and (steps // self.block_size + 1) * lane.num > free - plan.spare:
                steps = lane.steps_within(max(free - plan.spare, 0), steps) or 1
            self.now_s = lane.decode(self.model, self.now_s, steps, until_s)
            self.free_blocks = free - lane.blocks_for(begin, len(lane.ends) - begin)
        if lane.due <= len(lane.ends):
            self._take_finished()

    def _special_decode_run(self, plan: GeneralPlan, until_s: float) -> None:
        """The same where somebody watches, blocks move in the first step, or rows of padding run along."""
        lane, free, observer, pad_rows = self.lane, self.free_blocks, self.observer, self.pad_rows
        begin = len(lane.ends)
        steps = min(lane.steps_to_finish(), plan.holds)
        if observer is not None or self.moved_blocks:
            steps = 1
        if lane is self.fixed:
            steps = min(steps, (self.fixed.outgrow[0] >> KEY_BITS) - begin)
        else:
            if lane.hist[-begin % self.block_size] > free:
                raise AssertionError(SHORT_OF_BLOCKS)
            if steps > 1:
                steps = lane.steps_within(max(free - plan.spare, 0), steps) or 1
        stop_s = min(until_s, plan.until_s)
        if plan.wakes_on_arrival:
            stop_s = min(stop_s, self.next_arrival_s)
        if observer is not None:
            self.free_blocks -= lane.blocks_for(begin, 1)
            observer.scheduled(self, plan, self.now_s)
        if self.moved_blocks:
            seconds = self.step_s(0, 0, 0, 0, 0, lane.num + pad_rows, lane.read) + self._moving_s()
            self.now_s += seconds
            lane.mixed(self.now_s)
        else:
            lane.num += pad_rows
            self.now_s = lane.decode(self.model, self.now_s, steps, stop_s)
            lane.num -= pad_rows
        if lane is not self.fixed:
            self.free_blocks = free - lane.blocks_for(begin, len(lane.ends) - begin)
        if lane.due <= len(lane.ends):
            self._take_finished()
        if observer is not None:
            observer.stepped(self, list(self.last_finished), self.now_s)

    def _chunk_step(self, plan: GeneralPlan) -> None:
        """One step with chunks: admit whom the plan lets in, take the memory, hand out the tokens."""
        lane, now_s = self.lane, self.now_s
        together = plan.decode or not lane.num
        if plan.pad_prompt or plan.pass_tokens:
            had = [(request, chunk, self.prefilling.get(request, 0)) for request, chunk in plan.chunks]
        if self.layers != ((1, None),):
            folded = self._fold(plan.chunks)
        tokens, pairs, read, complete = self._place(plan.chunks, together)
        if self.free_blocks < 0:
            raise AssertionError(SHORT_OF_BLOCKS)
        if self.layers != ((1, None),):
            pairs, read = folded
        if self.observer is not None:
            self.observer.scheduled(self, plan, now_s)
        num, decode_read = (lane.num + self.pad_rows, lane.read) if together else (0, 0)
        if plan.pad_prompt or plan.pass_tokens:
            seconds = passes_s(self, plan, had, (num, decode_read))
        else:
            seconds = self.step_s(tokens, len(plan.chunks), pairs, read, len(complete), num, decode_read)
        if self.moved_blocks:
            seconds += self._moving_s()
        self.last_prefill_s = seconds
        self.now_s = now_s = now_s + seconds
        if together:
            self._hand_out(now_s, complete)
        else:
            self._hand_out_first(now_s, complete)
        self.prefill_mark = len(lane.ends)
        if self.observer is not None:
            self.observer.stepped(self, list(self.last_finished), now_s)

    def _place(self, chunks: list[Chunk], together: bool) -> tuple[int, int, int, list[int]]:
        """Memory and progress of chunks: new tokens, attention pairs, context read, and who is complete.

        With `together` the decodes take theirs too.
        """
        prefilling, size, target = self.prefilling, self.block_size, self.requests.target
        if together:
            self.free_blocks -= self.lane.hist[-len(self.lane.ends) % size]
        tokens = twice_pairs = read = 0
        complete: list[int] = []
        for request, chunk in chunks:
            have = prefilling.get(request)
            if have is None:
                have = 0
                self._admit(request)
            total = have + chunk
            if self.by_page:
                self.free_blocks += -total // size - -have // size
            tokens += chunk
            read += have
            twice_pairs += chunk * (have + total + 1)
            if total < target[request]:
                prefilling[request] = total
            else:
                complete.append(request)
                prefilling.pop(request, None)
        return tokens, twice_pairs // 2, read, complete

    def _hand_out(self, end_s: float, complete: list[int]) -> None:
        """The end of a step in which everybody worked."""
        lane, requests = self.lane, self.requests
        lane.ends.append(end_s)
        lane.read += lane.grow
        if lane.crossings:
            lane.settle()
        for request in complete:
            lane.start(request, requests.target[request], requests.left[request] - 1)
        if lane.due <= len(lane.ends):
            self._take_finished()

    def _hand_out_first(self, end_s: float, complete: list[int]) -> None:
        """The end of a step of chunks alone: first tokens lie in the prompts' lane, the next in that of decodes."""
        lane, other, requests = self.lane, self.prompt_lane, self.requests
        other.ends.append(end_s)
        step = len(other.ends)
        finished = []
        for request in complete:
            left = requests.left[request] - 1
            if left:
                requests.early_slices.append((request, other.number, step - 1, step))
                lane.resume(request, requests.target[request], left)
            else:
                requests.lane[request], requests.slice_begin[request] = other.number, step - 1
                requests.last_step[request] = step - 1
                self.free_blocks += self._give_back(request)
                finished.append(request)
        if finished:
            self._leave(finished)

    def _chunk_run(self, plan: GeneralPlan, until_s: float, stop_at_finish: bool) -> None:
        """Chunks of one prompt, step after step, none of which ends it: to its last chunk, a shortage or a finish.

        With `plan.fill` the steps go on after a finish, with a chunk that is longer by the decodes that are gone.
        """
        if self.observer is not None or self.layers != ((1, None),) or plan.pass_tokens:
            self._chunk_step(plan)
            return
        request, chunk = plan.chunks[0]
        if request not in self.prefilling:
            self._admit(request)
            self.prefilling[request] = 0
        if self.lane.num and not plan.decode:
            self._lone_chunk_run(request, chunk, plan.holds, until_s)
            return
        lane, size, step_s, by_page = self.lane, self.block_size, self.step_s, self.by_page
        ends, hist, have, now_s, holds = lane.ends, lane.hist, self.prefilling[request], self.now_s, plan.holds
        begin, seconds = len(ends), 0.0
        while holds:
            pairs_of_chunk = chunk * (chunk + 1) // 2
            last = min(len(ends) + holds, lane.due)
            while len(ends) < last:
                free = self.free_blocks - hist[-len(ends) % size]
                if by_page:
                    free += -(have + chunk) // size - -have // size
                if free < (plan.spare if len(ends) > begin else 0):
                    if len(ends) == begin:
                        raise AssertionError(SHORT_OF_BLOCKS)
                    holds = 0
                    break
                self.free_blocks = free
                seconds = step_s(chunk, 1, chunk * have + pairs_of_chunk, have, 0, lane.num, lane.read)
                now_s += seconds
                ends.append(now_s)
                have += chunk
                lane.read += lane.grow
                if now_s >= until_s:
                    holds = 0
                    break
            if lane.due > len(ends):
                break
            self._take_finished()
            if stop_at_finish or not plan.fill or not holds:
                break
            chunk = plan.fill - lane.num
            holds = (self.requests.target[request] - have - 1) // chunk
        self.prefilling[request], self.now_s = have, now_s
        self.last_prefill_s, self.prefill_mark = seconds, len(ends)

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
        else:
            self._empty_step(plan)
        for request, cached, remaining in paused:
            lane.resume(request, cached, remaining)
        self.preempted = self.paused = ()

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
