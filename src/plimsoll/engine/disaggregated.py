"""Prefill and decode on different replicas: machines, the link between them, and the clock that all of them share.

    arrival ──► prompt machine ──► first token ──► KV over the link ──► token machine ──► the other tokens
                 holds the KV until it is over                            holds it from then on

An engine of ``engine/clusters`` says who gets which request, what a machine works on, and when KV moves. Here is what
they have in common. The first token lies in the lane of the prompt machine, the others in that of the token machine.

The clock: a machine begins a step as soon as it can, and its results come at the step's end. At one instant come
results first, then transfers, then arrivals, then new steps.

A machine that only decodes runs to its own next event at once: somebody's last token, a shortage of blocks. Where
something that concerns it happens meanwhile (KV arrives, a prompt is sent there), its engine wakes it, and what was run
past the step under way is taken back:

    ends   |----|----|----|----|----|----|        a stretch, run ahead
                      ^ KV arrives
           |----|----|----|                       what is left of it; with the next step the new request decodes

So a request costs what happens to it, and not what happens elsewhere. Steps are pure additions left to right: what is
run again has the same bits.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.step import StepModel
from plimsoll.engine.arrivals import Arrivals
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Chunk, Policy, StepPlan
from plimsoll.engine.replica import NOBODY, Observer, Replica
from plimsoll.engine.requests import Requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """How KV moves from one machine to another.

    Attributes:
        s_per_token: seconds for one token's KV of all layers.
        latency_s: before the first byte.
        layers: in how many pieces the KV is sent while the prompt is still being computed; 1: after it.
        overlap_min_tokens: shorter prompts are sent in one piece after they have been computed.
    """

    s_per_token: float
    latency_s: float
    layers: int = 1
    overlap_min_tokens: int = 512

    def __post_init__(self) -> None:
        if not (math.isfinite(self.s_per_token) and self.s_per_token > 0):
            raise InputError("transfer_s_per_token", self.s_per_token, "give seconds above zero: no transfer is free")
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise InputError("transfer_latency_s", self.latency_s, "give zero or more seconds")
        if self.layers < 1:
            raise InputError("transfer_layers", self.layers, "give at least 1")

    def rest_s(self, tokens: int, computed_in_s: float) -> float:
        """Seconds on the link once the prompt is computed.

        Layer by layer, computing and sending are two stages of a pipeline: what is left at the end is the last layer
        where computing is the slower of the two, and what did not fit beside the other layers where sending is.
        """
        whole_s = tokens * self.s_per_token
        if self.layers == 1 or tokens < self.overlap_min_tokens:
            return whole_s
        return max(whole_s / self.layers, whole_s - computed_in_s * (self.layers - 1) / self.layers)


class _NoPolicy:
    """Machines are told what to do by their engine."""

    def plan(self, replica: Replica, /) -> StepPlan:
        """Never asked."""
        raise NotImplementedError


class Machine(Replica):
    """A replica whose steps its engine begins and ends.

    Attributes:
        busy: whether a step is under way, up to `now_s`.
        link_free_s: when its end of the link has sent or received what was asked so far.
        computing: the prompts of the step under way.
        by_page: whether decodes take their blocks as they grow; else they were set aside for whole sequences.
        stretch: the lane's first step of the decode steps under way; no step's number while others are.
        room: free blocks before those steps, of which later ones leave less.
    """

    by_page = False

    def __init__(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None
    ) -> None:
        if model.num_stages > 1:
            raise InfeasibleError("prefill and decode pools are simulated without pipeline stages yet", "engine")
        policy: Policy = _NoPolicy()
        super().__init__(requests, config, model, policy, number, observer)
        self.busy = False
        self.link_free_s = 0.0
        self.computing: list[int] = []
        self.stretch = self.room = 0

    def blocks(self, tokens: int) -> int:
        """KV blocks of so many tokens."""
        return -(-tokens // self.block_size)

    def begin_mixed(self, prompts: Sequence[int], now_s: float, extra_s: float = 0.0) -> None:
        """Begin a step of whole prompts and of everybody in the lane."""
        requests, lane = self.requests, self.lane
        prompt, scheduled_s = requests.prompt, requests.scheduled_s
        chunks: list[Chunk] = [(request, prompt[request]) for request in prompts]
        self.now_s = now_s
        tokens = twice_pairs = 0
        for request, length in chunks:
            scheduled_s[request] = now_s
            tokens += length
            twice_pairs += length * (length + 1)
        if self.observer is not None:
            self.observer.scheduled(self, StepPlan(chunks), now_s)
        pairs, read = (twice_pairs // 2, 0) if self.plain_attention else self._fold(chunks)
        seconds = self.step_s(tokens, len(chunks), pairs, read, len(chunks), lane.num, lane.read) + extra_s
        if self.by_page:
            self.free_blocks -= lane.blocks_for(len(lane.ends), 1)
        self.now_s = now_s + seconds
        lane.mixed(self.now_s)
        self.computing = list(prompts)
        self.stretch = len(lane.ends)
        self.busy = True

    def begin_decodes(self, now_s: float, steps: int, until_s: float) -> None:
        """Begin up to `steps` steps of the lane, the last of which begins before `until_s`."""
        lane = self.lane
        steps, begin = min(steps, lane.steps_to_finish()), len(lane.ends)
        self.stretch, self.room = begin, self.free_blocks
        if self.observer is not None:
            steps = 1
            self.observer.scheduled(self, StepPlan([]), now_s)
        elif lane.crossings:  # what comes after one could not be taken back
            steps = min(steps, max(1, lane.crossings[0][0] - begin - 1))
        if self.by_page:
            if steps > 1 and lane.blocks_for(begin, steps) > self.free_blocks:
                steps = lane.steps_within(self.free_blocks, steps)
            self.now_s = lane.decode(self.model, now_s, steps, until_s)
            self.free_blocks -= lane.blocks_for(begin, len(lane.ends) - begin)
        else:
            self.now_s = lane.decode(self.model, now_s, steps, until_s)
        self.busy = True

    def next_end(self, now_s: float) -> int:
        """The lane's step that is under way, or just over; of a machine that is busy."""
        return bisect_left(self.lane.ends, now_s, self.stretch)

    def runs_ahead(self) -> bool:
        """Whether it is in the midst of several decode steps."""
        return self.busy and len(self.lane.ends) > self.stretch + 1

    def cut(self, now_s: float) -> None:
        """Take back the steps of the stretch that have not begun before `now_s`."""
        lane = self.lane
        ends = lane.ends
        kept = self.next_end(now_s) + 1
        dropped = len(ends) - kept
        if dropped > 0:
            if self.by_page:
                self.free_blocks += lane.blocks_for(kept, dropped)
            del ends[kept:]
            lane.read -= lane.grow * dropped
            self.now_s = ends[-1]

    def end_step(self) -> tuple[list[int], list[int]]:
        """The step is over: returns the prompts it computed, and who got their last token from the lane."""
        computed, self.computing = self.computing, []
        self.busy = False
        lane = self.lane
        return computed, lane.take_finished()[0] if lane.due <= len(lane.ends) else []

    def stepped(self, finished: list[int]) -> None:
        """Say so to who watches."""
        self.last_finished = finished or NOBODY
        if self.observer is not None:
            self.observer.stepped(self, finished, self.now_s)
        if self.log is not None:
            self._write_log()

    def leave_first_token(self, request: int) -> None:
        """A request got its first token in the last step, and will get the others elsewhere."""
        step = len(self.lane.ends)
        self.requests.early_slices.append((request, self.lane.number, step - 1, step))

    def stop_decoding(self, request: int) -> tuple[int, int]:
        """Take a request out of the lane; returns its KV tokens in place and its tokens to come."""
        remaining = self.lane.remaining(request)
        cached = self.requests.final[request] - remaining
        self._end_slice(request)
        self.lane.stop(request, cached)
        return cached, remaining


