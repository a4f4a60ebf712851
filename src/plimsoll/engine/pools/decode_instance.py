"""DistServe's decode instances: what they do by themselves. When they accept KV is the business of the bridge."""

from __future__ import annotations

from collections import deque

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import UNLIMITED
from plimsoll.engine.pools.disaggregated import Machine
from plimsoll.engine.replicas.replica import INFINITE, Observer
from plimsoll.engine.requests import Requests


class DecodeInstance(Machine):
    """A machine that accepts KV while it has room for it, decodes, and swaps out the last when it has none.

    Attributes:
        waiting: requests whose KV is here, and who have not begun to decode.
        waiting_blocks: of those, and of those whose KV is on its way here.
        swapped: requests whose KV is in host memory: (request, KV tokens, tokens to come), in the order they left.
        swap_s_per_token: between the machine and host memory.
    """

    __slots__ = ("swap_s_per_token", "swapped", "waiting_blocks")

    by_page = True

    def __init__(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None
    ) -> None:
        super().__init__(requests, config, model, number, observer)
        self.waiting_blocks = 0
        self.swapped: deque[tuple[int, int, int]] = deque()
        self.swap_s_per_token = 0.0

    def free_after(self, step: int) -> int:
        """Free blocks at the end of a step that was run ahead."""
        lane = self.lane
        return self.free_blocks + lane.blocks_for(step + 1, len(lane.ends) - step - 1)

    def next_s(self) -> float:
        """When it next has results, or KV to begin with."""
        if self.busy:
            return self.now_s
        return self.coming[0][0] if self.coming else INFINITE

    def bring_up(self, before_s: float, until_s: float) -> None:
        """Run all steps that begin before `before_s`, and on to the next event, but none that begins at `until_s`."""
        coming, begin_s = self.coming, self.now_s
        while begin_s < before_s:
            if self.busy:
                self.take_results()
            if self.begin(begin_s, until_s):
                begin_s = self.now_s
            elif coming:
                begin_s = coming[0][0]
            else:
                return

    def take_results(self) -> int:
        """A step, or several, are over; returns how many requests got their last token."""
        self.busy = False
        lane, running = self.lane, self.running
        finished: list[int] = []
        if lane.due <= len(lane.ends):
            finished, blocks = lane.take_finished()
            if self.cache is not None:
                blocks = self._let_go(finished)
            self.free_blocks += blocks
            for request in finished:
                del running[request]
        if self.attended:
            while self.coming and self.coming[0][0] < self.now_s:
                self.waiting.append(self.coming.popleft()[1])
            self.stepped(finished)
        return len(finished)

    def _let_go(self, finished: list[int]) -> int:
        """Let go of the blocks of those who have their last token; returns how many are free by that."""
        cache, final = self.cache, self.requests.final
        assert cache is not None
        cache.level(self.free_blocks)
        gained = 0
        for request in finished if len(finished) == 1 else [one for one in self.running if one in set(finished)]:
            gained += self.let_go(request, self.blocks(final[request]))
        return gained

    def accept(self, request: int, now_s: float) -> tuple[int, int]:
        """KV begins to move to this machine, which has a cache; returns the tokens that do, and the blocks it takes."""
        cache = self.cache
        assert cache is not None
        cache.level(self.free_after(self.next_end(now_s)) if self.busy else self.free_blocks)
        cache.receive(now_s, including=False)
        free = cache.num_free
        tokens = cache.accept(request, self.blocks(self.requests.prompt[request]))
        return tokens, free - cache.num_free

    def begin(self, now_s: float, until_s: float) -> bool:
        """Rule 4, then admissions, then steps, if there are any to begin."""
        lane, coming, waiting, moved = self.lane, self.coming, self.waiting, 0
        while coming and coming[0][0] <= now_s:
            waiting.append(coming.popleft()[1])
        if self.free_blocks < lane.hist[-len(lane.ends) % self.block_size]:
            moved = self._swap_out()
        elif self.preempted:
            self.preempted = ()
        if self.swapped:
            moved += self._swap_in()
        if waiting:
            self._admit_waiting()
        if not lane.num:
            return False
        if moved:
            self.begin_mixed([], now_s, moved * self.swap_s_per_token)
            return True
        steps = UNLIMITED
        if waiting or self.swapped:
            if len(self.running) < self.config.max_num_seqs:
                steps = 1
        elif coming and coming[0][0] < until_s:
            until_s = coming[0][0]
        self.begin_decodes(now_s, steps, until_s)
        return True

    def _swap_out(self) -> int:
        """Make room for the next step; returns the KV tokens that leave."""
        moved, lane, left, cache = 0, self.lane, [], self.cache
        if cache is not None:
            cache.level(self.free_blocks)
            cache.receive(self.now_s, including=True)
        while self.free_blocks < lane.blocks_for(len(lane.ends), 1):
            request = next(reversed(self.running))
            cached, remaining = self.stop_decoding(request)
            self.swapped.append((request, cached, remaining))
            blocks = self.blocks(cached)
            self.free_blocks += blocks if cache is None else cache.let_go(request, blocks, cached)
            del self.running[request]
            self.requests.preemptions[request] += 1
            moved += cached
            left.append(request)
        self.preempted = tuple(left)
        return moved

    def _swap_in(self) -> int:
        """Those in host memory come back as far as there is room; returns the KV tokens that do."""
        moved, lane, running = 0, self.lane, self.running
        while self.swapped and len(running) < self.config.max_num_seqs:
            request, cached, remaining = self.swapped[0]
            if self.blocks(cached + 1) + lane.hist[-len(lane.ends) % self.block_size] > self.free_blocks:
                break
            self.swapped.popleft()
            if self.cache is not None:
                self.cache.level(self.free_blocks)
                self.cache.take_back(request, self.blocks(cached))
            self.free_blocks -= self.blocks(cached)
            running[request] = None
            lane.resume(request, cached, remaining)
            moved += cached
        return moved

    def _admit_waiting(self) -> None:
        """Those whose KV is here begin to decode, as far as there is room for their next token."""
        lane, requests, running, waiting = self.lane, self.requests, self.running, self.waiting
        seats, size, step = self.config.max_num_seqs, self.block_size, len(lane.ends)
        while waiting and len(running) < seats and not (self.swapped and running):
            request = waiting[0]
            prompt = requests.prompt[request]
            if lane.hist[-step % size] + (prompt % size == 0) > self.free_blocks:
                break
            waiting.popleft()
            self.waiting_blocks -= -(-prompt // size)
            running[request] = None
            lane.start(request, prompt, requests.output[request] - 1)
            requests.slice_begin[request] = step
