"""Data-parallel attention with expert parallelism: ranks with queues of their own, which step together.

Every rank has its own blocks, seats and budget. But the experts are spread over all ranks, so that each layer waits for
everybody: all ranks begin a step together, and it takes as long as its slowest rank. A rank with nothing to do runs
along (vLLM: a dummy batch).

    rank 0   |-- chunk ------|- decode --|
    rank 1   |- decode -     |- decode - |
    rank 2   |  (nothing)    |- chunk ---|

Inside the group an arrival goes to the rank with the least ``4 × waiting + running`` (vLLM's internal load balancer,
``vllm/v1/engine/core_client.py``, `DPLBAsyncMPClient`); ties go to the lowest number.

Seconds: a `StepModel` of a deployment with such ranks divides the rows of a step evenly among them, so a rank's own
time is what the model says of a step in which every rank has the rank's rows.

NOTE: the experts' part of that is as if all ranks were as loaded as the slowest: an upper bound where they are not.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence
from typing import cast

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Policy, StepPlan
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.replica import INFINITE, NOBODY, Observer, Replica
from plimsoll.engine.requests import Requests


class Rank(Replica):
    """One rank's queues and blocks: it launches its part of a step, and its group says when all are through."""

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int,
        observer: Observer | None,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer)
        self.ways = config.ranks
        self.step_s = self._step_s_if_all_had_my_rows
        self.pipelined = True
        self.launched_s = -1.0
        self.complete: list[int] = []

    def _step_s_if_all_had_my_rows(
        self, tokens: int, chunks: int, pairs: int, read: int, done: int, num_decode: int, decode_read: int, /
    ) -> float:
        ways = self.ways
        return self.model.step_s(
            ways * tokens, ways * chunks, ways * pairs, ways * read, ways * done, ways * num_decode, ways * decode_read
        )

    def _launch(self, seconds: float, complete: list[int]) -> None:
        self.launched_s, self.complete = seconds, complete

    def begin(self, plan: StepPlan) -> list[tuple[int, int, int]]:
        """Launch this rank's part of a step; returns who pauses in it."""
        self.preempted, self.paused = plan.preempt, plan.pause
        for request in plan.preempt:
            self._preempt(request)
        paused = [(request, self.cached_tokens(request), self.lane.remaining(request)) for request in plan.pause]
        for request, cached, _ in paused:
            self._end_slice(request)
            self.lane.stop(request, cached)
        if plan.chunks or self.lane.num:
            self._mixed_step(plan)
        return paused

    def end(self, now_s: float) -> None:
        """The step is over on all ranks: hand the tokens out."""
        self.now_s = now_s
        self.lane.mixed(now_s)
        for request in self.complete:
            self.lane.start(request, self.requests.target[request], self.requests.left[request] - 1)
        self.launched_s, self.complete = -1.0, []


