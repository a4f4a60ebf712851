"""Steps of the general kernel: runs of decodes, and one step with chunks."""

from __future__ import annotations

from plimsoll.engine.general.cost import passes_s
from plimsoll.engine.general.plan import GeneralPlan
from plimsoll.engine.general.state import GeneralState
from plimsoll.engine.policy import Chunk
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.replica import SHORT_OF_BLOCKS
from plimsoll.engine.requests import KEY_BITS

LOOK_AHEAD = 8
"""Arrivals that are looked at in search of one that fits."""


class GeneralSteps(GeneralState):
    """What a plan's step does to the state."""

    def _decode_run(self, plan: GeneralPlan, until_s: float) -> None:
        """A stretch of decode-only steps, to the next event."""
        if self.observer is not None or self.moved_blocks or self.pad_rows:
            self._special_decode_run(plan, until_s)
            return
        lane = self.lane
        ends = lane.ends
        begin = len(ends)
        if plan.holds == 1:
            self._decode_once(lane)
            return
        steps = lane.steps_to_finish()
        if plan.holds < steps:
            steps = plan.holds
        if plan.until_s < until_s:
            until_s = plan.until_s
        if plan.wakes_on_arrival and self.next_arrival_s < until_s:
            if plan.wakes_within < 0 or self.log is not None:
                until_s = self.next_arrival_s
            elif plan.wakes_within:
                until_s = self._next_within(plan.wakes_within, until_s)
        if lane is self.fixed:
            full = (self.fixed.outgrow[0] >> KEY_BITS) - begin
            self.now_s = lane.decode(self.model, self.now_s, steps if steps < full else full, until_s)
        else:
            free, need = self.free_blocks, lane.hist[-begin % self.block_size]
            if need > free:
                raise AssertionError(SHORT_OF_BLOCKS)
            if steps > 1 and (steps // self.block_size + 1) * lane.num > free - plan.spare:
                steps = lane.steps_within(max(free - plan.spare, 0), steps) or 1
            self.now_s = lane.decode(self.model, self.now_s, steps, until_s)
            done = len(ends) - begin
            self.free_blocks = free - (need if done == 1 else lane.blocks_for(begin, done))
        if lane.due <= len(ends):
            self._take_finished()

    def calm_steps(self, plan: GeneralPlan) -> int:
        """For how many steps a plan of decodes holds, as far as blocks and finishes go; at least one."""
        lane, steps = self.lane, min(plan.holds, self.lane.steps_to_finish())
        if lane is self.fixed:
            return min(steps, (self.fixed.outgrow[0] >> KEY_BITS) - len(lane.ends))
        return lane.steps_within(max(self.free_blocks - plan.spare, 0), steps) or 1

    def _next_within(self, blocks: int, until_s: float) -> float:
        """When somebody comes whose reservation does not exceed `blocks`; or earlier, after some who are larger."""
        reserve, requests, size = self.rules.reserve, self.requests, self.block_size
        for at in range(self.num_arrived, min(self.num_arrived + LOOK_AHEAD, len(self.sent))):
            arrival_s = self.sent_s[at]
            if arrival_s >= until_s:
                return until_s
            if -(-reserve(requests, self.sent[at]) // size) <= blocks:
                return arrival_s
        return arrival_s

    def _decode_once(self, lane: Lane) -> None:
        """One decode-only step."""
        ends, read = lane.ends, lane.read
        if lane is not self.fixed:
            self.free_blocks -= lane.hist[-len(ends) % self.block_size]
            if self.free_blocks < 0:
                raise AssertionError(SHORT_OF_BLOCKS)
        base_s, per_token_s, _ = self.model.decode_line(lane.num, read)
        self.now_s = now_s = self.now_s + (base_s + per_token_s * read)
        ends.append(now_s)
        lane.read = read + lane.grow
        if lane.crossings:
            lane.settle()
        if lane.due <= len(ends):
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
        lane, now_s, chunks = self.lane, self.now_s, plan.chunks
        together = plan.decode or not lane.num
        folded = None if self.plain_attention else self._fold(chunks)
        tokens, pairs, read, complete = self._place(chunks, together)
        if self.free_blocks < 0:
            raise AssertionError(SHORT_OF_BLOCKS)
        if folded is not None:
            pairs, read = folded
        if self.observer is not None:
            self.observer.scheduled(self, plan, now_s)
        num, decode_read = (lane.num + self.pad_rows, lane.read) if together else (0, 0)
        if plan.pad_prompt or (plan.pass_tokens and (folded or tokens + num > plan.pass_tokens)):
            seconds = passes_s(self, plan, (num, decode_read))
        else:
            seconds = self.step_s(tokens, len(chunks), pairs, read, len(complete), num, decode_read)
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

    def _serve_decodes(self) -> None:
        """Take the blocks that the next step of the decodes needs."""
        self.free_blocks -= self.lane.hist[-len(self.lane.ends) % self.block_size]

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
