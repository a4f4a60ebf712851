"""The decode set of one stream of steps, as an aggregate.

Real engines loop over every running request in every step. Here a request that decodes costs something only when it
starts and when it stops:

    read      tokens that the next step's attention reads: the sum of all lengths, each with the token being written
    grow      by how much `read` grows from the next step to the one after
    hist      step s needs ``hist[-s mod block_size]`` blocks: a request needs a new block each block_size steps
    finish    a heap of finish keys (see `Requests.finish_key`), known when a request starts decoding, over a sentinel
              that is never reached. One number is compared several times faster than a tuple
    stale     keys in `finish` of requests that were stopped
    ended     whoever wants to know when requests ended, in order, puts a queue here
    counted   whoever wants to know what was expected of those who ended puts what is expected of each request here
    over      that, altogether
    due       after so many steps somebody may have finished: one more than the first step of `finish`
    crossings a heap of the steps in which a request fills an attention window, after which it reads no more

Step numbers index `ends`, so ``len(ends)`` is the next step.

NOTE: the methods that every request passes through work on attributes rather than on local copies, and are not split
up: most calls are for one request, and then both cost more than they save.
"""

from __future__ import annotations

from array import array
from collections import deque
from heapq import heappop, heappush
from typing import Final

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.columns import Floats
from plimsoll.core.step import AttentionLayers, StepModel
from plimsoll.engine.policy import COMPILED
from plimsoll.engine.requests import KEY_BITS, NEVER, Requests

