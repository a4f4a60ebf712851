"""What need not be simulated: it would not start, does not fit, costs too much, or cannot carry the load at its best.

Everything that goes here goes with a reason, and the reasons add up: candidates = plans + losers + rejected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from plimsoll.catalog.rental import Rental
from plimsoll.core.deployment import EngineSettings
from plimsoll.core.errors import InfeasibleError, OutOfRangeError
from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine.refusals import refusals
from plimsoll.perf.error_bands import ErrorBand
from plimsoll.perf.memory import MemoryPlan
from plimsoll.planner.context import Context
from plimsoll.planner.estimate import Estimate, Limits, ReplicaEstimator
from plimsoll.planner.pool_estimate import LinkCost, PoolEstimator
from plimsoll.planner.results import Rejection
from plimsoll.planner.space import Candidate, GpuLimit, ReplicaConfig, replica_counts

BOUND_MARGIN = 1.1
"""An optimistic bound counts only where it fails by more than this: means hide what a run may win on its way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screened:
    """A replica configuration that would start, with what it promises.

    Attributes:
        config: the configuration.
        settings: engine settings without gaps.
        kv_precision: resolved.
        memory: where its memory goes.
        estimate: without simulation.
        estimator: for latencies at any load.
        notes: what the catalogue says about it.
        band: where measured step times lie around the predicted ones; None for a step model never compared.
    """

    config: ReplicaConfig
    settings: EngineSettings
    kv_precision: str
    memory: MemoryPlan
    estimate: Estimate
    estimator: ReplicaEstimator
    notes: tuple[str, ...]
    band: ErrorBand | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Priced:
    """A screened configuration with the candidates that are left of it, each with its rental (None: no price)."""

    screened: Screened
    candidates: tuple[tuple[Candidate, Rental | None], ...]

    @property
    def name(self) -> str:
        """Of the configuration."""
        return self.screened.config.name


def counts_within(config: ReplicaConfig, limits: Iterable[GpuLimit]) -> tuple[int, ...]:
    """Replica numbers of `config` that are candidates; several limits of one GPU type add up to their union."""
    counts: set[int] = set()
    for limit in limits:
        if limit.accelerator.id == config.accelerator.id:
            counts.update(replica_counts(config, limit))
    return tuple(sorted(counts))


def screen(
    context: Context,
    configs: Sequence[ReplicaConfig],
    on_step: Callable[[int], None] | None = None,
    order: Iterable[int] | None = None,
) -> tuple[list[Screened], list[Rejection]]:
    """Compatibility, memory and latencies of a lone request, for every configuration.

    Args:
        context: of the search.
        configs: all of them.
        on_step: called with the number done.
        order: places in `configs` in the order in which they are looked at; the answer has theirs.
    """
    found: dict[int, Screened | Rejection] = {}
    refusals: dict[str, InfeasibleError | OutOfRangeError] = {}
    for place in range(len(configs)) if order is None else order:
        found[place] = _screened_or_not(context, configs[place], refusals)
        if on_step is not None:
            on_step(len(found))
    ordered = [found[place] for place in sorted(found)]
    return [x for x in ordered if isinstance(x, Screened)], [x for x in ordered if isinstance(x, Rejection)]


def _screened_or_not(
    context: Context, config: ReplicaConfig, refusals: dict[str, InfeasibleError | OutOfRangeError]
) -> Screened | Rejection:
    counts = counts_within(config, context.request.gpus)
    try:
        if config.stem in refusals:
            raise refusals[config.stem]
        one = _screen_one(context, config, refusals)
    except (InfeasibleError, OutOfRangeError) as error:
        kind = error.constraint if isinstance(error, InfeasibleError) else "data"
        return reject(config, counts, kind, str(error))
    reason = _refuses(context, one) or _missed_alone(context, one)
    return one if reason is None else reject(config, counts, *reason)


def screen_one(context: Context, config: ReplicaConfig) -> Screened:
    """One configuration, whatever its latencies.

    Raises:
        InfeasibleError: it would not start.
        OutOfRangeError: the step model has no data for it.
    """
    return _screen_one(context, config, {})


def _screen_one(
    context: Context, config: ReplicaConfig, refusals: dict[str, InfeasibleError | OutOfRangeError]
) -> Screened:
    parts = context.parts
    try:
        fits = parts.compatibility(config)
        model = parts.step_model(config, fits.kv_precision)
    except (InfeasibleError, OutOfRangeError) as error:
        refusals[config.stem] = error  # neither looks at the token budget
        raise
    memory = parts.memory(config, context.max_model_len, context.expected_tokens, fits.kv_precision)
    estimator = _estimator(context, config, memory, model)
    return Screened(
        config=config,
        settings=memory.settings,
        kv_precision=fits.kv_precision,
        memory=memory,
        estimate=estimator.estimate(),
        estimator=estimator,
        notes=(*fits.notes, *memory.notes),
        band=parts.error_band(model),
    )


