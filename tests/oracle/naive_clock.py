"""Gives `naive_vllm_full` a clock: one server, every step a step model's seconds, added left to right.

Synchronous: plan a step, wait for its end, take its results. Asynchronous: a queue of two batches, as vLLM's engine
core has it: plan while the queue has room, else wait for the oldest batch and take its results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from tests.oracle.models import with_longest
from tests.oracle.naive_vllm_full import Request, Scheduler, Settings, Step


@dataclasses.dataclass
class Seen:
    """What one request saw."""

    arrival_s: float = math.nan
    scheduled_s: float = math.nan
    cached: int = 0
    token_times_s: list[float] = dataclasses.field(default_factory=list)
    preemptions: int = 0
    rejected: bool = False


def settings_of(config: EngineConfig) -> Settings:
    options = dict(config.options)
    return Settings(
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        max_num_seqs=options.get("max_num_active_seqs", 0) or config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        threshold=options.get("long_prefill_token_threshold", 0),
        adaptive_threshold=options.get("long_prefill_token_threshold_adaptive", False),
        prefix_caching=options.get("enable_prefix_caching", True),
        chunked_prefill=options.get("enable_chunked_prefill", True),
        by_priority=options.get("scheduling_policy", "fcfs") == "priority",
        whole_sequence_test=options.get("reserve_full_isl", True),
        watermark_blocks=int(options.get("watermark", 0.0) * (config.num_blocks + 1)),
    )


def content_of(workload: Workload, number: int, block_size: int) -> Callable[[int], Hashable]:
    """The content of a request's i-th block: all ids up to its end, or private."""
    prompt = int(workload.prompt_tokens[number])
    ids: list[int] = []
    if workload.prompt_block_ids is not None:
        low, high = workload.prompt_block_offsets[number], workload.prompt_block_offsets[number + 1]
        ids = workload.prompt_block_ids[low:high].tolist()

    def content(index: int) -> Hashable:
        end = (index + 1) * block_size
        num_ids = math.ceil(end / workload.block_tokens) if ids else 1
        if end <= prompt and num_ids <= len(ids):
            return ("shared", index, tuple(ids[:num_ids]))
        return ("private", number, index)

    return content


class Clock:
    def __init__(self, workload: Workload, config: EngineConfig, model: StepModel) -> None:
        self.workload, self.config, self.model = workload, config, model
        self.scheduler = Scheduler(settings_of(config))
        self.seen = [Seen() for _ in range(len(workload))]
        self.now_s = 0.0
        self.free_s = 0.0  # when the GPU is through with what it was given
        self.in_flight: list[tuple[float, Step]] = []
        self.decoding: set[int] = set()
        self.sends: list[tuple[float, int]] = []
        self.upcoming: list[int] = []
        for number in range(len(workload)):
            self.accept(number)
        for _ in range(len(workload) if workload.concurrency is None else workload.concurrency):
            self.send_next(0.0)

    def accept(self, number: int) -> None:
        prompt, output = int(self.workload.prompt_tokens[number]), int(self.workload.output_tokens[number])
        output = min(output, self.config.max_model_len - prompt)
        peak = math.ceil((prompt + output - 1) / self.config.block_size)
        if output >= 1 and peak <= self.config.num_blocks:
            self.upcoming.append(number)
        else:
            self.seen[number].rejected = True

    def send_next(self, free_s: float) -> None:
        if self.upcoming:
            number = self.upcoming.pop(0)
            self.sends.append((max(free_s, float(self.workload.arrival_s[number])), number))

    def take_arrivals(self) -> None:
        while self.sends and min(self.sends)[0] <= self.now_s:
            arrival_s, number = min(self.sends)
            self.sends.remove((arrival_s, number))
            self.seen[number].arrival_s = arrival_s
            priority = self.workload.priority
            self.scheduler.submit(
                Request(
                    number=number,
                    prompt=int(self.workload.prompt_tokens[number]),
                    output=int(self.workload.output_tokens[number]),
                    content=content_of(self.workload, number, self.config.block_size),
                    priority=0 if priority is None else int(priority[number]),
                )
            )

    def has_requests(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def begin_step(self, duration_s: float) -> bool:
        """Plan a step and put it on its way; False where it would begin after the cut."""
        begin_s = max(self.now_s, self.free_s)
        if begin_s >= duration_s:
            return False
        step = self.scheduler.schedule()
        for request, cached in step.admitted:
            seen = self.seen[request.number]
            self.decoding.discard(request.number)
            if not request.preemptions:
                seen.scheduled_s, seen.cached = begin_s, cached
        for request in step.preempted:
            self.seen[request.number].preemptions += 1
            self.decoding.discard(request.number)
        seconds = 0.0
        if step.scheduled or not self.config.options.get("async_scheduling", False):
            seconds = self.model.step_s(*self.shape(step))
        for (request, _), complete in zip(step.scheduled, step.gets_token, strict=True):
            if complete:
                self.decoding.add(request.number)
        self.free_s = begin_s + seconds
        self.in_flight.append((self.free_s, step))
        return True

    def shape(self, step: Step) -> tuple[int, ...]:
        def folded(position: int) -> int:
            return sum(w * (position if n is None else min(position, n)) for w, n in self.model.attention_layers)

        decodes = [r for r, _ in step.scheduled if r.number in self.decoding]
        chunks = [
            (r, count, complete)
            for (r, count), complete in zip(step.scheduled, step.gets_token, strict=True)
            if r.number not in self.decoding
        ]
        shape = (
            sum(count for _, count, _ in chunks),
            len(chunks),
            sum(folded(r.done - i) for r, count, _ in chunks for i in range(count)),
            sum(folded(r.done - count) for r, count, _ in chunks),
            sum(complete for _, _, complete in chunks),
            len(decodes),
            sum(folded(r.done) for r in decodes),
        )
        return with_longest(self.model, shape, (r.done for r in decodes))

    def take_results(self) -> None:
        end_s, step = self.in_flight.pop(0)
        self.now_s = max(self.now_s, end_s)
        for (request, _), complete in zip(step.scheduled, step.gets_token, strict=True):
            if complete:
                self.seen[request.number].token_times_s.append(end_s)
        for _ in self.scheduler.land(step):
            if self.workload.concurrency is not None:
                self.send_next(self.now_s + self.workload.think_s)

    def run(self, duration_s: float) -> list[Seen]:
        depth = 2 if self.config.options.get("async_scheduling", False) else 1
        while True:
            self.take_arrivals()
            if self.has_requests():
                if not self.begin_step(duration_s):
                    break
                if len(self.in_flight) < depth and self.in_flight[-1][1].scheduled:
                    continue
            elif not self.in_flight:
                if not self.sends or min(self.sends)[0] >= duration_s:
                    break
                self.now_s = max(self.now_s, min(self.sends)[0])
                continue
            self.take_results()
        for _, step in self.in_flight:  # tokens of the last step that began before the cut
            for (request, _), complete in zip(step.scheduled, step.gets_token, strict=True):
                if complete:
                    self.seen[request.number].token_times_s.append(self.free_s)
        for arrival_s, number in self.sends:  # sent before the cut, but no step has begun since
            if arrival_s < duration_s:
                self.seen[number].arrival_s = arrival_s
        for seen in self.seen:
            seen.token_times_s = [time_s for time_s in seen.token_times_s if time_s <= duration_s]
        return self.seen


def clocked(
    workload: Workload, config: EngineConfig, model: StepModel, duration_s: float = math.inf
) -> tuple[list[Seen], Scheduler]:
    clock = Clock(workload, config, model)
    return clock.run(duration_s), clock.scheduler