class RanksTogether(Replica):
    """Ranks that step together, whatever they are: to the cluster one replica, whose lanes are those of the ranks."""

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policies: Sequence[Policy],
        number: int,
        observer: Observer | None,
    ) -> None:
        super().__init__(requests, config, model, policies[0], number, observer)
        plain = dataclasses.replace(config, keep_step_log=False)
        self.ranks: list[Replica] = [self._make_rank(requests, plain, model, policy, observer) for policy in policies]
        self.lanes = [rank.lane for rank in self.ranks]
        self.num_blocks = sum(rank.num_blocks for rank in self.ranks)

    def _make_rank(
        self, requests: Requests, config: EngineConfig, model: StepModel, policy: Policy, observer: Observer | None
    ) -> Replica:
        """One rank."""
        raise NotImplementedError

    def _step(self, until_s: float) -> None:
        """Run one step of all ranks, or a stretch of steps that ends with the first whose end reaches `until_s`."""
        raise NotImplementedError

    # -- what routers ask ------------------------------------------------------------------------------------------

    def outstanding(self, now_s: float) -> int:
        """Requests sent here and not answered by `now_s`."""
        unseen = len(self.last_finished) if self.now_s > now_s else 0
        held = sum(len(rank.waiting) + len(rank.seated) for rank in self.ranks)
        return len(self.sent) - self.num_arrived + held + unseen

    def next_step_s(self) -> float:
        """Start of the next step, if nobody else arrives; infinite when there is nothing to do."""
        if self._busy():
            return self.now_s
        return max(self.now_s, self.next_arrival_s)

    def _next_begin_s(self) -> float:
        """When a step that is planned now would begin."""
        return self.now_s

    def _busy(self) -> bool:
        return any(rank.seated or rank.waiting for rank in self.ranks)

    # -- the clock -------------------------------------------------------------------------------------------------

    def advance(self, until_s: float, stop_at_finish: bool = False) -> None:
        """Run every step that starts before `until_s`; with `stop_at_finish` only up to one in which a request ends."""
        while True:
            if self.next_arrival_s <= self.now_s:
                self._take_arrivals()
                self._spread()
            if not self._busy():
                if self.next_arrival_s >= until_s:
                    return
                self.now_s = self.next_arrival_s
                continue
            if self._next_begin_s() >= until_s:
                return
            self._step(until_s)
            if self.log is not None:
                self._write_group_log(self.log)
            if stop_at_finish and self.last_finished:
                return

    def _spread(self) -> None:
        """Give what has arrived to the ranks."""
        while self.waiting:
            request = self.waiting.popleft()
            rank = min(self.ranks, key=lambda rank: 4 * len(rank.waiting) + len(rank.seated))
            rank.waiting.extend((request,))

    def _write_group_log(self, log: tuple[array[float], array[int], array[int], array[int]]) -> None:
        times, running, waiting, used = log
        times.append(self.now_s)
        running.append(sum(len(rank.seated) for rank in self.ranks))
        waiting.append(sum(len(rank.waiting) for rank in self.ranks))
        used.append(self.num_blocks - sum(rank.free_blocks for rank in self.ranks))