def _estimator(context: Context, config: ReplicaConfig, memory: MemoryPlan, model: StepModel) -> ReplicaEstimator:
    """The mean-value model of one replica."""
    settings, ranks = memory.settings, config.parallelism.dp
    budget = settings.max_num_batched_tokens or 1
    limits = Limits(
        kv_tokens=float(memory.replica_usable_blocks * memory.block_size),
        max_num_seqs=(settings.max_num_seqs or 1) * ranks,
        max_num_batched_tokens=budget,
        ttft_s=context.targets.ttft_s,
        tpot_s=context.targets.tpot_s,
        e2e_s=context.targets.e2e_s,
        ranks=ranks,
    )
    means = context.length_means(model.attention_layers, budget)
    shared = context.shared_prefix(model)
    if config.pools is None:
        return ReplicaEstimator(shared, means, limits)
    told = settings.options
    link = LinkCost(
        s_per_token=float(told["transfer_s_per_token"]), latency_s=float(told.get("transfer_latency_s", 0.0))
    )
    return PoolEstimator(shared, means, limits, config.pools, link)


def _refuses(context: Context, one: Screened) -> tuple[str, str] | None:
    """Whether its policy refuses so many requests, as longer than a step, that the percentile of every target is one.

    Only where a step is shorter than the longest request is the policy asked. Pools' engines refuse nobody by it.
    """
    lengths, budget = context.lengths, one.settings.max_num_batched_tokens or 1
    spans = lengths.prompt_tokens + lengths.output_tokens
    if one.config.pools is not None or int(spans.max()) <= budget:
        return None
    sample = Workload(
        arrival_s=np.zeros(len(spans)), prompt_tokens=lengths.prompt_tokens, output_tokens=lengths.output_tokens
    )
    engine = context.parts.engine(one.config, one.memory, 1, context.request.router)
    found = refusals(sample, dataclasses.replace(engine, max_num_batched_tokens=budget))
    share = float(found.by_step.mean())
    if share <= 1.0 - context.targets.percentile / 100.0:
        return None
    longest = int(lengths.prompt_tokens[found.by_step].max())
    who = "all requests" if share == 1.0 else f"{share:.1%} of the requests"
    return "length", (
        f"prompts up to {longest:,} tokens do not fit into a step of {budget:,}, so {one.config.engine} refuses {who}: "
        "raise the token budget"
    )


def _missed_alone(context: Context, one: Screened) -> tuple[str, str] | None:
    """Whether a request on an idle replica misses a target already, beyond the margin."""
    targets, estimate = context.targets, one.estimate
    percentile = f"p{targets.percentile:g}"
    prompt = one.estimator.means.tail_prompt_tokens
    alone = [
        ("ttft", targets.ttft_s, estimate.tail_ttft_s, f"prefill of the {percentile} prompt ({prompt} tokens) alone"),
        ("tpot", targets.tpot_s, estimate.unloaded_tpot_s, "one sequence alone"),
        ("e2e", targets.e2e_s, estimate.unloaded_e2e_s, "a mean request alone"),
    ]
    for kind, target, value, what in alone:
        if target is not None and value > target * BOUND_MARGIN:
            return kind, f"{what} takes {value:.3g} s, the {kind.upper()} target is {target:.3g} s"
    return None


def price(context: Context, screened: Sequence[Screened]) -> tuple[list[Priced], list[Rejection]]:
    """Multiply by replicas; drop what costs too much, and what cannot carry the load at its best."""
    kept: list[Priced] = []
    rejected: list[Rejection] = []
    for one in screened:
        candidates = []
        dropped: dict[tuple[str, str], list[int]] = {}
        for replicas in counts_within(one.config, context.request.gpus):
            rented = context.parts.rental(one.config, replicas)
            reason = _too_dear(context, one, rented) or _too_weak(context, one, replicas)
            if reason is None:
                candidates.append((Candidate(config=one.config, replicas=replicas), rented))
            else:
                dropped.setdefault(reason, []).append(replicas)
        rejected.extend(reject(one.config, counts, *reason) for reason, counts in dropped.items())
        if candidates:
            kept.append(Priced(screened=one, candidates=tuple(candidates)))
    return kept, rejected


def _too_dear(context: Context, one: Screened, rented: Rental | None) -> tuple[str, str] | None:
    budget = context.request.budget_usd_per_hour
    if budget is None:
        return None
    if rented is None:
        reason = one.config.accelerator.no_offer_reason or "no public on-demand price"
        return "price", f"out of a search with a budget: {reason}"
    if rented.usd_per_hour > budget:
        return "budget", f"the smallest rental that holds it is above the budget of ${budget:g}/h"
    return None


def _too_weak(context: Context, one: Screened, replicas: int) -> tuple[str, str] | None:
    useful = replicas - context.request.spare_replicas
    if useful < 1:
        return "spare", f"{context.request.spare_replicas} of its replicas are spares, none is left for the load"
    asked = context.asked_load
    if asked is None:
        return None
    most = context.load_bound(one.estimator, one.estimate) * BOUND_MARGIN
    if useful * most < asked:
        return "rate", (
            f"even at its best {one.config.name} carries less than {context.load_text(asked)}: at most "
            f"{most:.3g} {context.unit} a replica, limited by {one.estimate.limited_by}"
        )
    return None


def reject(
    config: ReplicaConfig, replicas: Sequence[int], kind: str, reason: str, *, simulated: bool = False
) -> Rejection:
    """One rejection for all numbers of replicas that share the reason."""
    span = (
        f"{min(replicas)}"
        if min(replicas, default=1) == max(replicas, default=1)
        else f"{min(replicas)}–{max(replicas)}"
    )
    return Rejection(
        config=f"{span} × {config.name}",
        reason=reason,
        kind=kind,
        num_candidates=len(replicas),
        simulated=simulated,
    )
