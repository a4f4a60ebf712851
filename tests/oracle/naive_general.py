"""The general kernel the slow way: every request, every step, no aggregates, no lanes, and the policy asked every time.

Written from the contract in `plimsoll.engine.general.plan`, not from the fast kernel, which must give the same bits.
The policy is the same class: what is checked is that the kernel carries out what the policy says, and that each plan
says the truth about how long it holds. Times are added left to right: a step ends at ``start + step_s(...)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine.requests import Requests
from tests.oracle.interpreted import construct_interpreted
from tests.oracle.models import with_longest


@dataclasses.dataclass
class Row:
    """One request."""

    number: int
    output: int
    arrival_s: float = math.nan
    scheduled_s: float = math.nan
    cached: int = 0
    hit: int = 0
    decodes: bool = False
    reserved_tokens: int = 0
    times_s: list[float] = dataclasses.field(default_factory=list)


class NaiveReplica:
    """The view and the steps. Policies read what `plimsoll.engine.general.plan` lists."""

    def __init__(self, requests: Requests, config: EngineConfig, model: StepModel) -> None:
        self.requests, self.config, self.model = requests, config, model
        self.policy = construct_interpreted(config)
        self.block_size, self.num_blocks = config.block_size, config.num_blocks
        self.rows: dict[int, Row] = {}
        self.arriving: list[Row] = []
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.kept: list[int] = []
        self.swapped: dict[int, int] = {}
        self.now_s = 0.0
        self.wake_s = 0.0
        self.steps_since_prefill = 0
        self.last_prefill_s = 0.0
        self.events: dict[str, int] = {}
        self.moves: list[int] = []

    # -- the view --------------------------------------------------------------------------------------------------

    @property
    def arrival_s(self) -> dict[int, float]:
        return {number: row.arrival_s for number, row in self.rows.items()}

    @property
    def prefilling(self) -> dict[int, int]:
        return {i: self.rows[i].cached for i in self.running if not self.rows[i].decodes}

    @property
    def seated(self) -> list[int]:
        return self.running

    @property
    def decoding(self) -> list[int]:
        return [i for i in self.running if self.rows[i].decodes]

    @property
    def num_decode(self) -> int:
        return len(self.decoding)

    @property
    def decode_need(self) -> int:
        if self.policy.memory == "fixed":
            return 0
        return sum(1 for i in self.decoding if self.rows[i].cached % self.block_size == 0)

    def decodes_in_need(self) -> list[int]:
        return [i for i in self.decoding if self.rows[i].cached % self.block_size == 0]

    @property
    def outgrown(self) -> list[int]:
        if self.policy.memory != "fixed":
            return []
        return sorted(
            i
            for i in self.decoding
            if self.rows[i].cached == self.blocks(self.rows[i].reserved_tokens) * self.block_size
        )

    @property
    def free_blocks(self) -> int:
        return self.num_blocks - sum(self.held_blocks(i) for i in [*self.running, *self.kept])

    def cached_tokens(self, number: int) -> int:
        return self.rows[number].cached

    def cached_tokens_of(self, numbers: Sequence[int]) -> list[int]:
        return [self.rows[i].cached for i in numbers]

    def generated(self, number: int) -> int:
        return len(self.rows[number].times_s)

    def held_blocks(self, number: int) -> int:
        row = self.rows[number]
        if self.policy.memory == "fixed":
            return self.blocks(row.reserved_tokens)
        if self.policy.memory == "prompt" and not row.decodes:
            return self.blocks(self.requests.target[number])
        return self.blocks(row.cached)

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.block_size)

    # -- steps -----------------------------------------------------------------------------------------------------

    def next_step_s(self) -> float:
        arrival_s = self.arriving[0].arrival_s if self.arriving else math.inf
        if self.running or self.waiting or self.swapped:
            return max(self.now_s, min(self.wake_s, arrival_s))
        return max(self.now_s, arrival_s)

    def step(self) -> list[int]:
        """One step, or a sleep; returns whose answer is complete."""
        self.now_s = self.next_step_s()
        self.take_arrivals()
        begun = self.begin()
        if begun is None:
            return []
        return self.end(*begun)

    def take_arrivals(self) -> None:
        while self.arriving and self.arriving[0].arrival_s <= self.now_s:
            row = self.arriving.pop(0)
            self.rows[row.number] = row
            self.enqueue(row.number, len(self.waiting))

    def begin(self) -> tuple[Any, list[int], float] | None:
        """The plan, who decodes, and how long the step takes; None where nobody works."""
        plan = self.policy.plan(self)
        for number, mode, place in plan.evict:
            self.evict(number, mode, place)
        assert not self.outgrown, "nobody may decode beyond a reservation"
        for number in plan.swap_in:
            self.swap_in(number)
        moved = sum(self.moves)
        self.moves = []
        decoding = [i for i in self.decoding if i not in plan.pause] if plan.decode else []
        regimes = {
            "pause": plan.pause,
            "swap in": plan.swap_in,
            "chunks": len(plan.chunks) > 1,
            "part": self.prefilling,
        }
        regimes["alone"] = plan.chunks and not decoding and self.decoding
        for regime in (name for name, seen in regimes.items() if seen):
            self.count(regime)
        if not plan.chunks and not decoding and not plan.unusual:
            self.wake_s = max(plan.until_s, self.now_s)
            assert self.next_step_s() > self.now_s
            return None
        self.wake_s = 0.0
        for number, _ in plan.chunks:
            if number in self.waiting:
                self.admit(number)
        seconds = self.seconds(plan, decoding)
        if moved:
            seconds += moved * self.policy.swap_block_s
        return plan, decoding, seconds

    def end(self, plan: Any, decoding: list[int], seconds: float) -> list[int]:
        """Hand out the tokens of a step; returns whose answer is complete."""
        self.now_s += seconds
        self.steps_since_prefill += bool(decoding)
        if plan.chunks:
            self.steps_since_prefill, self.last_prefill_s = 0, seconds
        finished = []
        for number in decoding:
            self.rows[number].cached += 1
            finished += self.token(number)
        for number, chunk in plan.chunks:
            self.rows[number].cached += chunk
            if self.rows[number].cached == self.requests.target[number]:
                self.rows[number].decodes = True
                finished += self.token(number)
        assert self.free_blocks >= 0
        return self.leave(finished)

    def enqueue(self, number: int, place: int) -> None:
        self.waiting.insert(place, number)
        if self.policy.keyed:
            self.waiting.sort(key=lambda i: (self.policy.key(self, i), i))

    def count(self, event: str, times: int = 1) -> None:
        self.events[event] = self.events.get(event, 0) + times

    def admit(self, number: int) -> None:
        row = self.rows[number]
        self.waiting.remove(number)
        self.running.append(number)
        row.cached, row.decodes = 0, False
        if math.isnan(row.scheduled_s):
            row.scheduled_s = self.now_s
        if self.policy.memory == "fixed":
            row.reserved_tokens = self.policy.reserve(self.requests, number)
        self.policy.admitted(self, number)

    def evict(self, number: int, mode: str, place: str) -> None:
        row = self.rows[number]
        self.running.remove(number)
        self.requests.preemptions[number] += 1
        self.policy.released(self, number)
        self.count(mode)
        if mode == "swap":
            assert row.decodes
            self.swapped[number] = row.cached
            self.moves = [*self.moves, self.blocks(row.cached)]
            return
        self.requests.target[number] = self.requests.prompt[number] + len(row.times_s)
        row.cached, row.decodes = 0, False
        later = [place for place, other in enumerate(self.waiting) if other > number] + [len(self.waiting)]
        self.enqueue(number, {"front": 0, "back": len(self.waiting), "own": later[0]}[place])

    def swap_in(self, number: int) -> None:
        row = self.rows[number]
        assert self.swapped.pop(number) == row.cached
        self.moves = [*self.moves, self.blocks(row.cached)]
        self.running.append(number)
        if self.policy.memory == "fixed":
            row.reserved_tokens = self.policy.reserve(self.requests, number)
        self.policy.admitted(self, number)

    def token(self, number: int) -> list[int]:
        row = self.rows[number]
        row.times_s.append(self.now_s)
        return [number] if len(row.times_s) == row.output else []

    def leave(self, finished: list[int]) -> list[int]:
        for number in finished:
            self.running.remove(number)
            self.policy.released(self, number)
        if not self.policy.static:
            return finished
        self.kept += finished
        if self.running:
            return []
        for number in self.kept:
            if self.policy.returns_together:
                self.rows[number].times_s[-1] = self.now_s
        answered, self.kept = self.kept, []
        return answered

    # -- cost ------------------------------------------------------------------------------------------------------

    def folded(self, position: int) -> int:
        layers = self.model.attention_layers
        return sum(weight * (position if window is None else min(position, window)) for weight, window in layers)

    def seconds(self, plan: Any, decoding: list[int]) -> float:
        """The step's forward passes, token by token: decodes first, then the chunks in their order."""
        num_decode = len(decoding) + (len(self.kept) if self.policy.pads_rows and plan.decode else 0)
        read = sum(self.folded(self.rows[i].cached + 1) for i in decoding)
        tokens: list[tuple[int, int, bool]] = []  # request, position, and whether it is the last of its prompt
        for number, chunk in plan.chunks:
            have = self.rows[number].cached
            size = max(chunk, plan.pad_prompt)
            done = have + chunk == self.requests.target[number]
            tokens += [(number, have + k, done and k == size - 1) for k in range(size)]
        most = plan.pass_tokens or 10**9
        first = max(most - num_decode, 0)
        passes = [tokens[:first]] + [tokens[k : k + most] for k in range(first, len(tokens), most)]
        seconds = 0.0
        for which, part in enumerate(passes):
            starts = [place for place, token in enumerate(part) if place == 0 or part[place - 1][0] != token[0]]
            shape = (
                len(part),
                len(starts),
                sum(self.folded(position + 1) for _, position, _ in part),
                sum(self.folded(part[place][1]) for place in starts),
                sum(1 for _, _, done in part if done),
                num_decode if which == 0 else 0,
                read if which == 0 else 0,
            )
            if self.policy.memory != "fixed":  # whose decodes are taken to be equally long
                lengths = [self.rows[i].cached + 1 for i in decoding if which == 0]
                shape = with_longest(self.model, shape, lengths)
            seconds += self.model.step_s(*shape)
        return seconds


