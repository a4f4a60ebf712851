"""Prompts and answers on GPUs of their own, under a closed loop: who waits for what, event by event.

    user ──► one of several frontends ──► prompt worker, in turns ──► answering worker, in turns ──► user
                                             its own queue     seat, KV over the link

The published recipes start ten frontends behind a proxy that hands requests out in turns; each frontend hands out
prompt and answering workers in turns of its own (https://github.com/ishandhanani/srt-slurm, num_additional_frontends:
9), so that a worker may be given more than it has seats for while another idles. A request whose prompt is ready waits
at its answering worker for a seat, and only then are its keys and values sent and its first token seen: a decode worker
of TensorRT-LLM takes no more than max_batch_size sequences. All answers of a worker get on evenly, one token a step,
and a step takes as long as its batch makes it. The first users come at once.

NOTE: all prompts cost the mean; steps change their length as somebody joins or leaves, not at their ends.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import random
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
        prompts_s: seconds of a step with so many prompts, from none to `prompts_per_step`.
        token_s: seconds of a step with so many answers, from none to as many as there are seats (or users).
        transfer_s: of a prompt's KV.
        num_frontends: that hand out workers, each in turns of its own.
    """

    num_prompt_workers: int
    num_answer_workers: int
    prompts_per_step: int
    seats: int
    prompts_s: Sequence[float]
    token_s: Sequence[float]
    transfer_s: float
    num_frontends: int = 1

    def scaled(self, prompts: float, tokens: float) -> Pools:
        """The same with steps of prompts and of answers that take so many times as long."""
        return dataclasses.replace(
            self,
            prompts_s=[prompts * seconds for seconds in self.prompts_s],
            token_s=[tokens * seconds for seconds in self.token_s],
        )


class _Turns:
    """Which worker comes next: every frontend counts for itself, from where it happens to start."""

    def __init__(self, num_workers: int, num_frontends: int, rng: random.Random) -> None:
        self._num = num_workers
        self._next = [rng.randrange(num_workers) if i else 0 for i in range(num_frontends)]

    def take(self, request: int) -> int:
        """The worker of a request, which its frontend hands out."""
        frontend = request % len(self._next)
        worker = self._next[frontend]
        self._next[frontend] = (worker + 1) % self._num
        return worker


class _PromptWorker:
    """A queue of prompts, and whether a step runs."""

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self.busy = False


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
            self.tokens += (now_s - self._now_s) / self._token_s[len(self.ends)]
        self._now_s = now_s

    def next_end_s(self) -> float:
        """When the first answer is over if nobody joins."""
        return self._now_s + max(0.0, self.ends[0][0] - self.tokens) * self._token_s[len(self.ends)]


class _Loop:
    """One run: events in order of time, then of their making."""

    def __init__(self, pools: Pools, output_tokens: Sequence[int], users: int, seed: int) -> None:
        num, rng = len(output_tokens), random.Random(seed)
        self._pools, self._output, self._num = pools, output_tokens, num
        self.sent_s, self.first_s, self.finish_s = np.zeros(num), np.zeros(num), np.zeros(num)
        self._prompts = [_PromptWorker() for _ in range(pools.num_prompt_workers)]
        self._answers = [_AnswerWorker(pools) for _ in range(pools.num_answer_workers)]
        self._prompt_turns = _Turns(pools.num_prompt_workers, pools.num_frontends, rng)
        self._answer_turns = _Turns(pools.num_answer_workers, pools.num_frontends, rng)
        self._answer_of: dict[int, _AnswerWorker] = {}
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._num_events = self._num_sent = 0
        for _ in range(min(users, num)):
            self._send(0.0)

    def run(self) -> None:
        """Until everybody has been answered."""
        for worker in self._prompts:
            self._begin_prompts(worker, 0.0)
        while self._events:
            now_s, _, happen = heapq.heappop(self._events)
            happen(now_s)

    def _at(self, when_s: float, happen: Callable[[float], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (when_s, self._num_events, happen))

    def _send(self, now_s: float) -> _PromptWorker:
        request, self._num_sent = self._num_sent, self._num_sent + 1
        self.sent_s[request] = now_s
        worker = self._prompts[self._prompt_turns.take(request)]
        self._answer_of[request] = self._answers[self._answer_turns.take(request)]
        worker.queue.append(request)
        return worker

    def _begin_prompts(self, worker: _PromptWorker, now_s: float) -> None:
        if worker.busy or not worker.queue:
            return
        worker.busy = True
        batch = [worker.queue.popleft() for _ in range(min(self._pools.prompts_per_step, len(worker.queue)))]
        self._at(now_s + self._pools.prompts_s[len(batch)], functools.partial(self._prompts_done, worker, batch))

    def _prompts_done(self, worker: _PromptWorker, batch: list[int], now_s: float) -> None:
        worker.busy = False
        seated: list[int] = []
        for request in batch:
            answer = self._answer_of[request]
            if answer.seats:
                answer.seats -= 1
                seated.append(request)
            else:
                answer.waiting.append(request)
        self._fetch(seated, now_s)
        self._begin_prompts(worker, now_s)

    def _fetch(self, requests: list[int], now_s: float) -> None:
        """Seats are taken: send what the prompts left."""
        if requests:
            self._at(now_s + self._pools.transfer_s, functools.partial(self._join, requests))

    def _join(self, batch: list[int], now_s: float) -> None:
        self.first_s[batch] = now_s
        joined = {id(worker): worker for worker in map(self._answer_of.__getitem__, batch)}
        for worker in joined.values():
            worker.advance(now_s)
        for request in batch:
            worker = self._answer_of[request]
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
        seated = []
        asked = []
        while worker.ends and worker.ends[0][0] <= worker.tokens:
            _, request = heapq.heappop(worker.ends)
            self.finish_s[request] = now_s
            if worker.waiting:
                seated.append(worker.waiting.popleft())
            else:
                worker.seats += 1
            if self._num_sent < self._num:
                asked.append(self._send(now_s))
        self._foretell(worker)
        self._fetch(seated, now_s)
        for prompts in asked:
            self._begin_prompts(prompts, now_s)


def simulate_pools(pools: Pools, output_tokens: Sequence[int], users: int, seed: int = 0) -> tuple[Floats, Floats]:
    """TTFT and TPOT of each request, in the order in which `users` of a closed loop send them, in seconds.

    `seed` decides where the frontends begin to count.
    """
    loop = _Loop(pools, output_tokens, users, seed)
    loop.run()
    tokens = np.maximum(1, np.array(output_tokens) - 1)
    return loop.first_s - loop.sent_s, (loop.finish_s - loop.first_s) / tokens
