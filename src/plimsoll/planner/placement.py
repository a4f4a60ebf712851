"""A plan on unlike GPUs: where each layer lies (`helr`), and how much load the placement carries.

All GPUs that are given make one pool. How many sequences the KV cache shall hold decides how many layers fit on a GPU,
so placements are made for several of them, for least latency and for fewest GPUs; each is simulated like any candidate
of a plan (its capacity, then what requests see at half of it), and the objective picks.
"""

from __future__ import annotations

import dataclasses
import time

from plimsoll.core.errors import InfeasibleError
from plimsoll.core.run import Run
from plimsoll.core.units import SECONDS_PER_HOUR, TOKENS_PER_MILLION
from plimsoll.metrics import RunMetrics, Targets, summarise
from plimsoll.planner.capacity import CapacityResult, find_capacity
from plimsoll.planner.context import Context
from plimsoll.planner.evaluate import COARSE, FINE, Effort
from plimsoll.planner.helr import OBJECTIVES, Placed, Placement
from plimsoll.planner.parts import Parts
from plimsoll.planner.placement_case import PlacementCase
from plimsoll.planner.probes import measured_part
from plimsoll.planner.request import PlanRequest

SEQUENCES = (1, 4, 16, 64, 256)
"""Sequences of the expected length that the cache shall hold at least: one placement each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One GPU of a placement.

    Attributes:
        gpu: catalogue id.
        first_layer, num_layers: which layers it holds.
        weight_bytes, kv_bytes: on it; the cache is what the placement's `kv_tokens` take.
        memory_frac: of what the engine may use, weights, activations and cache together.
        request_s: seconds that a mean request spends on it.
    """

    gpu: str
    first_layer: int
    num_layers: int
    weight_bytes: float
    kv_bytes: float
    memory_frac: float
    request_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedPlan:
    """A placement and what it carries.

    Attributes:
        precision: of the weights.
        objective: of the placement: ``latency`` or ``gpus``.
        num_sequences: that the cache had to hold.
        stages: GPUs in the order in which a token passes them.
        kv_tokens: that all GPUs can cache at once.
        request_s: a mean request alone, as the placement counts it.
        usd_per_hour: of all GPUs used, rented one by one; None where one has no price.
        capacity: of the placement.
        metrics: at half of the capacity; None where it carries nothing.
    """

    precision: str
    objective: str
    num_sequences: int
    stages: tuple[Stage, ...]
    kv_tokens: int
    request_s: float
    usd_per_hour: float | None
    capacity: CapacityResult
    metrics: RunMetrics | None

    @property
    def arithmetic(self) -> str:
        """``32 layers = 20 on H100-SXM + 12 on L40S``."""
        parts = [f"{stage.num_layers} on {stage.gpu}" for stage in self.stages]
        return f"{sum(stage.num_layers for stage in self.stages)} layers = {' + '.join(parts)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacementResult:
    """Placements, best first by the objective asked for; none where nothing fits, and then `verdict` says why."""

    verdict: str
    plans: tuple[PlacedPlan, ...]
    targets: Targets
    notes: tuple[str, ...]
    wall_s: float


def search_placements(request: PlanRequest, parts: Parts | None = None) -> PlacementResult:
    """Place the model's layers on all GPUs of the request, and rank what comes out by `request.optimize`.

    Raises:
        InputError: the request cannot be used. Where nothing fits the result says so.
    """
    started_s = time.perf_counter()
    context = Context(request, parts)
    notes: list[str] = []
    found: dict[tuple[object, ...], tuple[PlacementCase, int, str, Placement]] = {}
    for precision in request.resolved_precisions():
        try:
            case = PlacementCase(context, precision)
        except InfeasibleError as error:
            notes.append(str(error))
            continue
        notes += case.notes
        for num_sequences in SEQUENCES:
            for objective in OBJECTIVES:
                placement = case.place(num_sequences, objective) if case.kinds else None
                if placement is not None:
                    found.setdefault((precision, placement.stages), (case, num_sequences, objective, placement))
    coarse = [(_plan(context, entry, COARSE), entry) for entry in found.values()]
    coarse.sort(key=lambda pair: _order(request.optimize, pair[0]))
    plans = [_plan(context, entry, FINE) for _, entry in coarse[: request.top]]
    plans = sorted((one for one in plans if one.capacity.max_load > 0), key=lambda one: _order(request.optimize, one))
    return PlacementResult(
        verdict=_verdict(context, plans, [plan for plan, _ in coarse], notes),
        plans=tuple(plans),
        targets=context.targets,
        notes=tuple(dict.fromkeys([*notes, *context.parts.notes.values()])),
        wall_s=time.perf_counter() - started_s,
    )


