"""A vLLM V1 server in time around the naive scheduler, data-parallel ranks included: what the fast engine must equal.

The order is that of vLLM's engine core. Its process takes in what has arrived, schedules a step, hands it to the GPU
and waits for the oldest step that is under way. Synchronous: one step is under way. Asynchronous: two, so that step
s + 1 is scheduled when step s begins, and whoever arrives meanwhile waits for s + 2.

    core   | take in, schedule 1 | schedule 2 | results of 1, take in, schedule 3 | results of 2, …
    GPU                          | 1                                              | 2            | 3 …

Data-parallel ranks keep a scheduler each and step together (they meet in the expert layers); an arriving request
goes to the rank with the least ``4·waiting + running``, vLLM's rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence

from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, StepShape
from tests.oracle.naive_vllm_full import Request, Scheduler, Settings, Step

StepCosts = Callable[[Sequence[StepShape]], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrival:
    """One request: when it arrives, how long it is, and the ids of its prompt's full blocks or what names a block."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    content: Callable[[int], Hashable] | None = None
    priority: int = 0


@dataclasses.dataclass
class Served:
    """What became of a request. `queued_s` is when the engine core first saw it, as vLLM stamps it."""

    rank: int = -1
    queued_s: float = math.nan
    first_token_s: float = math.nan
    last_token_s: float = math.nan
    preemptions: int = 0


@dataclasses.dataclass(frozen=True)
class _Launched:
    """A step under way: one `Step` a rank, and its end."""

    end_s: float
    steps: tuple[Step, ...]


class Server:
    """`ranks` schedulers in lockstep on one clock."""

    def __init__(
        self,
        settings: Settings,
        step_s: StepCosts,
        *,
        ranks: int = 1,
        asynchronous: bool = True,
        layers: AttentionLayers = FULL_ATTENTION,
    ) -> None:
        self._layers = layers
        self._decoding: set[int] = set()
        self._schedulers = [Scheduler(settings) for _ in range(ranks)]
        self._step_s = step_s
        self._max_launched = 2 if asynchronous else 1
        self._launched: deque[_Launched] = deque()
        self._core_s = self._gpu_free_s = 0.0
        self.num_steps = 0

    def serve(self, arrivals: Sequence[Arrival]) -> list[Served]:
        """Replay; one `Served` an arrival, in their order."""
        served = [Served() for _ in arrivals]
        requests: list[Request] = []
        upcoming = deque(sorted(range(len(arrivals)), key=lambda i: arrivals[i].arrival_s))
        while upcoming or self._busy() or self._launched:
            if not self._busy() and not self._launched:
                self._core_s = max(self._core_s, arrivals[upcoming[0]].arrival_s)
            while upcoming and arrivals[upcoming[0]].arrival_s <= self._core_s:
                number = upcoming.popleft()
                served[number].queued_s = self._core_s
                requests.append(_request(number, arrivals[number]))
                served[number].rank = rank = self._least_loaded()
                self._schedulers[rank].submit(requests[-1])
            if self._busy():
                self._launch()
                if len(self._launched) < self._max_launched:
                    continue
            if self._launched:
                self._take_results(served)
        for request in requests:
            served[request.number].preemptions = request.preemptions
        return served

    def _busy(self) -> bool:
        return any(scheduler.waiting or scheduler.running for scheduler in self._schedulers)

    def _least_loaded(self) -> int:
        loads = [4 * len(scheduler.waiting) + len(scheduler.running) for scheduler in self._schedulers]
        return loads.index(min(loads))

    def _launch(self) -> None:
        """Schedule a step; an empty one takes its turn, but where results come late no time on the GPU."""
        steps = tuple(scheduler.schedule() for scheduler in self._schedulers)
        for step in steps:
            gone = [request for request, _ in step.admitted] + step.preempted
            self._decoding -= {request.number for request in gone}
        begin_s = max(self._gpu_free_s, self._core_s)
        if any(step.scheduled for step in steps) or self._max_launched == 1:
            begin_s += self._step_s([self._shape_of(step) for step in steps])
            self.num_steps += 1
        for step in steps:
            got = zip(step.scheduled, step.gets_token, strict=True)
            self._decoding |= {request.number for (request, _), gets_token in got if gets_token}
        self._gpu_free_s = begin_s
        self._launched.append(_Launched(begin_s, steps))

    def _take_results(self, served: list[Served]) -> None:
        launched = self._launched.popleft()
        self._core_s = max(self._core_s, launched.end_s)
        for scheduler, step in zip(self._schedulers, launched.steps, strict=True):
            for (request, _), gets_token in zip(step.scheduled, step.gets_token, strict=True):
                if gets_token:
                    facts = served[request.number]
                    facts.last_token_s = launched.end_s
                    if math.isnan(facts.first_token_s):
                        facts.first_token_s = launched.end_s
            scheduler.land(step)

    def _shape_of(self, step: Step) -> StepShape:
        """A step as the step model sees it: who has got a token since the last admission decodes."""

        def folded(position: int) -> int:
            return sum(w * (position if n is None else min(position, n)) for w, n in self._layers)

        chunks, decodes = [], []
        for (request, count), gets_token in zip(step.scheduled, step.gets_token, strict=True):
            if request.number in self._decoding:
                decodes.append(request.done)
            else:
                chunks.append((request.done - count, count, gets_token))
        return StepShape(
            prefill_tokens=sum(count for _, count, _ in chunks),
            num_prefill=len(chunks),
            prefill_pairs=sum(folded(have + k) for have, count, _ in chunks for k in range(1, count + 1)),
            prefill_read_tokens=sum(folded(have) for have, _, _ in chunks),
            num_prefill_done=sum(gets_token for _, _, gets_token in chunks),
            num_decode=len(decodes),
            decode_read_tokens=sum(map(folded, decodes)),
            longest_decode=max(decodes, default=0),
        )


def _request(number: int, arrival: Arrival) -> Request:
    def content(index: int) -> Hashable:
        return arrival.blocks[index] if index < len(arrival.blocks) else (number, index)

    return Request(
        number, arrival.prompt_tokens, arrival.output_tokens, arrival.content or content, priority=arrival.priority
    )