def naive_general(
    workload: Workload,
    config: EngineConfig,
    model: StepModel,
    duration_s: float = math.inf,
    kind: type[NaiveReplica] = NaiveReplica,
) -> tuple[dict[int, dict[str, Any]], dict[str, int]]:
    """Facts by request that was sent, and how often what happened. Round robin, or one replica in a closed loop."""
    requests = Requests(workload, config.max_model_len)
    replicas = [kind(requests, config, model) for _ in range(config.replicas)]
    welcome = replicas[0].policy.accepts(requests, config)
    accepted = [
        i
        for i in range(len(workload))
        if requests.output[i] >= 1 and replicas[0].blocks(requests.final[i]) <= config.num_blocks and welcome[i]
    ]
    rows = {i: Row(i, requests.output[i]) for i in accepted}
    upcoming = list(accepted)
    if workload.concurrency is None:
        for turn, i in enumerate(accepted):
            rows[i].arrival_s = float(workload.arrival_s[i])
            if rows[i].arrival_s < duration_s:
                replicas[turn % config.replicas].arriving.append(rows[i])
    else:
        for i in upcoming[: workload.concurrency]:
            rows[i].arrival_s = float(workload.arrival_s[i])
            replicas[0].arriving.append(rows[i])
        upcoming = upcoming[workload.concurrency :]
    for replica in replicas:
        while replica.next_step_s() < duration_s:
            for _ in replica.step():
                if workload.concurrency is not None and upcoming:
                    row = rows[upcoming.pop(0)]
                    row.arrival_s = max(replica.now_s + workload.think_s, float(workload.arrival_s[row.number]))
                    replica.arriving.append(row)
                    replica.arriving.sort(key=lambda row: (row.arrival_s, row.number))
    events: dict[str, int] = {}
    for replica in replicas:
        for event, count in replica.events.items():
            events[event] = events.get(event, 0) + count
    for i in set(range(len(workload))).difference(accepted):
        rows[i] = Row(i, -1, arrival_s=float(workload.arrival_s[i]))
    return {i: _facts(rows[i], duration_s) for i in sorted(rows) if rows[i].arrival_s < duration_s}, events


def _facts(row: Row, duration_s: float) -> dict[str, Any]:
    times_s = [time_s for time_s in row.times_s if time_s <= duration_s]
    return {
        "arrival_s": row.arrival_s,
        "scheduled_s": row.scheduled_s,
        "hit": row.hit,
        "times_s": times_s,
        "finished": len(times_s) == row.output,
        "rejected": row.output < 0,
    }