REQUEST_OF_KEY = (1 << KEY_BITS) - 1
NOT_DUE = (1 << 30) - 2
"""A step that no run reaches, among the numbers that Python compares on its fast path."""
LONG_STRETCH: Final = 128
"""Decode steps in a row from which on numpy adds them up faster than a loop."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Lane:
    """One stream of steps: when each ended, and who decodes in it."""

    __slots__ = (
        "block_size", "counted", "crossings", "due", "ended", "ends", "finish", "full_weight", "grow", "hist", "num",
        "number", "over", "read", "requests", "stale", "windows",
    )  # fmt: skip

    def __init__(self, requests: Requests, number: int, block_size: int, layers: AttentionLayers) -> None:
        self.requests = requests
        self.number = number
        self.block_size = block_size
        self.full_weight = sum(weight for weight, window in layers if window is None)
        self.windows = tuple((weight, window) for weight, window in layers if window is not None)
        self.ends = array("d")
        self.num = 0
        self.read = 0
        self.grow = 0
        self.hist = [0] * block_size
        self.finish = [NOT_DUE << KEY_BITS]
        self.stale: set[int] = set()
        self.due = NOT_DUE + 1
        self.ended: deque[float] | None = None
        self.counted: list[int] | None = None
        self.over = 0
        self.crossings: list[tuple[int, int, int, int]] = []

    def start(self, request: int, done: int, remaining: int) -> None:
        """Let `request`, with `done` tokens in the cache, decode `remaining` tokens from the next step on.

        Its stretch begins with the last step, in which it got its first token, unless `resume` says otherwise. None
        remaining: that token was its last, and `take_finished` will return it.
        """
        requests, step = self.requests, len(self.ends)
        finish = step + remaining
        requests.slice_begin[request] = step - 1
        requests.lane[request] = self.number
        requests.finish_key[request] = key = (finish - 1) << KEY_BITS | request
        self.num += 1
        self.read += self.full_weight * (done + 1)
        self.grow += self.full_weight
        self.hist[(done - step) % self.block_size] += 1
        if self.windows:
            self._start_windows(request, done, key)
        if self.stale and key in self.stale:
            self.stale.remove(key)  # stopped and back in the same step: its old entries hold again
        else:
            heappush(self.finish, key)
        if finish < self.due:
            self.due = finish

    def resume(self, request: int, done: int, remaining: int) -> None:
        """The same for a request that has got its tokens before, and gets the next one in the next step."""
        self.start(request, done, remaining)
        self.requests.slice_begin[request] = len(self.ends)

    def _start_windows(self, request: int, done: int, key: int) -> None:
        for weight, window in self.windows:
            if done + 1 < window:
                self.read += weight * (done + 1)
                self.grow += weight
                if key not in self.stale:
                    heappush(self.crossings, (len(self.ends) + window - done - 1, request, key, weight))
            else:
                self.read += weight * window

    def stop(self, request: int, done: int) -> None:
        """Take `request` out; with `done` tokens in the cache its next step would have read ``done + 1``."""
        self.stale.add(self.requests.finish_key[request])
        self.num -= 1
        self.read -= self.full_weight * (done + 1)
        self.grow -= self.full_weight
        self.hist[(done - len(self.ends)) % self.block_size] -= 1
        if self.windows:
            self._stop_windows(request, done)

    def _stop_windows(self, request: int, done: int) -> None:
        self.requests.finish_key[request] = NEVER  # its crossings, if any are left, say nothing any more
        for weight, window in self.windows:
            if done + 1 < window:
                self.read -= weight * (done + 1)
                self.grow -= weight
            else:
                self.read -= weight * window

    def remaining(self, request: int) -> int:
        """Tokens that a decoding `request` still has to get."""
        return (self.requests.finish_key[request] >> KEY_BITS) - len(self.ends) + 1

    def take_finished(self) -> tuple[list[int], int]:
        """Take out every request whose last token the steps so far have brought; returns also the blocks they held."""
        heap, stale, requests, step = self.finish, self.stale, self.requests, len(self.ends)
        size, hist = self.block_size, self.hist
        limit = step << KEY_BITS
        taken = []
        blocks = tokens = 0
        while heap[0] < limit:
            key = heappop(heap)
            if stale and key in stale:
                stale.remove(key)
                continue
            request = key & REQUEST_OF_KEY
            taken.append(request)
            requests.last_step[request] = step - 1
            cached = requests.final[request]
            tokens += cached + 1
            blocks -= -cached // size
            hist[(cached - step) % size] -= 1
            if self.windows:
                self._stop_windows(request, cached)
        num, weight = len(taken), self.full_weight
        self.num -= num
        self.read -= weight * tokens
        self.grow -= weight * num
        self.due = (heap[0] >> KEY_BITS) + 1
        if self.ended is not None:
            self.ended.extend([self.ends[-1]] * num)
        if self.counted is not None:
            self.over += sum([self.counted[request] for request in taken])
        return taken, blocks

    def steps_to_finish(self) -> int:
        """Decode steps until the next request finishes, that step included. There must be a decoding request."""
        heap, stale = self.finish, self.stale
        while heap[0] in stale:
            stale.remove(heappop(heap))
        self.due = (heap[0] >> KEY_BITS) + 1
        return self.due - len(self.ends)

    def blocks_for(self, begin: int, steps: int) -> int:
        """KV blocks that the decode set needs in `steps` steps from step `begin` on, if nobody comes or goes."""
        size, hist = self.block_size, self.hist
        cycles = steps // size
        rest, high = steps - cycles * size, -begin % size
        if COMPILED:  # then a loop is quicker than what is built in
            blocks = cycles * self.num
            for back in range(rest):
                blocks += hist[high - back]  # from the other end where that is below 0
            return blocks
        low = high - rest + 1
        if low >= 0:
            return cycles * self.num + sum(hist[low : high + 1])
        return cycles * self.num + sum(hist[: high + 1]) + sum(hist[low + size :])

    def steps_within(self, free_blocks: int, steps: int) -> int:
        """How many of the next `steps` decode steps `free_blocks` suffice for."""
        if (steps // self.block_size + 1) * self.num <= free_blocks:
            return steps
        cycles = min(free_blocks // self.num, steps // self.block_size)
        fit = cycles * self.block_size
        left = free_blocks - cycles * self.num
        high = -len(self.ends)
        while fit < steps:
            left -= self.hist[(high - fit) % self.block_size]
            if left < 0:
                break
            fit += 1
        return fit

    def decode(self, model: StepModel, now_s: float, steps: int, stop_s: float) -> float:
        """Run up to `steps` decode-only steps, until `stop_s` is reached; returns the end of the last.

        Time is added left to right, step by step, on the line the model gave, so that a run is bit-equal to its steps.
        """
        append = self.ends.append
        while steps > 0:
            read, grow = self.read, self.grow
            base_s, per_token_s, below = model.decode_line(self.num, read)
            count = steps
            if grow and read + grow * (count - 1) >= below:
                count = (below - read + grow - 1) // grow
            if self.crossings:
                count = min(count, self.crossings[0][0] - len(self.ends))
            if count >= LONG_STRETCH and grow and now_s + LONG_STRETCH * (base_s + per_token_s * read) < stop_s:
                ends = stretch_ends((base_s, per_token_s), range(read, read + grow * count, grow), now_s, stop_s)
                self.ends.frombytes(ends.tobytes())
                count = len(ends)
                now_s = float(ends[-1])
                read += grow * count
                if now_s >= stop_s:
                    steps = 0
            else:
                for _ in range(count):
                    now_s += base_s + per_token_s * read
                    append(now_s)
                    read += grow
                    if now_s >= stop_s:
                        steps = 0
                        break
            steps -= count
            self.read = read
            if self.crossings:
                self.settle()
        return now_s

    def longest(self) -> int:
        """The longest decode, where a lane keeps it (see `plimsoll.engine.replicas.longest`); 0 where not."""
        return 0

    def mixed(self, end_s: float) -> None:
        """Record one step that was more than decoding; every decoding request got its token in it."""
        self.ends.append(end_s)
        self.read += self.grow
        if self.crossings:
            self.settle()

    def settle(self) -> None:
        """Let requests that fill their window in the next step stop growing."""
        heap, step = self.crossings, len(self.ends)
        while heap and heap[0][0] <= step:
            _, request, key, weight = heappop(heap)
            if self.requests.finish_key[request] == key and self.requests.lane[request] == self.number:
                self.grow -= weight


def stretch_ends(line: tuple[float, float], reads: range, now_s: float, stop_s: float) -> Floats:
    """Ends of decode-only steps that begin at `now_s`, none of which begins at `stop_s` or later.

    They are added left to right, as a loop would: the same bits. There may be fewer although `stop_s` is not reached.

    Args:
        line: seconds of a step, and of each token that it reads.
        reads: tokens that each step reads, more from step to step.
        now_s: when the first begins.
        stop_s: after `now_s`.
    """
    base_s, per_token_s = line
    first_s = base_s + per_token_s * reads.start
    if now_s + len(reads) * first_s >= stop_s:  # those to come take as long or longer
        reads = reads[: int((stop_s - now_s) / first_s) + 2]
    seconds = np.arange(reads.start, reads.stop, reads.step, dtype=np.float64) * per_token_s
    seconds += base_s
    seconds[0] += now_s
    ends: Floats = np.add.accumulate(seconds)
    return ends[: int(ends.searchsorted(stop_s)) + 1] if ends[-1] >= stop_s else ends