class LockstepGroup(RanksTogether):
    """Ranks that run plain engines: all lanes have the same step ends, and stretches of decodes cost one look."""

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policies: Sequence[Policy],
        number: int,
        observer: Observer | None,
    ) -> None:
        super().__init__(requests, config, model, policies, number, observer)
        self._mine = cast("list[Rank]", self.ranks)

    def _make_rank(
        self, requests: Requests, config: EngineConfig, model: StepModel, policy: Policy, observer: Observer | None
    ) -> Rank:
        return Rank(requests, config, model, policy, self.number, observer)

    def _step(self, until_s: float) -> None:
        """One step of all ranks, or a stretch of steps in which all of them only decode."""
        self.last_finished = NOBODY
        plans: list[StepPlan | None] = []
        for rank in self._mine:
            rank.now_s = self.now_s
            rank.last_finished = NOBODY
            plans.append(rank.policy.plan(rank) if rank.seated or rank.waiting else None)
        if self.observer is None and all(plan is None or not (plan.chunks or plan.interrupts) for plan in plans):
            steps = self._calm_steps(plans)
            if steps >= 1:
                self._decode_together(steps, until_s)
                self._finish()
                return
        self._one_step(plans)

    def _one_step(self, plans: Sequence[StepPlan | None]) -> None:
        slowest_s = 0.0
        pauses: list[tuple[Rank, list[tuple[int, int, int]]]] = []
        for rank, plan in zip(self._mine, plans, strict=True):
            if plan is not None:
                pauses.append((rank, rank.begin(plan)))
            if rank.launched_s < 0:
                rank.launched_s = self.step_s(0, 0, 0, 0, 0, 0, 0)
            slowest_s = max(slowest_s, rank.launched_s)
        self.now_s += slowest_s
        for rank in self._mine:
            rank.end(self.now_s)
        self._finish()
        for rank, paused in pauses:
            for request, cached, remaining in paused:
                rank.lane.resume(request, cached, remaining)
            rank.preempted = rank.paused = ()

    def _finish(self) -> None:
        finished: list[int] = []
        for rank in self._mine:
            rank.last_finished = NOBODY
            if rank.lane.due <= len(rank.lane.ends):
                rank._take_finished()
                finished.extend(rank.last_finished)
            if self.observer is not None:
                self.observer.stepped(rank, list(rank.last_finished), self.now_s)
        self.last_finished = finished or NOBODY

    # -- stretches -------------------------------------------------------------------------------------------------

    def _calm_steps(self, plans: Sequence[StepPlan | None]) -> int:
        """Decode steps to the next finish or shortage on any rank."""
        steps = (1 << 30) - 1
        for rank, plan in zip(self._mine, plans, strict=True):
            if plan is None:
                continue
            if not rank.lane.num:
                return 1
            mine = min(plan.holds, rank.lane.steps_to_finish())
            steps = min(steps, rank.lane.steps_within(rank.free_blocks, mine))
        return steps

    def _decode_together(self, steps: int, until_s: float) -> None:
        """Up to `steps` decode-only steps; any arrival ends them, as it may go to any rank."""
        decodes = [(rank.lane, rank.model) for rank in self._mine if rank.lane.num]
        idle_s = self.step_s(0, 0, 0, 0, 0, 0, 0) if len(decodes) < len(self._mine) else 0.0
        stops_s = min(until_s, self.next_arrival_s), INFINITE
        ends = decode_ends(decodes, len(self._mine), idle_s, self.now_s, steps, stops_s)
        self.now_s = ends[-1]
        for rank in self._mine:
            if rank.lane.num:
                rank.free_blocks -= rank.lane.blocks_for(len(rank.lane.ends), len(ends))
            add_decodes(rank.lane, ends)
            rank.now_s = self.now_s


def decode_ends(
    decodes: Sequence[tuple[Lane, StepModel]],
    ways: int,
    idle_s: float,
    begin_s: float,
    steps: int,
    stops_s: tuple[float, float],
) -> array[float]:
    """Ends of decode-only steps that ranks take together, each as long as the slowest of them.

    Args:
        decodes: the decode set of every rank that has one, and its step model.
        ways: ranks there are.
        idle_s: what a step takes at least.
        begin_s: when the first begins.
        steps: how many at most, at least one; fewer where a lane's attention windows fill up, or a model's line ends.
        stops_s: no step after the first begins at the first of these or later, or follows one that begins at the second
            or later.
    """
    until_s, last_s = stops_s
    for lane, _ in decodes:
        if lane.crossings:
            steps = min(steps, lane.crossings[0][0] - len(lane.ends))
    reads = [ways * lane.read for lane, _ in decodes]
    lines = [model.decode_line(ways * lane.num, read) for (lane, model), read in zip(decodes, reads, strict=True)]
    grows = [ways * lane.grow for lane, _ in decodes]
    ends: array[float] = array("d")
    end_s = begin_s
    for grow, (_, _, below), read in zip(grows, lines, reads, strict=True):
        if grow and read + grow * (steps - 1) >= below:
            steps = (below - read + grow - 1) // grow
    for _ in range(steps):
        slowest_s = idle_s
        for k, (base_s, per_token_s, _) in enumerate(lines):
            read = reads[k]
            seconds = base_s + per_token_s * read
            if seconds > slowest_s:
                slowest_s = seconds
            reads[k] = read + grows[k]
        begin_s = end_s
        end_s += slowest_s
        ends.append(end_s)
        if end_s >= until_s or begin_s >= last_s:
            break
    return ends


def add_decodes(lane: Lane, ends: array[float]) -> None:
    """Let a lane have taken decode-only steps that end then."""
    lane.ends.extend(ends)
    lane.read += lane.grow * len(ends)
    if lane.crossings:
        lane.settle()
