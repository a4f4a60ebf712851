"""One replica: queues, KV blocks and one stream of steps. Asks the policy what to do and carries it out.

Work is done when something happens: an arrival, an admission, a chunk, a finish, a shortage. What happens at one
instant is ordered: a step's results first (ends of prefills, then finishes), then arrivals, then the next plan. An
arrival at the very start of a step is seen by it.
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from plimsoll.core.step import ChunkLine
from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.replica_state import INFINITE, NOBODY, Observer, ReplicaState, window_pairs

__all__ = ["INFINITE", "NOBODY", "SHORT_OF_BLOCKS", "Observer", "Replica", "window_pairs"]

SHORT_OF_BLOCKS = "the policy planned a step that its blocks do not suffice for"
NO_CHUNK_LINE: ChunkLine = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1)


@mypyc_attr(allow_interpreted_subclasses=True)
class Replica(ReplicaState):
    """The clock and the steps of one replica."""

    __slots__ = ()

    # -- the clock -------------------------------------------------------------------------------------------------

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        if self.seated or self.waiting:
            return self.now_s
        return max(self.now_s, self.next_arrival_s)

    def advance(self, until_s: float, stop_at_finish: bool = False) -> None:
        """Run every step that starts before `until_s`; with `stop_at_finish` only up to one in which a request ends."""
        plan_step, lane, running, waiting = self.policy.plan, self.lane, self.running, self.waiting
        target, prefilling = self.requests.target, self.prefilling
        attended = stop_at_finish or self.log is not None or self.observer is not None
        while True:
            now_s = self.now_s
            if self.next_arrival_s <= now_s:
                self._take_arrivals()
            if not running and not waiting:
                if self.next_arrival_s >= until_s:
                    return
                self.now_s = self.next_arrival_s
                continue
            if now_s >= until_s:
                return
            self.last_finished = NOBODY
            plan = plan_step(self)
            if plan.interrupts:
                self._interrupted(plan, until_s)
            elif plan.chunks:
                if plan.fill or plan.holds > 1:
                    self._part_way_steps(plan, until_s, attended)
                else:
                    self._mixed_step(plan)
                    if plan.then_fill and not attended and (request := plan.chunks[-1][0]) in prefilling:
                        left, chunk = target[request] - prefilling[request], plan.then_fill - lane.num
                        if 0 < chunk < left and self.now_s < until_s:
                            self.last_finished = NOBODY
                            self._run_chunks(request, chunk, (left - 1) // chunk, plan.then_fill, until_s, False)
            elif lane.num:
                self._decode(plan, until_s)
            else:
                self._empty_step(plan)
            if attended:
                if self.log is not None:
                    self._write_log()
                if stop_at_finish and self.last_finished:
                    return

    # -- steps -----------------------------------------------------------------------------------------------------

    def _decode(self, plan: StepPlan, until_s: float) -> None:
        """A stretch of decode-only steps, to the next event."""
        lane = self.lane
        steps = lane.steps_to_finish()
        if self.observer is not None:
            steps = 1
        elif plan.holds < steps:
            steps = plan.holds
        steps = lane.steps_within(self.free_blocks, steps)
        if not steps:
            raise AssertionError(SHORT_OF_BLOCKS)
        stop_s = until_s
        if plan.wakes_on_arrival and self.next_arrival_s < until_s:
            stop_s = self.next_arrival_s
        begin = len(lane.ends)
        if self.observer is not None:
            self.free_blocks -= lane.blocks_for(begin, 1)
            self.observer.scheduled(self, plan, self.now_s)
            self.now_s = lane.decode(self.model, self.now_s, 1, stop_s)
        else:
            self.now_s = lane.decode(self.model, self.now_s, steps, stop_s)
            self.free_blocks -= lane.blocks_for(begin, len(lane.ends) - begin)
        if lane.due <= len(lane.ends):
            self._take_finished()
        if self.observer is not None:
            self.observer.stepped(self, list(self.last_finished), self.now_s)

    def _decode_all(self, until_s: float) -> bool:
        """The same without a plan, where it is certain that everybody gets a token; False where blocks may be short."""
        lane, ends = self.lane, self.lane.ends
        begin, free = len(ends), self.free_blocks
        steps = lane.due - begin
        if steps < 1 or (steps // self.block_size + 1) * lane.num > free:
            return False
        stop_s = self.next_arrival_s
        self.now_s = lane.decode(self.model, self.now_s, steps, stop_s if stop_s < until_s else until_s)
        end = len(ends)
        self.free_blocks = free - lane.blocks_for(begin, end - begin)
        self.last_finished = NOBODY
        if lane.due <= end:
            self._take_finished()
        return True

    def _mixed_step(self, plan: StepPlan) -> None:
        """One step of chunks and decodes: admit whom the plan lets in, take the blocks, hand out the tokens."""
        lane, chunks, prefilling = self.lane, plan.chunks, self.prefilling
        size, requests = self.block_size, self.requests
        target = requests.target
        folded = None if self.plain_attention else self._fold(chunks)
        step = len(lane.ends)
        free = self.free_blocks - lane.hist[-step % size]
        tokens = twice_pairs = read = 0
        complete: list[int] = []
        for request, chunk in chunks:
            tokens += chunk
            if request in prefilling:
                total = (have := prefilling[request]) + chunk
                free += -total // size - -have // size
                read += have
                twice_pairs += chunk * (have + total + 1)
                if total < target[request]:
                    prefilling[request] = total
                else:
                    complete.append(request)
                    del prefilling[request]
            else:
                self._admit(request)
                free += -chunk // size
                twice_pairs += chunk * (chunk + 1)
                if chunk < target[request]:
                    prefilling[request] = chunk
                else:
                    complete.append(request)
        if free < 0:
            raise AssertionError(SHORT_OF_BLOCKS)
        self.free_blocks = free
        if self.observer is not None:
            self.observer.scheduled(self, plan, self.now_s)
        pairs = twice_pairs // 2
        if folded is not None:
            pairs, read = folded
        seconds = self.step_s(tokens, len(chunks), pairs, read, len(complete), lane.num, lane.read)
        if self.pipelined:
            self._launch(seconds, complete)
            return
        self.now_s = now_s = self.now_s + seconds
        lane.ends.append(now_s)
        lane.read += lane.grow
        if lane.crossings:
            lane.settle()
        for request in complete:
            lane.start(request, target[request], requests.left[request] - 1)
        if lane.due <= step + 1:
            self._take_finished()
        if self.observer is not None:
            self.observer.stepped(self, list(self.last_finished), now_s)

    def _launch(self, seconds: float, complete: list[int]) -> None:
        """Where there are stages: put a step of so many seconds a stage on its way; its tokens come later."""
        raise NotImplementedError

    def _part_way_steps(self, plan: StepPlan, until_s: float, stop_at_finish: bool) -> None:
        """Chunks of one prompt, step after step, none of which ends it: up to its last chunk, a shortage or a finish.

        With `plan.fill` the steps go on after a finish, with a chunk that is longer by the decodes that are gone.
        """
        if self.observer is not None:
            self._mixed_step(plan)
            return
        request, chunk = plan.chunks[0]
        if request not in self.prefilling:
            self._admit(request)
            self.prefilling[request] = 0
        begin = len(self.lane.ends)
        self._run_chunks(request, chunk, plan.holds, plan.fill, until_s, stop_at_finish)
        if len(self.lane.ends) == begin:
            raise AssertionError(SHORT_OF_BLOCKS)

    def _run_chunks(
        self, request: int, chunk: int, holds: int, fill: int, until_s: float, stop_at_finish: bool
    ) -> None:
        """Up to `holds` steps with a chunk of one prompt each, as far as there are blocks.

        With `fill` they go on after a finish, with a chunk that is longer by the decodes that are gone.
        """
        lane, size = self.lane, self.block_size
        ends, hist, crossings = lane.ends, lane.hist, lane.crossings
        have, now_s = self.prefilling[request], self.now_s
        free = self.free_blocks - -have // size  # as if this prompt held none
        step = len(ends)
        while holds:
            read, grow = lane.read, lane.grow
            pairs_of_chunk = chunk * (chunk + 1) // 2
            last = step + holds
            if lane.due < last:
                last = lane.due
            line = self.chunk_lines.get((chunk, lane.num)) or self._new_chunk_line(chunk)
            fixed_s, prompt_s, pair_s, context_s, base_s, slope_s, below = line
            while step < last:
                free -= hist[-step % size]
                if free < -(-(have + chunk) // size):
                    free += hist[-step % size]
                    break
                if read < below:
                    prompt = prompt_s + pair_s * (chunk * have + pairs_of_chunk) + context_s * have
                    now_s += fixed_s + prompt + (base_s + slope_s * read)
                else:
                    now_s += self._chunk_s(request, chunk, have, read)
                ends.append(now_s)
                step += 1
                have += chunk
                read += grow
                if crossings:
                    lane.settle()
                    grow = lane.grow
                if now_s >= until_s:
                    break
            lane.read = read
            if lane.due > step:
                break
            self.free_blocks = free + -have // size
            self._take_finished()
            free = self.free_blocks - -have // size
            if stop_at_finish or not fill or now_s >= until_s:
                break
            chunk = fill - lane.num
            holds = (self.requests.target[request] - have - 1) // chunk
            if holds:
                self.last_finished = NOBODY  # they are seen by the end of the next step
        self.free_blocks = free + -have // size
        self.prefilling[request], self.now_s = have, now_s

    def _chunk_s(self, request: int, chunk: int, have: int, read: int) -> float:
        """Seconds of one step with a part-way chunk behind `have` tokens, beside decodes that read `read` tokens."""
        if self.plain_attention:
            folded = chunk * have + chunk * (chunk + 1) // 2, have
        else:
            folded = self._fold([(request, chunk)], have)
        return self.step_s(chunk, 1, *folded, 0, self.lane.num, read)

    def _new_chunk_line(self, chunk: int) -> ChunkLine:
        """The line of such steps with as many decodes as there are now; one that holds nowhere where there is none."""
        line = NO_CHUNK_LINE if self.chunk_line is None else self.chunk_line(chunk, self.lane.num, 0)
        self.chunk_lines[chunk, self.lane.num] = line
        return line

    def _empty_step(self, plan: StepPlan) -> None:
        if self.observer is not None:
            self.observer.scheduled(self, plan, self.now_s)
        self.now_s += self.step_s(0, 0, 0, 0, 0, 0, 0)
        self.lane.mixed(self.now_s)
        if self.observer is not None:
            self.observer.stepped(self, [], self.now_s)

    def _interrupted(self, plan: StepPlan, until_s: float) -> None:
        """A step before which some requests lose their KV, or in which some decodes wait."""
        self.preempted, self.paused = plan.preempt, plan.pause
        for request in plan.preempt:
            self._preempt(request)
        paused = [(request, self.cached_tokens(request), self.lane.remaining(request)) for request in plan.pause]
        for request, cached, _ in paused:
            self._end_slice(request)
            self.lane.stop(request, cached)
        if plan.chunks:
            self._mixed_step(plan)
        elif self.lane.num:
            self._decode(StepPlan([], holds=1), until_s)
        else:
            self._empty_step(plan)
        for request, cached, remaining in paused:
            self.lane.resume(request, cached, remaining)
        self.preempted = self.paused = ()
