"""Simulations of one replica configuration: its capacity, and what requests see at a load.

Every figure of a deployment comes from simulations of one replica: replicas share nothing but the router, so the
capacity of R of them is R times that of one. The finalists are simulated whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from plimsoll.core.run import Run
from plimsoll.metrics import RunMetrics, Verdict, meets, summarise
from plimsoll.planner.capacity import CapacityOptions, CapacityResult, find_capacity, find_whole_capacity
from plimsoll.planner.context import Context
from plimsoll.planner.probes import ProbeLength, mean_residence_s, measured_part, queue_growth
from plimsoll.planner.prune import Screened, screen_one
from plimsoll.planner.sizing import with_ranks
from plimsoll.planner.space import ReplicaConfig

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Cache = MutableMapping[str, CapacityResult]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard to look at one configuration.

    Attributes:
        seeds: searches of the capacity.
        rel_tolerance: of each.
        min_requests: of a probe.
        turnovers: of a probe (`ProbeLength`).
        lenient: as in `CapacityOptions`.
    """

    seeds: int
    rel_tolerance: float
    min_requests: int
    turnovers: float
    lenient: bool

    def options(self, first_seed: int) -> CapacityOptions:
        """For `planner.capacity`."""
        return CapacityOptions(
            seeds=tuple(first_seed + k for k in range(self.seeds)),
            rel_tolerance=self.rel_tolerance,
            length=self.length(),
            first_ratio=1.15 if self.seeds == 1 else 1.06,
            next_ratio=1.06,
            look_again=False,
            short_probes=False,
            lenient=self.lenient,
        )

    def for_config(self, config: ReplicaConfig) -> Effort:
        """The effort that a configuration is worth: pools are simulated whole, so many requests are in flight."""
        if config.pools is None:
            return self
        return dataclasses.replace(self, turnovers=POOL_TURNOVERS_FRAC * self.turnovers, lenient=True)

    def length(self) -> ProbeLength:
        """Of every probe and every judged run."""
        return ProbeLength(min_requests=self.min_requests, turnovers=self.turnovers, most_lengthening=2)


WHOLE_LENGTH = ProbeLength(min_requests=1000, turnovers=4.0, max_requests=8000)
"""Of the run of a whole deployment."""

POOL_TURNOVERS_FRAC = 0.6
"""Of the turnovers of one replica's probe: what many machines see averages out sooner."""

COARSE = Effort(seeds=1, rel_tolerance=0.16, min_requests=300, turnovers=5.0, lenient=True)
"""Enough to see who is out of the question."""

FINE = Effort(seeds=3, rel_tolerance=0.07, min_requests=500, turnovers=7.0, lenient=False)
"""For finalists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What the requests of one replica see at `load`: means in seconds, and what it delivers."""

    load: float
    e2e_s: float
    requests_per_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One configuration, simulated.

    Attributes:
        name: of the configuration.
        capacity: of one replica.
        observations: at the loads asked for, as many as it carries.
        requests_per_s: what it delivers at its capacity (the capacity itself, or what so many users send).
    """

    name: str
    capacity: CapacityResult
    observations: tuple[Observation, ...]
    requests_per_s: float


class Task(Protocol[T_co]):
    """Something to simulate for one configuration: plain data, so that it can be sent to another process."""

    @property
    def config(self) -> ReplicaConfig:
        """Which configuration."""
        ...

    def perform(self, evaluator: Evaluator, one: Screened) -> T_co:
        """Do it."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Evaluate one configuration: its capacity first, then what requests see.

    Attributes:
        config: which configuration.
        effort: how hard.
        guess: of the capacity.
        replicas: numbers of replicas at whose share of the asked load to observe; without an asked load the
            observation is at half of the capacity, whatever the replicas.
    """

    config: ReplicaConfig
    effort: Effort
    guess: float
    replicas: tuple[int, ...]

    def perform(self, evaluator: Evaluator, one: Screened) -> Evaluation:
        """Capacity and observations."""
        return evaluator.evaluate(self, one)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole deployment, simulated.

    Attributes:
        metrics: without the warm-up.
        verdict: of the targets.
        growing: whether its queue grows.
        requests_per_s: finished ones, over the whole run.
    """

    metrics: RunMetrics
    verdict: Verdict
    growing: bool
    requests_per_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeJob:
    """Simulate `replicas` of a configuration at `load` of them all; spares serve like the others."""

    config: ReplicaConfig
    replicas: int
    load: float

    def perform(self, evaluator: Evaluator, one: Screened) -> Whole:
        """One run, and what it shows."""
        context = evaluator.context
        run = evaluator.simulate(one, self.load, self.replicas, context.request.seed, WHOLE_LENGTH)
        measured = measured_part(run, WHOLE_LENGTH, with_timeline=True)
        return Whole(
            metrics=summarise(measured, context.targets),
            verdict=meets(measured, context.targets),
            growing=not context.whole and queue_growth(run).growing,
            requests_per_s=finished_per_s(run),
        )


