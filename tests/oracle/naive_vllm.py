"""vLLM V1's scheduler and a cluster around it, the slow way: every request, every step, no aggregates.

Written from the rules in docs/validation.md, without looking at the fast engine, which must give the same bits.
Times are added left to right: a step ends at ``start + step_s(...)``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from tests.oracle.models import with_longest


@dataclasses.dataclass
class Request:
    number: int
    prompt: int
    output: int
    arrival_s: float = math.nan
    scheduled_s: float = math.nan
    computed: int = 0
    token_times_s: list[float] = dataclasses.field(default_factory=list)
    preemptions: int = 0
    replica: int = -1
    decodes: bool = False  # its prefill, or its recomputation after an eviction, is complete

    @property
    def length(self) -> int:
        return self.prompt + len(self.token_times_s)


class Server:
    def __init__(self, config: EngineConfig, model: StepModel) -> None:
        self.config, self.model = config, model
        self.options = dict(config.options)
        self.now_s = 0.0
        self.arriving: list[Request] = []
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.answered: list[tuple[float, Request]] = []

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.config.block_size)

    def free(self) -> int:
        return self.config.num_blocks - sum(self.blocks(r.computed) for r in self.running)

    def next_step_s(self) -> float:
        if self.waiting or self.running:
            return self.now_s
        return max(self.now_s, self.arriving[0].arrival_s) if self.arriving else math.inf

    def outstanding(self, now_s: float) -> int:
        late = sum(1 for finish_s, _ in self.answered if finish_s > now_s)
        return len(self.arriving) + len(self.waiting) + len(self.running) + late

    def step(self) -> list[Request]:
        self.now_s = self.next_step_s()
        while self.arriving and self.arriving[0].arrival_s <= self.now_s:
            self.waiting.append(self.arriving.pop(0))
        tokens = self.schedule()
        shape = self.shape(tokens)
        for request, count in tokens:
            if math.isnan(request.scheduled_s):
                request.scheduled_s = self.now_s
            request.computed += count
        self.now_s += self.model.step_s(*shape)
        finished = []
        for request, _ in tokens:
            if request.computed == request.length:
                request.token_times_s.append(self.now_s)
                request.decodes = True
                if len(request.token_times_s) == request.output:
                    finished.append(request)
                    self.running.remove(request)
                    self.answered.append((self.now_s, request))
        return finished

    def seats_taken(self) -> int:
        return len(self.running)

    def schedule(self) -> list[tuple[Request, int]]:
        count = self.seats_taken() + len(self.waiting)
        threshold = self.options.get("long_prefill_token_threshold", 0)
        if threshold and count > 1:
            if self.options.get("long_prefill_token_threshold_adaptive", False):
                threshold = max(threshold, self.config.max_num_batched_tokens // count)
        else:
            threshold = 10**9
        seats = self.options.get("max_num_active_seqs", 0) or self.config.max_num_seqs
        budget = self.config.max_num_batched_tokens
        free = self.free()
        scheduled: list[tuple[Request, int]] = []
        evicted = False
        for request in list(self.running):
            if request not in self.running or not budget:
                break
            if request.computed == request.length:
                continue  # its token is in flight
            tokens = min(request.length - request.computed, threshold, budget)
            need = self.blocks(request.computed + tokens) - self.blocks(request.computed)
            while need > free and request in self.running:
                victim = self.running.pop()
                evicted = True
                free += self.blocks(victim.computed)
                victim.computed = 0
                victim.decodes = False
                victim.preemptions += 1
                self.waiting.insert(0, victim)
            if request not in self.running:
                break
            free -= need
            budget -= tokens
            scheduled.append((request, tokens))
        while self.waiting and budget and not evicted and self.seats_taken() < seats:
            request = self.waiting[0]
            tokens = min(request.length, threshold)
            if tokens > budget and not self.options.get("enable_chunked_prefill", True):
                break
            tokens = min(tokens, budget)
            watermark = (
                int(self.options.get("watermark", 0.0) * (self.config.num_blocks + 1)) if self.seats_taken() else 0
            )
            gate = request.length if self.options.get("reserve_full_isl", True) else tokens
            if self.blocks(gate) + watermark > free:
                break
            free -= self.blocks(tokens)
            budget -= tokens
            self.running.append(self.waiting.pop(0))
            scheduled.append((request, tokens))
        return scheduled

    def shape(self, tokens: list[tuple[Request, int]]) -> tuple[int, ...]:
        decodes = [request for request, _ in tokens if request.decodes]
        chunks = [(request, count) for request, count in tokens if not request.decodes]

        def folded(position: int) -> int:
            return sum(
                w * (position if window is None else min(position, window)) for w, window in self.model.attention_layers
            )

        shape = (
            sum(count for _, count in chunks),
            len(chunks),
            sum(folded(r.computed + i) for r, count in chunks for i in range(1, count + 1)),
            sum(folded(r.computed) for r, _ in chunks),
            sum(1 for r, count in chunks if r.computed + count == r.length),
            len(decodes),
            sum(folded(r.length) for r in decodes),
        )
        return with_longest(self.model, shape, (r.length for r in decodes))


def naive_simulate(
    workload: Workload, config: EngineConfig, model: StepModel, duration_s: float = math.inf
) -> list[dict[str, Any]]:
    """One dict a request that was sent: everything that a `Run` says of it."""
    servers = [Server(config, model) for _ in range(config.replicas)]
    requests, upcoming = [], []
    for i in range(len(workload)):
        prompt, output = int(workload.prompt_tokens[i]), int(workload.output_tokens[i])
        output = min(output, config.max_model_len - prompt)
        request = Request(i, prompt, output, float(workload.arrival_s[i]))
        requests.append(request)
        if output >= 1 and math.ceil((prompt + output - 1) / config.block_size) <= config.num_blocks:
            upcoming.append(request)
    sends: list[tuple[float, int]] = []
    users = workload.concurrency
    earliest_s = [r.arrival_s for r in requests]
    if users is not None:
        for request in upcoming:
            request.arrival_s = math.nan
    for _ in range(len(upcoming) if users is None else users):
        if upcoming:
            request = upcoming.pop(0)
            sends.append((earliest_s[request.number], request.number))
    turn = 0
    while True:
        server = min(servers, key=Server.next_step_s)
        if sends and min(sends)[0] <= server.next_step_s():
            now_s, number = min(sends)
            sends.remove((now_s, number))
            if now_s < duration_s:
                requests[number].arrival_s = now_s
                if config.router == "round-robin":
                    chosen, turn = turn, (turn + 1) % len(servers)
                else:
                    chosen = min(range(len(servers)), key=lambda k: servers[k].outstanding(now_s))
                requests[number].replica = chosen
                servers[chosen].arriving.append(requests[number])
            continue
        if server.next_step_s() >= duration_s:
            break
        for _ in server.step():
            if users is not None and upcoming:
                following = upcoming.pop(0)
                sends.append((max(server.now_s + workload.think_s, earliest_s[following.number]), following.number))
    return [_facts(r, duration_s) for r in requests if r.arrival_s < duration_s]


def _facts(request: Request, duration_s: float) -> dict[str, Any]:
    times = [t for t in request.token_times_s if t <= duration_s]
    return {
        "arrival_s": request.arrival_s,
        "scheduled_s": request.scheduled_s,
        "token_times_s": times,
        "finished": len(times) == request.output,
        "preemptions": request.preemptions,
        "replica": request.replica,
    }
