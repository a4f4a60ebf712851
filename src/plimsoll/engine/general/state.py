"""The state of a replica of the general kernel: what policies see of it, and the life of a request in it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from typing import cast

from plimsoll.core.errors import InputError
from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.general.lane import FixedLane, NumberQueue, SortedQueue
from plimsoll.engine.general.plan import Eviction, GeneralPolicy, setting
from plimsoll.engine.policy import Policy
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.longest import lane_for
from plimsoll.engine.replicas.replica import Observer, Replica
from plimsoll.engine.requests import KEY_BITS, Requests


class GeneralState(Replica):
    """Who waits, runs, is swapped out or done, and what memory they hold."""

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
        self.rules = rules = cast(GeneralPolicy, policy)
        if model.num_stages > 1 and not setting(rules, "pipelined"):
            raise InputError("--pp", model.num_stages, f"the engine {config.policy} runs on one stage only")
        self.fixed: FixedLane = FixedLane(requests, 2 * number, config.block_size, self.layers)
        memory = setting(rules, "memory")
        if memory == "fixed":
            self.lane = self.fixed
        else:
            self.lane = lane_for(model)(requests, 2 * number, config.block_size, self.layers)
        self.prompt_lane = Lane(requests, 2 * number + 1, config.block_size, self.layers)
        self.lanes = [self.lane, self.prompt_lane]
        self.is_keyed = bool(setting(rules, "keyed"))
        if self.is_keyed:
            queue = NumberQueue if setting(rules, "numbered") else SortedQueue
            self.waiting = cast("deque[int]", queue(functools.partial(rules.key, self)))
        self.by_page: bool = memory == "pages"
        self.swapped: dict[int, int] = {}
        self.outgrown: list[int] = []
        self.arrival_s: dict[int, float] = {}
        self.idle_until_s = 0.0
        self.moved_blocks = 0
        self.pad_rows = self.kept_blocks = 0
        self.kept: list[int] = []
        self.prefill_mark = 0
        self.last_prefill_s = 0.0
        self.is_static = bool(setting(rules, "static"))
        self.pads_rows = bool(setting(rules, "pads_rows"))
        self.returns_together = bool(setting(rules, "returns_together"))
        self.swap_block_s = float(setting(rules, "swap_block_s"))
        self.steps_together = bool(setting(rules, "steps_together"))
        self.tells_admitted = type(rules).admitted is not GeneralPolicy.admitted
        self.tells_released = type(rules).released is not GeneralPolicy.released

    # -- what policies and routers may ask -------------------------------------------------------------------------

    @property
    def num_decode(self) -> int:
        """Decoding requests."""
        return self.lane.num

    @property
    def decode_need(self) -> int:
        """Blocks that the next step of all decodes takes."""
        return self.lane.hist[-len(self.lane.ends) % self.block_size]

    def cached_tokens_of(self, requests: Sequence[int]) -> list[int]:
        """KV tokens in place of running requests."""
        if self.prefilling:
            return [self.cached_tokens(request) for request in requests]
        final, finish_key, high = self.requests.final, self.requests.finish_key, len(self.lane.ends) - 1
        return [final[request] + high - (finish_key[request] >> KEY_BITS) for request in requests]

    def decodes_in_need(self) -> list[int]:
        """Decodes whose next token needs a new block, in order of admission."""
        final, finish_key, prefilling, size = (
            self.requests.final,
            self.requests.finish_key,
            self.prefilling,
            self.block_size,
        )
        high = len(self.lane.ends) - 1
        return [
            request
            for request in self.running
            if not (final[request] + high - (finish_key[request] >> KEY_BITS)) % size and request not in prefilling
        ]

    @property
    def steps_since_prefill(self) -> int:
        """Decode steps since the last step with a chunk."""
        return len(self.lane.ends) - self.prefill_mark

    @property
    def last_end_s(self) -> float:
        """When its last step ended; infinite before the first."""
        return max((lane.ends[-1] for lane in self.lanes if lane.ends), default=float("inf"))

    def generated(self, request: int) -> int:
        """Tokens that a request has got, whether it runs, waits or is swapped out."""
        output: int = self.requests.output[request]
        if request in self.prefilling or request in self.swapped or request not in self.running:
            left: int = self.requests.left[request]
        else:
            left = self.lane.remaining(request)
        return output - left

    def held_blocks(self, request: int) -> int:
        """KV blocks that a running request holds."""
        if self.lane is self.fixed:
            return self.fixed.reserved[request]
        if request in self.prefilling and not self.by_page:
            target: int = self.requests.target[request]
            return -(-target // self.block_size)
        return -(-self.cached_tokens(request) // self.block_size)

    def outstanding(self, now_s: float) -> int:
        """Requests sent here and not answered by `now_s`."""
        return super().outstanding(now_s) + len(self.swapped) + len(self.kept)

    # -- the life of a request -------------------------------------------------------------------------------------

    def push(self, requests: Sequence[int], arrival_s: Sequence[float]) -> None:
        """Hand over requests, in order of arrival and after those handed over before."""
        super().push(requests, arrival_s)
        self.arrival_s.update(zip(requests, arrival_s, strict=True))

    def _admit(self, request: int) -> None:
        """From the queue into the running ones, with the memory that the policy's kind of admission takes."""
        waiting, requests = self.waiting, self.requests
        if not self.is_keyed and waiting[0] == request:
            waiting.popleft()
        else:
            waiting.remove(request)
        self.running[request] = None
        if self.pipelined:
            self.seated[request] = None
        if not requests.preemptions[request]:
            requests.scheduled_s[request] = self.now_s
        if self.lane is self.fixed:
            blocks = -(-self.rules.reserve(requests, request) // self.block_size)
            self.fixed.reserved[request] = blocks
            self.free_blocks -= blocks
        elif not self.by_page:
            self.free_blocks += -requests.target[request] // self.block_size
        if self.tells_admitted:
            self.rules.admitted(self, request)

    def seat(self, request: int, cached: int = 0) -> None:
        """Let the head of the queue run while the plan is still being made, with so many tokens in place."""
        self._admit(request)
        self.prefilling[request] = cached

    def _take_finished(self) -> None:
        """Let go of everybody whose last token the steps so far have brought."""
        taken, blocks = self.lane.take_finished()
        if self.is_static:
            self.kept_blocks += blocks
        else:
            self.free_blocks += blocks
        self._leave(taken)

    def _give_back(self, request: int) -> int:
        """Blocks that a request held which got its last token in a step of chunks alone."""
        if self.lane is self.fixed:
            return self.fixed.reserved.pop(request)
        return -(-self.requests.final[request] // self.block_size)

    def _leave(self, finished: list[int]) -> None:
        """Finished requests stop running; in a static batch their rows stay until the batch ends."""
        running = self.running
        for request in finished:
            del running[request]
        if self.tells_released:
            for request in finished:
                self.rules.released(self, request)
        if self.pipelined:
            for request in finished:
                del self.seated[request]
        if not self.is_static:
            self.last_finished = finished
            return
        self.kept += finished
        if self.pads_rows:
            self.pad_rows += len(finished)
        if not running:
            self._end_batch()

    def _end_batch(self) -> None:
        """The last row of a static batch is done: all memory comes back."""
        requests, number, last = self.requests, self.lane.number, len(self.lane.ends) - 1
        self.free_blocks += self.kept_blocks
        self.kept_blocks = self.pad_rows = 0
        if self.returns_together:
            for request in self.kept:
                begin, end = requests.slice_begin[request], requests.last_step[request]
                if begin < end < last:
                    requests.early_slices.append((request, number, begin, end))
                if end < last:
                    requests.slice_begin[request] = requests.last_step[request] = last
        self.last_finished, self.kept = self.kept, []

    def evict(self, eviction: Eviction) -> None:
        """Take a running request's memory: its KV is dropped, or moves to host memory."""
        request, mode, place = eviction
        requests, lane = self.requests, self.lane
        self._take_memory(request)
        cached = self.cached_tokens(request)
        if request in self.prefilling:
            assert mode == "recompute", "a part-way prefill cannot be swapped out"
            del self.prefilling[request]
        else:
            left = requests.left[request] = lane.remaining(request)
            self._end_slice(request)
            lane.stop(request, cached)
            if mode == "recompute":
                requests.target[request] = requests.prompt[request] + requests.output[request] - left
        self.fixed.reserved.pop(request, None)
        del self.running[request]
        requests.preemptions[request] += 1
        if self.tells_released:
            self.rules.released(self, request)
        if mode == "swap":
            self.swapped[request] = cached
            self.moved_blocks += -(-cached // self.block_size)
        elif place == "back":
            self.waiting.append(request)
        elif place == "front" or self.is_keyed:
            self.waiting.appendleft(request)
        else:
            at = 0
            for other in self.waiting:
                if other > request:
                    break
                at += 1
            self.waiting.insert(at, request)
        if self.pipelined:
            del self.seated[request]

    def _take_memory(self, request: int) -> None:
        """Free the blocks of a running request."""
        self.free_blocks += self.held_blocks(request)

    def _swap_in(self, request: int) -> None:
        """Bring a request's KV back from host memory, and let it decode from the next step on."""
        cached = self.swapped.pop(request)
        blocks = -(-cached // self.block_size)
        self.moved_blocks += blocks
        if self.lane is self.fixed:
            blocks = self.fixed.reserved[request] = -(-self.rules.reserve(self.requests, request) // self.block_size)
        self.free_blocks -= blocks
        self.running[request] = None
        self.lane.resume(request, cached, self.requests.left[request])
        if self.tells_admitted:
            self.rules.admitted(self, request)

    def _moving_s(self) -> float:
        """Seconds for the blocks that move between device and host before this step; they are moved then."""
        seconds = self.moved_blocks * self.swap_block_s
        self.moved_blocks = 0
        return seconds