class Evaluator:
    """Runs jobs for one context."""

    def __init__(self, context: Context, cache: Cache | None = None) -> None:
        self.context, self.cache = context, cache
        self._screened: dict[str, Screened] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_screened": {}, "cache": None}

    def know(self, screened: Screened) -> None:
        """Spare a configuration its second screening."""
        self._screened[screened.config.name] = screened

    def screened(self, config: ReplicaConfig) -> Screened:
        """The screened configuration, looked at again where this process has not seen it."""
        if config.name not in self._screened:
            self._screened[config.name] = screen_one(self.context, config)
        return self._screened[config.name]

    def run(self, task: Task[T]) -> T:
        """Do a task."""
        return task.perform(self, self.screened(task.config))

    def evaluate(self, job: Job, one: Screened) -> Evaluation:
        """Capacity first, then what requests see."""
        effort = job.effort.for_config(one.config)
        capacity, length = self.capacity(one, effort, job.guess), effort.length()
        observations = []
        for load in self._loads(job, capacity):
            run = self.simulate(one, load, 1, self.context.request.seed, length)
            observations.append(self._observe(run, load, length))
        delivered = capacity.max_load
        if self.context.whole and delivered >= 1.0:
            run = self.simulate(one, delivered, 1, self.context.request.seed, length)
            delivered = self._observe(run, delivered, length).requests_per_s
        return Evaluation(
            name=job.config.name, capacity=capacity, observations=tuple(observations), requests_per_s=delivered
        )

    def _loads(self, job: Job, capacity: CapacityResult) -> list[float]:
        asked = self.context.asked_load
        if capacity.max_load <= 0:
            return []
        if asked is None:
            return [capacity.max_load / 2.0]
        whole, spare = self.context.whole, self.context.request.spare_replicas
        chosen = replicas_that_matter(job.replicas, spare, asked, capacity.max_load, whole)
        return list(dict.fromkeys(share_of(asked, replicas, whole) for replicas in chosen))

    def capacity(self, one: Screened, effort: Effort, guess: float) -> CapacityResult:
        """Of one replica, from the cache where it is known."""
        context, key = self.context, ""
        if self.cache is not None:
            key = self.key(one, effort)
            if key in self.cache:
                return self.cache[key]
        options = effort.options(context.request.seed)

        def probe(load: float, seed: int, num_requests: int) -> Run:
            return self._simulate(one, load, 1, seed, num_requests)

        if context.whole:
            result = find_whole_capacity(probe, context.targets, options, max(guess, 1.0))
        else:
            result = find_capacity(probe, context.targets, options, max(guess, 1e-4), lambda load: in_flight(one, load))
        if self.cache is not None:
            self.cache[key] = result
        return result

    def simulate(self, one: Screened, load: float, replicas: int, seed: int, length: ProbeLength) -> Run:
        """A run of `replicas` at `load` of them all, as long as `length` asks for."""
        present = load if self.context.whole else replicas * in_flight(one, load / replicas)
        return self._simulate(one, load, replicas, seed, length.num_requests(present))

    def _simulate(self, one: Screened, load: float, replicas: int, seed: int, num_requests: int) -> Run:
        context = self.context
        if context.whole:
            workload = context.loads.with_users(round(load), seed, num_requests)
        else:
            workload = context.loads.at_rate(load, seed, num_requests)
        engine = context.parts.engine(one.config, one.memory, replicas, context.request.router)
        engine, _ = with_ranks(engine, one.config.parallelism.dp, workload, one.estimator.model)
        return context.parts.simulate(workload, engine, one.estimator.model)

    def expected_work(self, task: Task[Any]) -> float:
        """How long a task takes beside others, roughly: its requests, those of a pipeline three times."""
        one = self.screened(task.config)
        slower = 3.0 if task.config.parallelism.pp > 1 else 1.0
        if isinstance(task, Job):
            present = task.guess if self.context.whole else in_flight(one, task.guess)
            return slower * task.effort.seeds * max(task.effort.min_requests, task.effort.turnovers * present)
        return slower * WHOLE_LENGTH.min_requests

    def is_cached(self, task: Task[Any]) -> bool:
        """Whether the capacity that a job needs is known already."""
        if self.cache is None or not isinstance(task, Job):
            return False
        return self.key(self.screened(task.config), task.effort.for_config(task.config)) in self.cache

    def remember(self, task: Task[Any], found: object) -> None:
        """Put what another process found into the cache."""
        if self.cache is not None and isinstance(task, Job) and isinstance(found, Evaluation):
            self.cache[self.key(self.screened(task.config), task.effort.for_config(task.config))] = found.capacity

    def _observe(self, run: Run, load: float, length: ProbeLength) -> Observation:
        measured = measured_part(run, length)
        return Observation(load=load, e2e_s=mean_residence_s(measured), requests_per_s=finished_per_s(run))

    def key(self, one: Screened, effort: Effort) -> str:
        """What a capacity depends on, as a stable hash."""
        context, request = self.context, self.context.request
        spec = context.loads.spec
        text = repr(
            (
                "capacity v4",
                request.model,
                one.config.accelerator.id,
                one.config.accelerator.memory_bandwidth_bytes_per_s,
                sorted(one.config.accelerator.dense_flop_per_s.items()),
                one.config.name,
                one.kv_precision,
                one.settings,
                one.memory.replica_usable_blocks,
                dataclasses.replace(spec, rate_per_s=1.0, concurrency=None, users=None, at_once=False),
                request.prefix_hit_frac,
                request.think_s,
                context.whole,
                context.targets,
                request.step_model,
                request.overheads,
                request.factors.get(one.config.accelerator.id),
                request.seed,
                effort,
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()


def finished_per_s(run: Run) -> float:
    """Finished requests over first arrival to last finish; 0 where none finished."""
    finish_s = run.finish_s[run.finished]
    span_s = float(finish_s.max() - np.nanmin(run.arrival_s)) if len(finish_s) else 0.0
    return len(finish_s) / span_s if span_s > 0 else 0.0


def in_flight(one: Screened, rate_per_s: float) -> float:
    """Estimated requests in one replica at a rate; beyond its saturation those just below it."""
    stay_s = one.estimator.e2e_s(rate_per_s)
    if not math.isfinite(stay_s):
        stay_s = one.estimator.e2e_s(0.97 * one.estimator.rate_per_s(one.estimator.largest_batch()[0], packed=False))
    return rate_per_s * (stay_s if math.isfinite(stay_s) else 2.0 * one.estimate.unloaded_e2e_s)


def replicas_that_matter(
    replicas: Sequence[int], spare: int, asked: float, capacity: float, whole: bool
) -> tuple[int, ...]:
    """Of the numbers of replicas that carry `asked` without their spares: the fewest, the middle one and the most.

    The fewest are the cheapest, the most are the fastest; what lies between is slower than the one and dearer than the
    other, and one of them stands for it.
    """
    able = [r for r in sorted(replicas) if r > spare and share_of(asked, r - spare, whole) <= capacity * (1 + 1e-9)]
    return tuple(able[k] for k in sorted({0, len(able) // 2, len(able) - 1})) if able else ()


def share_of(load: float, replicas: int, whole: bool) -> float:
    """What one of `replicas` gets of `load`: users come whole."""
    return float(math.ceil(load / replicas)) if whole else load / replicas