def _plan(context: Context, entry: tuple[PlacementCase, int, str, Placement], effort: Effort) -> PlacedPlan:
    """A placement with its capacity, looked for with `effort`, and what requests see at half of it."""
    case, num_sequences, objective, placement = entry
    stages = placement.stages
    kv_tokens = case.kv_tokens(stages)
    engine, model = case.engine(kv_tokens), case.step_model(stages)

    def probe(rate_per_s: float, seed: int, num_requests: int) -> Run:
        return context.parts.simulate(context.loads.at_rate(rate_per_s, seed, num_requests), engine, model)

    # Little's law with as many requests as the cache holds, each of them as slow as a lone one.
    guess = max(kv_tokens / context.expected_tokens / 8.0, 1.0) / placement.latency_s
    capacity = find_capacity(probe, context.targets, effort.options(context.request.seed), guess)
    metrics = None
    if capacity.max_load > 0:
        length = effort.length()
        run = probe(capacity.max_load / 2.0, context.request.seed, length.min_requests)
        metrics = summarise(measured_part(run, length, with_timeline=True), context.targets)
    return PlacedPlan(
        precision=case.precision,
        objective=objective,
        num_sequences=num_sequences,
        stages=tuple(_stage(case, one, kv_tokens) for one in stages),
        kv_tokens=kv_tokens,
        request_s=placement.latency_s,
        usd_per_hour=_usd_per_hour(context, case, stages),
        capacity=capacity,
        metrics=metrics,
    )


def _stage(case: PlacementCase, one: Placed, kv_tokens: int) -> Stage:
    kind, num_layers = case.kinds[one.kind], one.end - one.begin
    kv_bytes = num_layers * case.kv_layer_bytes * kv_tokens
    left = case.room(one.kind, one.begin, one.end) - kv_bytes
    return Stage(
        gpu=kind.gpu.id,
        first_layer=one.begin,
        num_layers=num_layers,
        weight_bytes=case.weights(one.begin, one.end),
        kv_bytes=kv_bytes,
        memory_frac=1.0 - left / kind.room_bytes,
        request_s=num_layers / case.model.num_layers * kind.request_s,
    )


def _usd_per_hour(context: Context, case: PlacementCase, stages: tuple[Placed, ...]) -> float | None:
    """All GPUs of a kind at the cheapest provider of that kind; None where a kind has no price."""
    total = 0.0
    for number in {one.kind for one in stages}:
        count = sum(one.kind == number for one in stages)
        rented = context.parts.rental(case.config(number), count)
        if rented is None:
            return None
        total += rented.usd_per_hour
    return total


def usd_per_million_tokens(plan: PlacedPlan, tokens_per_request: float) -> float | None:
    """Dollars per million tokens, input and output together, at capacity; None without a price or a capacity."""
    if plan.usd_per_hour is None or plan.capacity.max_load <= 0:
        return None
    tokens_per_s = plan.capacity.max_load * tokens_per_request
    return plan.usd_per_hour / (tokens_per_s * SECONDS_PER_HOUR / TOKENS_PER_MILLION)


def _order(optimize: str, plan: PlacedPlan) -> tuple[float, float]:
    """Best first; what carries nothing goes last."""
    load = plan.capacity.max_load
    if load <= 0:
        return (float("inf"), plan.request_s)
    if optimize == "throughput":
        return (-load, plan.request_s)
    if optimize == "latency" or plan.usd_per_hour is None:
        return (plan.request_s, -load)
    return (plan.usd_per_hour / load, plan.request_s)


def _verdict(context: Context, plans: list[PlacedPlan], tried: list[PlacedPlan], notes: list[str]) -> str:
    model = context.request.model.id
    if plans:
        best = plans[0]
        low, high = best.capacity.interval
        price = f"${best.usd_per_hour:.2f}/h" if best.usd_per_hour is not None else "no public price"
        return (
            f"Place {model} ({best.precision}) on {len(best.stages)} GPUs: {best.arithmetic} at {price}; carries "
            f"{best.capacity.max_load:.3g} req/s ({low:.3g}–{high:.3g}) within the targets"
        )
    if tried:
        limit = tried[0].capacity.limited_by
        return f"{model} fits on these GPUs and carries no load within its targets: {limit} fails. Relax the targets."
    why = f" ({notes[0]})" if notes else ""
    return (
        f"The layers of {model} fit on no selection of these GPUs{why}: allow more or larger GPUs, or less precision."
    )
