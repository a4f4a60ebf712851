"""The general kernel with pipeline stages, the slow way: batches in flight, each with its requests by name."""

from __future__ import annotations

import math
from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine.requests import Requests
from tests.oracle.naive_general import NaiveReplica, Row, _facts


class NaivePipeline(NaiveReplica):
    """`running` is the group that is planned; `groups` who belongs together; `flights` what is under way."""

    def __init__(self, requests: Requests, config: EngineConfig, model: StepModel) -> None:
        super().__init__(requests, config, model)
        self.groups: list[list[int]] = [[] for _ in range(model.num_stages)]
        self.stage_free_s = [0.0] * model.num_stages
        self.flights: list[tuple[float, int, list[int]]] = []  # end, group, who gets a token
        self.completing: set[int] = set()

    @property
    def seated(self) -> list[int]:
        return [i for group in self.groups for i in group]

    @property
    def prefilling(self) -> dict[int, int]:
        return {i: self.rows[i].cached for i in self.running if not self.rows[i].decodes and i not in self.completing}

    @property
    def free_blocks(self) -> int:
        return self.num_blocks - sum(self.held_blocks(i) for i in self.seated)

    def launch(self) -> bool:
        """Plan for the largest group that is not in flight; False if nothing can be scheduled."""
        busy = [group for _, group, _ in self.flights]
        idle = [k for k in range(len(self.groups)) if k not in busy]
        index = max(idle, key=lambda k: (sum(self.rows[i].decodes for i in self.groups[k]), -k))
        partial = [i for i in self.seated if not self.rows[i].decodes and i not in self.completing]
        for group in self.groups:
            group[:] = [i for i in group if i not in partial]
        self.groups[index].extend(partial)
        self.running = self.groups[index]
        plan = self.policy.plan(self)
        for eviction in plan.evict:
            self.evict(*eviction)
        decoding = self.decoding if plan.decode else []
        if not plan.chunks and not decoding:
            if plan.evict:
                self.flights.append((self.now_s + self.model.step_s(0, 0, 0, 0, 0, 0, 0), index, []))
            return bool(plan.evict)
        for number, _ in plan.chunks:
            if number in self.waiting:
                self.admit(number)
        seconds = self.seconds(plan, decoding)
        end_s = self.now_s
        for stage in range(len(self.stage_free_s)):
            end_s = self.stage_free_s[stage] = max(end_s, self.stage_free_s[stage]) + seconds
        for number in decoding:
            self.rows[number].cached += 1
        done = []
        for number, chunk in plan.chunks:
            self.rows[number].cached += chunk
            if self.rows[number].cached == self.requests.target[number]:
                done.append(number)
        self.completing.update(done)
        assert self.free_blocks >= 0
        self.flights.append((end_s, index, decoding + done))
        return True

    def held_blocks(self, number: int) -> int:
        if self.policy.memory == "prompt" and number in self.completing:
            return self.blocks(self.rows[number].cached)
        return super().held_blocks(number)

    def take(self) -> None:
        end_s, index, receivers = self.flights.pop(0)
        self.now_s = max(self.now_s, end_s)
        self.running = self.groups[index]
        self.completed([number for number in receivers if number in self.completing])
        for number in receivers:
            row = self.rows[number]
            row.decodes = True
            self.completing.discard(number)
            row.times_s.append(end_s)
        finished = [number for number in receivers if len(self.rows[number].times_s) == self.rows[number].output]
        self.ended(finished)
        for number in finished:
            self.running.remove(number)
            self.policy.released(self, number)

    def completed(self, numbers: list[int]) -> None:
        """The prompts of these are complete."""

    def ended(self, numbers: list[int]) -> None:
        """These have their last token."""


def naive_general_pipeline(
    workload: Workload, config: EngineConfig, model: StepModel, kind: type[NaivePipeline] = NaivePipeline
) -> dict[int, dict[str, Any]]:
    """Facts by request. Open loop, one replica, everything drained."""
    requests = Requests(workload, config.max_model_len)
    replica = kind(requests, config, model)
    welcome = replica.policy.accepts(requests, config)
    rows = {}
    for i in range(len(workload)):
        fits = requests.output[i] >= 1 and replica.blocks(requests.final[i]) <= config.num_blocks and welcome[i]
        rows[i] = Row(i, requests.output[i] if fits else -1, arrival_s=float(workload.arrival_s[i]))
        if fits:
            replica.arriving.append(rows[i])
    while replica.arriving or replica.waiting or replica.seated:
        if not replica.waiting and not replica.seated:
            replica.now_s = max(replica.now_s, replica.arriving[0].arrival_s)
        while replica.arriving and replica.arriving[0].arrival_s <= replica.now_s:
            row = replica.arriving.pop(0)
            replica.rows[row.number] = row
            replica.waiting.append(row.number)
        if len(replica.flights) == model.num_stages or not replica.launch():
            replica.take()
    return {i: _facts(rows[i], math.inf) for i in rows}
