"""When nothing fits: what would have to give, and by how much.

Each question is a small search of its own with one thing given up, everything else as asked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from plimsoll.core.errors import InputError
from plimsoll.metrics import TargetVerdict, meets
from plimsoll.planner.branch import Choice, Race, Standing, explore
from plimsoll.planner.context import Context
from plimsoll.planner.evaluate import WHOLE_LENGTH, Evaluator, share_of
from plimsoll.planner.preferences import tolerated_precisions
from plimsoll.planner.probes import measured_part, queue_growth
from plimsoll.planner.request import PlanRequest
from plimsoll.planner.results import Rejection, Relaxation
from plimsoll.planner.stages import prepare

WOULD_NOT_START = frozenset(("divisibility", "precision", "topology", "engine", "length"))
"""Reasons against a candidate that no load, target or budget changes."""
TRIED_FOR_TARGETS = 6
MOST_TIMES_THE_GPUS = 8


def what_would_give(context: Context, rejected: Sequence[Rejection]) -> tuple[Relaxation, ...]:
    """Budget, targets, load, precision and GPUs, each asked for where it is what stood in the way."""
    kinds = {rejection.kind for rejection in rejected}
    found = []
    if kinds & {"budget", "price"}:
        found.append(_budget(context))
    if kinds & {"ttft", "tpot", "e2e", "rate", "beaten"}:
        found.append(_targets(context))
    if context.asked_load is not None:
        found.append(_load(context))
    if kinds & {"memory", "rate", "ttft", "tpot", "e2e", "budget", "beaten"}:
        found.append(_precision(context))
    if kinds & {"memory", "rate", "ttft", "tpot", "e2e", "beaten", "spare"}:
        found.append(_gpus(context))
    one_thing = tuple(one for one in found if one is not None)
    if one_thing:
        return one_thing
    together = _together(context)
    if together is not None and together.needed is None and kinds and kinds <= WOULD_NOT_START:
        refusing = [rejection.reason for rejection in rejected if rejection.kind == "length"]
        if refusing:
            text = f"No candidate takes these requests: {refusing[-1]}."  # the largest budget comes last
            return (Relaxation(what="deployment", text=text),)
        reason = rejected[0].reason.rstrip(".")
        return (Relaxation(what="deployment", text=f"No candidate would start: {reason}."),)
    return (together,) if together is not None else ()


def _together(context: Context) -> Relaxation | None:
    """Where no single thing helps: budget and GPUs given up together, then precision, then the targets as well."""
    request = context.request
    many = tuple(dataclasses.replace(limit, max_gpus=limit.max_gpus * MOST_TIMES_THE_GPUS) for limit in request.gpus)
    free = dataclasses.replace(request, budget_usd_per_hour=None, gpus=many)
    smaller = dataclasses.replace(free, precisions=tolerated_precisions("high", request.model))
    lax = dataclasses.replace(smaller, targets=None, latency_preference="batch")
    for attempt, given_up in (
        (free, "budget and GPUs"),
        (smaller, "budget, GPUs and precision"),
        (lax, "budget, GPUs, precision and latency targets"),
    ):
        choice = _cheapest(_quick(context, attempt))
        if choice is not None:
            money = f" at ${choice.rental.usd_per_hour:.2f}/h" if choice.rental else ""
            return Relaxation(
                what="several",
                text=f"Several things have to give at once ({given_up}): {choice.candidate.name}{money} would do.",
                needed=choice.rental.usd_per_hour if choice.rental else None,
                asked=request.budget_usd_per_hour,
            )
    return Relaxation(
        what="several",
        text="Giving up budget, precision and latency and taking eight times the GPUs would not do: "
        "lower the load, or allow other GPU types.",
    )


def _quick(context: Context, request: PlanRequest) -> Race:
    """A coarse search for the single best of everything."""
    relaxed = Context(dataclasses.replace(request, top=1, starting_point=None), context.parts.like(request))
    try:
        race = prepare(relaxed).race
    except InputError:
        return Race(relaxed, [])
    evaluator = Evaluator(relaxed)
    for standing in race.standings:
        evaluator.know(standing.screened)
    explore(race, lambda jobs: [evaluator.run(job) for job in jobs])
    return race


def _cheapest(race: Race) -> Choice | None:
    leaders = race.best("cost", 1) or race.best("throughput", 1)
    return leaders[0][1] if leaders else None


def _budget(context: Context) -> Relaxation | None:
    request = context.request
    if request.budget_usd_per_hour is None:
        return None
    race = _quick(context, dataclasses.replace(request, budget_usd_per_hour=None))
    # Without a load the cost is per token: the least to rent is what a budget must reach.
    entries = [choice for standing in race.standings for choice in standing.choices if choice.rental is not None]
    if not entries:
        return None
    choice = min(entries, key=lambda entry: entry.rental.usd_per_hour if entry.rental else math.inf)
    assert choice.rental is not None
    needed, asked = choice.rental.usd_per_hour, request.budget_usd_per_hour
    return Relaxation(
        what="budget",
        text=f"A budget of ${needed:.2f}/h instead of ${asked:.2f}/h would do ({choice.candidate.name}).",
        needed=needed,
        asked=asked,
    )


def _targets(context: Context) -> Relaxation | None:
    """The smallest factor on all targets that some affordable deployment meets at the load (or, without one, alone)."""
    request, asked = context.request, context.targets
    if not asked.named():
        return None
    lax = dataclasses.replace(request, targets=None, latency_preference="batch", starting_point=None)
    relaxed = Context(lax, context.parts.like(lax))
    race = prepare(relaxed).race
    evaluator = Evaluator(relaxed)
    best: tuple[TargetVerdict, str] | None = None
    for standing, replicas, load in _fastest(race, relaxed):
        run = evaluator.simulate(standing.screened, load, replicas, request.seed, WHOLE_LENGTH)
        if not relaxed.whole and queue_growth(run).growing:
            continue
        verdict = meets(measured_part(run, WHOLE_LENGTH, with_timeline=True), asked)
        worst = max(verdict.targets, key=lambda one: one.load_frac or 0.0)
        if math.isfinite(worst.load_frac or math.inf) and (best is None or _frac(worst) < _frac(best[0])):
            best = (worst, f"{replicas} × {standing.name}")
    if best is None:
        return None
    worst, where = best
    needed, name = worst.value_s or 0.0, worst.name.removesuffix("_s").upper()
    at = "on an idle system" if context.asked_load is None else f"at {context.load_text(context.asked_load)}"
    if _frac(worst) <= 1.0:
        return None
    return Relaxation(
        what="target",
        text=(
            f"A {name} p{asked.percentile:g} of {needed:.3g} s instead of {worst.target_s:.3g} s would do {at} "
            f"({where}; {_frac(worst):.2f} times what was asked)."
        ),
        needed=needed,
        asked=worst.target_s,
    )


def _frac(verdict: TargetVerdict) -> float:
    return verdict.load_frac or 0.0


def _fastest(race: Race, context: Context) -> list[tuple[Standing, int, float]]:
    """The affordable candidates that look fastest at the load: (configuration, replicas, load of all)."""
    looks = []
    for standing in race.standings:
        replicas = max(candidate.replicas for candidate, _ in standing.priced.candidates)
        load = context.asked_load
        if load is None:
            load = 0.02 * standing.screened.estimate.saturation_per_s * replicas
        looks.append((race.latency_guess(standing, share_of(load, replicas, context.whole)), standing, replicas, load))
    looks.sort(key=lambda look: (look[0], look[1].name))
    return [(standing, replicas, load) for _, standing, replicas, load in looks[:TRIED_FOR_TARGETS]]


def _load(context: Context) -> Relaxation | None:
    request = context.request
    # Users stay users, so that what fits is in the unit that was asked: of one, which the least deployment carries.
    one = 1 if context.whole else None
    free = dataclasses.replace(request, rate_per_s=None, users=one, throughput_tokens_per_s=None)
    race = _quick(context, free)
    leaders = race.best("throughput", 1)
    if not leaders or context.asked_load is None:
        return None
    choice = leaders[0][1]
    return Relaxation(
        what="load",
        text=(
            f"{choice.point.throughput:.3g} {context.unit} is the most that fits, instead of "
            f"{context.load_text(context.asked_load)} ({choice.candidate.name})."
        ),
        needed=choice.point.throughput,
        asked=context.asked_load,
    )


def _precision(context: Context) -> Relaxation | None:
    request = context.request
    allowed = request.resolved_precisions()
    more = tuple(p for p in tolerated_precisions("high", request.model) if p not in allowed)
    if not more:
        return None
    choice = _cheapest(_quick(context, dataclasses.replace(request, precisions=more)))
    if choice is None:
        return None
    precision = choice.candidate.config.precision
    return Relaxation(
        what="precision",
        text=f"{precision} instead of {', '.join(allowed)} would do as asked ({choice.candidate.name}).",
    )


def _gpus(context: Context) -> Relaxation | None:
    request, times = context.request, 2
    while times <= MOST_TIMES_THE_GPUS:
        gpus = tuple(dataclasses.replace(limit, max_gpus=limit.max_gpus * times) for limit in request.gpus)
        choice = _cheapest(_quick(context, dataclasses.replace(request, gpus=gpus)))
        if choice is not None:
            return Relaxation(
                what="gpus",
                text=f"{choice.candidate.num_gpus} {choice.candidate.config.accelerator.id} would do as asked "
                f"({choice.candidate.name}).",
                needed=float(choice.candidate.num_gpus),
            )
        times *= 2
    return None
