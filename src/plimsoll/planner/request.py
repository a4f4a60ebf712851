"""What a plan is asked for, every name already resolved to a catalogue entry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.metrics import Targets
from plimsoll.perf.factors import Factors
from plimsoll.planner.pools import list_pool_engines
from plimsoll.planner.preferences import preferred_targets, tolerated_precisions
from plimsoll.planner.space import GpuLimit, is_mixture
from plimsoll.workload.build import WorkloadSpec

OBJECTIVES = ("cost", "throughput", "latency")
DEFAULT_TOKEN_BUDGETS: tuple[int | None, ...] = (512, 2048, 8192)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """An existing deployment to compare with."""

    accelerator: Accelerator
    parallelism: Parallelism
    replicas: int
    precision: str
    engine: str = "vllm-v1"
    settings: EngineSettings = dataclasses.field(default_factory=EngineSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Everything a search needs.

    Attributes:
        model: what is served.
        gpus: types that may be used, each with the most (and fewest) GPUs of it.
        workload: which requests; a load in it is ignored, `rate_per_s` and `users` are what counts.
        rate_per_s: load to carry, requests per second; None judges each candidate at its own capacity.
        users: load to carry as closed-loop users, `think_s` apart; not together with a rate.
        throughput_tokens_per_s: output tokens per second to deliver: as a rate of this over the mean output.
        budget_usd_per_hour: most that the rented machines may cost.
        targets: latency targets; None takes those of `latency_preference`.
        latency_preference: ``interactive``, ``balanced`` (default) or ``batch``.
        precisions: weights' precisions to consider; None takes those of `precision_tolerance`.
        precision_tolerance: ``none`` (default), ``low`` or ``high``.
        kv_precision: of the KV cache.
        engines: deployable engines.
        step_model: name for `perf.build`.
        overheads: host time by name (see `perf.overheads`); None takes each engine's own.
        token_budgets: tokens of a step to consider; a None stands for the engine's default.
        settings: engine settings that hold for every candidate.
        tp, pp, dp: ways to consider, None for all that make sense.
        pool_engine: also consider prefill and decode pools by the rules of this engine; None does not.
        split: machines for prefill and for decode; None tries those around the balance.
        prefix_hit_frac: share of every prompt found in a prefix cache (see `planner.prefix`).
        spare_replicas: replicas beyond what the load needs (N+1): paid for, not counted as capacity.
        optimize: ``cost``, ``throughput`` or ``latency``: what `plans` is ordered by.
        top: how many of each list.
        router: how replicas share the load.
        seed: of everything random.
        starting_point: an existing deployment to compare with.
        factors: what measured runs say beside the step model, by GPU id; a GPU without an entry was not calibrated.
    """

    model: ModelSpec
    gpus: tuple[GpuLimit, ...]
    workload: WorkloadSpec
    rate_per_s: float | None = None
    users: int | None = None
    think_s: float = 0.0
    throughput_tokens_per_s: float | None = None
    budget_usd_per_hour: float | None = None
    targets: Targets | None = None
    latency_preference: str | None = None
    precisions: tuple[str, ...] | None = None
    precision_tolerance: str | None = None
    kv_precision: str = "auto"
    engines: tuple[str, ...] = ("vllm-v1",)
    step_model: str = "roofline"
    overheads: str | None = None
    token_budgets: tuple[int | None, ...] = DEFAULT_TOKEN_BUDGETS
    settings: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    tp: tuple[int, ...] | None = None
    pp: tuple[int, ...] | None = None
    dp: tuple[int, ...] | None = None
    pool_engine: str | None = None
    split: tuple[int, int] | None = None
    prefix_hit_frac: float = 0.0
    spare_replicas: int = 0
    optimize: str = "cost"
    top: int = 3
    router: str = "round-robin"
    seed: int = 0
    starting_point: StartingPoint | None = None
    factors: Mapping[str, Factors] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive("--rate", self.rate_per_s)
        _positive("--budget-usd-per-hour", self.budget_usd_per_hour)
        _positive("--throughput-tokens-per-s", self.throughput_tokens_per_s)
        if self.users is not None and self.users < 1:
            raise InputError("--users", self.users, "give at least one user")
        if self.users is not None and (self.rate_per_s is not None or self.throughput_tokens_per_s is not None):
            raise InputError("--users", self.users, "give a rate or a throughput, or users, not both")
        if self.optimize not in OBJECTIVES:
            raise UnknownNameError("--optimize", self.optimize, OBJECTIVES)
        if self.top < 1:
            raise InputError("--top", self.top, "give at least 1")
        if self.spare_replicas < 0:
            raise InputError("--spare", self.spare_replicas, "give zero or more replicas")
        if not 0.0 <= self.prefix_hit_frac < 1.0:
            raise InputError("--prefix-hit", self.prefix_hit_frac, "give a share from 0 to below 1, such as 0.3")
        self._check_space()

    def _check_space(self) -> None:
        """What is enumerated."""
        if not self.gpus:
            raise InputError("--gpus", "nothing", "give at least one GPU type, such as H100-SXM:8")
        for limit in self.gpus:
            if not 1 <= limit.min_gpus <= limit.max_gpus:
                raise InputError("--gpus", f"{limit.accelerator.id}:{limit.max_gpus}", "give at least one GPU")
        for name in ("engines", "token_budgets"):
            if not getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')}", "nothing", "give at least one")
        if self.dp and max(self.dp) > 1 and not is_mixture(self.model):
            remedy = f"{self.model.id} has no experts for data-parallel ranks to share; use replicas instead"
            raise InputError("--dp", ",".join(map(str, self.dp)), remedy)
        if self.pool_engine is not None and self.pool_engine not in list_pool_engines():
            raise UnknownNameError("--disaggregated", self.pool_engine, list_pool_engines())
        if self.pool_engine is not None and self.spare_replicas:
            remedy = "leave it out with --disaggregated: which pool a spare belongs to is not searched"
            raise InputError("--spare", self.spare_replicas, remedy)

    def resolved_targets(self) -> Targets:
        """The targets that were given, or those of the latency preference."""
        if self.targets is not None and self.targets.named():
            return self.targets
        percentile = self.targets.percentile if self.targets is not None else 99.0
        return preferred_targets(self.latency_preference, percentile)

    def resolved_precisions(self) -> tuple[str, ...]:
        """The precisions that were given, or those that the tolerance allows."""
        return self.precisions or tolerated_precisions(self.precision_tolerance, self.model)


def _positive(field: str, value: float | None) -> None:
    if value is not None and not 0.0 < value < math.inf:
        raise InputError(field, value, "give a finite number above zero")