class Scheduler(Protocol):
    """What an engine with pools does at each event. Machines and requests are given by number."""

    machines: list[Machine]

    def arrive(self, request: int, now_s: float, /) -> None:
        """Choose who computes the prompt, and wake that machine."""
        ...

    def step_over(self, machine: Machine, now_s: float, /) -> list[int]:
        """Take the results of a step; returns who got their last token."""
        ...

    def begin_step(self, machine: Machine, now_s: float, until_s: float, /) -> bool:
        """Let a machine that is not busy begin a step, or decodes up to `until_s`, if it can.

        If it cannot, it is not asked again before it is woken.
        """
        ...

    def look_around(self, machine: Machine, now_s: float, /) -> None:
        """A machine is between two steps of those that it runs ahead, as was asked for (`Clock.look_at`)."""
        ...


class Clock:
    """Runs the machines of a scheduler in order of time.

    Attributes:
        ends: when a machine's step is over, or when it is to look around: (time, number). Entries may be out of date.
        awake: machines that are to be asked for a step at this instant.
    """

    def __init__(self) -> None:
        self.ends: list[tuple[float, int]] = []
        self.awake: set[int] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Call `action` when the time has come."""
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, action))

    def wake(self, machine: Machine, now_s: float) -> None:
        """Something has happened that concerns a machine: let it act as soon as it can."""
        if not machine.busy:
            self.awake.add(machine.number)
            return
        end_s = machine.now_s
        machine.cut(now_s)
        if machine.now_s < end_s:
            heapq.heappush(self.ends, (machine.now_s, machine.number))

    def look_at(self, machine: Machine, time_s: float) -> None:
        """Let a machine that runs ahead look around at a time at which one of its steps ends."""
        heapq.heappush(self.ends, (time_s, machine.number))

    def run(self, scheduler: Scheduler, arrivals: Arrivals, until_s: float) -> None:
        """Serve everything, in steps that begin before `until_s`."""
        machines, ends, events, awake = scheduler.machines, self.ends, self._events, self.awake
        while True:
            now_s = arrivals.next_s
            if events and events[0][0] < now_s:
                now_s = events[0][0]
            if ends and ends[0][0] < now_s:
                now_s = ends[0][0]
            if now_s >= until_s:
                return
            if ends and ends[0][0] == now_s:
                self._end_steps(scheduler, arrivals, now_s)
            while events and events[0][0] == now_s:
                heapq.heappop(events)[2]()
            while arrivals.next_s == now_s:
                scheduler.arrive(arrivals.take()[1], now_s)
            if ends and ends[0][0] == now_s:  # of machines that were woken between two steps
                self._end_steps(scheduler, arrivals, now_s)
            turn = sorted(awake)
            awake.clear()
            for number in turn:
                machine = machines[number]
                if not machine.busy and scheduler.begin_step(machine, now_s, until_s):
                    heapq.heappush(ends, (machine.now_s, machine.number))

    def _end_steps(self, scheduler: Scheduler, arrivals: Arrivals, now_s: float) -> None:
        """Take the results of all steps that are over now, in order of the machines."""
        ends = self.ends
        while ends and ends[0][0] == now_s:
            machine = scheduler.machines[heapq.heappop(ends)[1]]
            if not machine.busy:
                continue
            if machine.now_s != now_s:
                scheduler.look_around(machine, now_s)
                continue
            finished = scheduler.step_over(machine, now_s)
            machine.stepped(finished)
            self.awake.add(machine.number)
            for _ in finished:
                arrivals.answered(now_s)
