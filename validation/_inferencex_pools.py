"""Prompts and answers on GPUs of their own, under a closed loop: who waits for what, event by event.

    user ──► seat on an answering worker, in turns ──► prompt worker ──► KV over the link ──► answer ──► user

A user asks for a seat first: a router hands answering workers out in turns, whoever gets a full one waits for a seat of
that one, and only then is the prompt computed: Dynamo's answering workers take a request and call for its prompt
(https://docs.nvidia.com/dynamo/archive/0.2.0/architecture/disagg_serving.html). That seats are no more than the users
need, and that SGLang's rows behave alike, is what the tuning half says, not what a script does. All answers of a worker
get on evenly, one token a step, and a step takes as long as its batch makes it. The first users come at once.

NOTE: all prompts cost the mean; steps change their length as somebody joins or leaves, not at their ends.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from plimsoll.core.columns import Floats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pools:
    """Two pools of workers.

    Attributes:
        num_prompt_workers, num_answer_workers: of each pool.
        prompts_per_step: the most that a prompt worker takes together.
        seats: the most answers of an answering worker at once.
        prompts_s: seconds of a step with so many prompts.
        token_s: seconds of a step with so many answers.
        transfer_s: of a prompt's KV.
    """

    num_prompt_workers: int
    num_answer_workers: int
    prompts_per_step: int
    seats: int
    prompts_s: Callable[[int], float]
    token_s: Callable[[int], float]
    transfer_s: float


class _AnswerWorker:
    """Answers that get on evenly.

    Attributes:
        tokens: that whoever has been here from the start would have by now.
        ends: heap of (tokens at which it is over, request).
        seats: free ones.
        waiting: requests that wait for one.
        version: which of its foretold ends still holds.
    """

    def __init__(self, pools: Pools) -> None:
        self._token_s = pools.token_s
        self.seats = pools.seats
        self.tokens = self._now_s = 0.0
        self.ends: list[tuple[float, int]] = []
        self.waiting: deque[int] = deque()
        self.version = 0

    def advance(self, now_s: float) -> None:
        """Let everybody get on until now."""
        if self.ends:
            self.tokens += (now_s - self._now_s) / self._token_s(len(self.ends))
        self._now_s = now_s

    def next_end_s(self) -> float:
        """When the first answer is over if nobody joins."""
        return self._now_s + max(0.0, self.ends[0][0] - self.tokens) * self._token_s(len(self.ends))


class _Loop:
    """One run: events in order of time, then of their making."""

    def __init__(self, pools: Pools, output_tokens: Sequence[int], users: int) -> None:
        num = len(output_tokens)
        self._pools, self._output, self._num = pools, output_tokens, num
        self.sent_s, self.first_s, self.finish_s = np.zeros(num), np.zeros(num), np.zeros(num)
        self._queue: deque[int] = deque()
        self._free = pools.num_prompt_workers
        self._workers = [_AnswerWorker(pools) for _ in range(pools.num_answer_workers)]
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._num_events = self._num_sent = 0
        for _ in range(min(users, num)):
            self._send(0.0)

    def run(self) -> None:
        """Until everybody has been answered."""
        self._begin_prompts(0.0)
        while self._events:
            now_s, _, happen = heapq.heappop(self._events)
            happen(now_s)

    def _at(self, when_s: float, happen: Callable[[float], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (when_s, self._num_events, happen))

    def _send(self, now_s: float) -> None:
        request, self._num_sent = self._num_sent, self._num_sent + 1
        self.sent_s[request] = now_s
        worker = self._worker_of(request)
        if worker.seats:
            worker.seats -= 1
            self._queue.append(request)
        else:
            worker.waiting.append(request)

    def _worker_of(self, request: int) -> _AnswerWorker:
        return self._workers[request % len(self._workers)]

    def _begin_prompts(self, now_s: float) -> None:
        while self._free and self._queue:
            self._free -= 1
            batch = [self._queue.popleft() for _ in range(min(self._pools.prompts_per_step, len(self._queue)))]
            self._at(now_s + self._pools.prompts_s(len(batch)), functools.partial(self._prompts_done, batch))

    def _prompts_done(self, batch: list[int], now_s: float) -> None:
        self._free += 1
        arrived_s = now_s + self._pools.transfer_s
        self.first_s[batch] = arrived_s
        self._at(arrived_s, functools.partial(self._join, batch))
        self._begin_prompts(now_s)

    def _join(self, batch: list[int], now_s: float) -> None:
        joined = {id(worker): worker for worker in map(self._worker_of, batch)}
        for worker in joined.values():
            worker.advance(now_s)
        for request in batch:
            worker = self._worker_of(request)
            heapq.heappush(worker.ends, (worker.tokens + self._output[request] - 1, request))
        for worker in joined.values():
            self._foretell(worker)

    def _foretell(self, worker: _AnswerWorker) -> None:
        worker.version += 1
        if worker.ends:
            self._at(worker.next_end_s(), functools.partial(self._answered, worker, worker.version))

    def _answered(self, worker: _AnswerWorker, version: int, now_s: float) -> None:
        if version != worker.version:
            return
        worker.advance(now_s)
        worker.tokens = max(worker.tokens, worker.ends[0][0])
        while worker.ends and worker.ends[0][0] <= worker.tokens:
            _, request = heapq.heappop(worker.ends)
            self.finish_s[request] = now_s
            if worker.waiting:
                self._queue.append(worker.waiting.popleft())
            else:
                worker.seats += 1
            if self._num_sent < self._num:
                self._send(now_s)
        self._foretell(worker)
        self._begin_prompts(now_s)


def simulate_pools(pools: Pools, output_tokens: Sequence[int], users: int) -> tuple[Floats, Floats]:
    """TTFT and TPOT of each request, in the order in which `users` of a closed loop send them, in seconds."""
    loop = _Loop(pools, output_tokens, users)
    loop.run()
    tokens = np.maximum(1, np.array(output_tokens) - 1)
    return loop.first_s - loop.sent_s, (loop.finish_s - loop.first_s) / tokens
