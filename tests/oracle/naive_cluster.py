"""Replicas behind a router, the slow way: every replica takes single steps in order of time, routers count afresh.

Also ranks that step together. Written from the rules in the modules' texts, without looking at what makes them fast.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from tests.oracle.naive_vllm import Request, Server, _facts


class Group(Server):
    """`config.ranks` servers that begin every step together; the slowest says how long it takes."""

    def __init__(self, config: EngineConfig, model: StepModel) -> None:
        super().__init__(config, model)
        self.ranks = [Server(config, model) for _ in range(config.ranks)]

    def everyone(self) -> list[Request]:
        return [r for rank in self.ranks for r in (*rank.waiting, *rank.running)]

    def next_step_s(self) -> float:
        if self.everyone():
            return self.now_s
        return max(self.now_s, self.arriving[0].arrival_s) if self.arriving else math.inf

    def outstanding(self, now_s: float) -> int:
        late = sum(1 for finish_s, _ in self.answered if finish_s > now_s)
        return len(self.arriving) + len(self.everyone()) + late

    def step(self) -> list[Request]:
        self.now_s = self.next_step_s()
        while self.arriving and self.arriving[0].arrival_s <= self.now_s:
            rank = min(self.ranks, key=lambda rank: 4 * len(rank.waiting) + len(rank.running))
            rank.waiting.append(self.arriving.pop(0))
        work = [(rank, rank.schedule()) for rank in self.ranks]
        seconds = max(self.model.step_s(*self.as_if_all_were(rank.shape(tokens))) for rank, tokens in work)
        for _, tokens in work:
            for request, count in tokens:
                if math.isnan(request.scheduled_s):
                    request.scheduled_s = self.now_s
                request.computed += count
        self.now_s += seconds
        finished = []
        for rank, tokens in work:
            for request, _ in tokens:
                if request.computed == request.length:
                    request.token_times_s.append(self.now_s)
                    request.decodes = True
                    if len(request.token_times_s) == request.output:
                        finished.append(request)
                        rank.running.remove(request)
                        self.answered.append((self.now_s, request))
        return finished

    def as_if_all_were(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """So many times the rows of one rank, but nobody gets longer by that."""
        return (*(len(self.ranks) * x for x in shape[:7]), *shape[7:])


class Chooser:
    """Every router in a few lines."""

    def __init__(self, config: EngineConfig, workload: Workload, seed: int) -> None:
        name, *options = config.router.split(",")
        self.name, self.options = name, {k: float(v) for k, v in (pair.split("=") for pair in options)}
        self.config, self.workload = config, workload
        self.random = random.Random(seed)
        self.turn = -1
        self.homes: dict[int, int] = {}
        self.seen: list[list[int]] = []

    def known(self, request: Request) -> int:
        told = self.workload.predicted_output_tokens
        if told is None:
            told = self.workload.max_output_tokens
        return request.prompt + (request.output if told is None else int(told[request.number])) - 1

    def pending(self, server: Server) -> int:
        held = server.everyone() if isinstance(server, Group) else [*server.waiting, *server.running]
        return sum(max(0, self.known(r) - r.computed) for r in (*server.arriving, *held))

    def choose(self, servers: Sequence[Server], request: Request, now_s: float) -> int:
        n = len(servers)
        loads = [server.outstanding(now_s) for server in servers]
        if self.name == "round-robin":
            return self.next_turn(n)
        if self.name == "random":
            return int(self.random.random() * n)
        if self.name == "power-of-two":
            if n == 1:
                return 0
            first = int(self.random.random() * n)
            second = [k for k in range(n) if k != first][int(self.random.random() * (n - 1))]
            return second if loads[second] < loads[first] else first
        if self.name == "least-pending-tokens":
            return min(range(n), key=lambda k: self.pending(servers[k]))
        if self.name == "session-sticky":
            if self.workload.session is None:
                return self.next_turn(n)
            session = int(self.workload.session[request.number])
            if session not in self.homes:
                self.homes[session] = self.next_turn(n)
            return self.homes[session]
        if self.name == "prefix-aware" and self.workload.prompt_block_ids is not None:
            return self.by_prefix(loads, request)
        return min(range(n), key=lambda k: loads[k])

    def next_turn(self, n: int) -> int:
        self.turn = (self.turn + 1) % n
        return self.turn

    def by_prefix(self, loads: list[int], request: Request) -> int:
        n = len(loads)
        offsets, ids = self.workload.prompt_block_offsets, self.workload.prompt_block_ids
        assert offsets is not None
        assert ids is not None
        mine = [int(x) for x in ids[offsets[request.number] : offsets[request.number + 1]]]
        self.seen = self.seen or [[] for _ in loads]
        chosen = min(range(n), key=lambda k: loads[k])
        apart = max(loads) - min(loads) > self.options.get("max_lead", 64)
        if not (apart and max(loads) > self.options.get("max_ratio", 1.5) * min(loads)):
            match = [next((i for i, x in enumerate(mine) if x not in seen), len(mine)) for seen in self.seen]
            if max(match) and max(match) >= self.options.get("min_match", 0.3) * len(mine):
                chosen = min(range(n), key=lambda k: (-match[k], loads[k], k))
        seen = self.seen[chosen]
        for x in reversed(mine):
            if x in seen:
                seen.remove(x)
            seen.append(x)
        assert self.workload.block_tokens is not None
        room = max(1, self.config.num_blocks * self.config.block_size // self.workload.block_tokens)
        del seen[: max(0, len(seen) - room)]
        return chosen


def naive_cluster(
    workload: Workload,
    config: EngineConfig,
    model: StepModel,
    *,
    seed: int = 0,
    duration_s: float = math.inf,
    members: Sequence[tuple[EngineConfig, StepModel]] | None = None,
) -> list[dict[str, Any]]:
    """One dict a request that was sent: everything that a `Run` says of it."""
    kinds = members or [(config, model)]
    servers: list[Server] = [
        (Group if kind.ranks > 1 else Server)(kind, kind_model)
        for kind, kind_model in kinds
        for _ in range(kind.replicas)
    ]
    chooser = Chooser(config, workload, seed)
    longest = min(kind.max_model_len for kind, _ in kinds)
    requests, upcoming = [], []
    for i in range(len(workload)):
        prompt = int(workload.prompt_tokens[i])
        request = Request(
            i, prompt, min(int(workload.output_tokens[i]), longest - prompt), float(workload.arrival_s[i])
        )
        requests.append(request)
        final = prompt + request.output - 1
        if request.output >= 1 and all(math.ceil(final / kind.block_size) <= kind.num_blocks for kind, _ in kinds):
            upcoming.append(request)
    earliest_s = [r.arrival_s for r in requests]
    sends: list[tuple[float, int]] = []
    users = workload.concurrency
    if users is not None:
        for request in upcoming:
            request.arrival_s = math.nan
    for _ in range(len(upcoming) if users is None else users):
        if upcoming:
            request = upcoming.pop(0)
            sends.append((earliest_s[request.number], request.number))
    while True:
        server = min(servers, key=lambda s: s.next_step_s())
        if sends and min(sends)[0] <= server.next_step_s():
            now_s, number = min(sends)
            sends.remove((now_s, number))
            if now_s < duration_s:
                requests[number].arrival_s = now_s
                chosen = chooser.choose(servers, requests[number], now_s)
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
