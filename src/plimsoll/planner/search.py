"""The plan search: enumerate, screen, price, branch and bound by simulation, look closer, explain.

every candidate ─► would start? fits? ─► affordable, could carry it? ─► could place? ─► simulated ─► finalists
     │                  │                        │                         │               │            │
     └──────────────────┴────── rejected, each with its reason ────────────┴───────────────┘          plans
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from plimsoll.planner import explain, relax
from plimsoll.planner.branch import Choice, Race, Standing, explore
from plimsoll.planner.context import Context
from plimsoll.planner.evaluate import Cache, Evaluator
from plimsoll.planner.finalists import Finals
from plimsoll.planner.parts import Parts
from plimsoll.planner.prune import reject
from plimsoll.planner.request import OBJECTIVES, PlanRequest
from plimsoll.planner.results import Plan, PlanResult, Rejection, Relaxation
from plimsoll.planner.stages import OnProgress, prepare, silent
from plimsoll.planner.starting import compare_starting_point
from plimsoll.planner.workers import Workers

NEAREST_LOSERS = 5


class SearchOptions(NamedTuple):
    """How a search runs, which does not change what it finds.

    Attributes:
        parts: what to call instead of the real packages (tests).
        on_progress: called with (done, total, text); the total may still change.
        cache: capacities of earlier searches by key; new ones are put in as they are found.
        num_workers: processes; None takes two where the machine has them and the search is long enough to pay.
    """

    parts: Parts | None = None
    on_progress: OnProgress = silent
    cache: Cache | None = None
    num_workers: int | None = None


def search(request: PlanRequest, options: SearchOptions | None = None) -> PlanResult:
    """Find what to deploy.

    Raises:
        InputError: the request cannot be used. A search that finds nothing is no error: its result says what would
            have to give.
    """
    options = options or SearchOptions()
    started_s = time.perf_counter()
    context = Context(request, options.parts)
    progress = options.on_progress
    for engine in request.engines:
        context.parts.policy(engine)  # here, so that what it notes is noted in this process
    stage = prepare(context, progress, options.num_workers)
    race, rejected = stage.race, stage.rejected
    evaluator = Evaluator(context, options.cache)
    for standing in race.standings:
        evaluator.know(standing.screened)
    with Workers(evaluator, len(race.standings), options.num_workers) as workers:
        explore(race, workers.run, lambda done, total: progress(done, total, "simulating"))
        finals = Finals(race, workers, progress)
        finals.settle()
        lists, named = _lists(race, finals)
    losers, beaten = _losers(race, named)
    rejected += beaten
    relaxations: tuple[Relaxation, ...] = ()
    if not named:
        relaxations = relax.what_would_give(context, rejected)
    starting, starting_text = compare_starting_point(context, lists["plans"])
    return PlanResult(
        verdict=_verdict(context, lists["plans"], relaxations),
        feasible=bool(lists["plans"]),
        plans=lists["plans"],
        top_cost=lists["cost"],
        top_throughput=lists["throughput"],
        top_latency=lists["latency"],
        pareto=lists["pareto"],
        losers=losers,
        rejected=tuple(rejected),
        relaxations=relaxations,
        starting_point=starting,
        starting_point_text=starting_text,
        targets=context.targets,
        num_candidates=stage.num_candidates,
        num_configs=stage.num_configs,
        num_simulated=sum(standing.evaluation is not None for standing in race.standings),
        notes=_notes(context, rejected, lists),
        wall_s=time.perf_counter() - started_s,
    )


def _lists(race: Race, finals: Finals) -> tuple[dict[str, tuple[Plan, ...]], set[str]]:
    """The lists of plans by name, and the names of all candidates in them."""
    context, top = race.context, race.context.request.top
    lists: dict[str, tuple[Plan, ...]] = {}
    named: set[str] = set()
    entries: dict[str, list[tuple[Standing, Choice]]] = {o: race.best(o, top + 1) for o in OBJECTIVES}
    entries["pareto"] = race.pareto()
    for name, found in entries.items():
        shown = found if name == "pareto" else found[:top]
        plans = []
        for rank, entry in enumerate(shown):
            others = [] if name == "pareto" else [choice for _, choice in found[rank + 1 :]]
            why = explain.why_leading(name, context, entry, others, rank + 1)
            if name == "pareto":
                why = f"nothing beats it in everything: {explain.figure('pareto', context, entry[1])}"
            plans.append(finals.plan(*entry, rank + 1, why))
            named.add(entry[1].candidate.name)
        lists[name] = tuple(plans)
    # Without any price there is nothing to order by cost.
    lists["plans"] = lists[context.request.optimize] or lists["throughput"]
    return lists, named


def _losers(race: Race, named: set[str]) -> tuple[tuple[Rejection, ...], list[Rejection]]:
    """Reasons for every candidate that was priced and is in no list; the nearest of them apart."""
    context, top = race.context, race.context.request.top
    leaders = {objective: race.best(objective, top) for objective in OBJECTIVES}
    placed = {standing.family for standing, _ in leaders[context.request.optimize]}
    rejections: list[Rejection] = []
    distance: dict[str, float] = {}
    for standing in race.standings:
        config, evaluation = standing.screened.config, standing.evaluation
        left = [c.replicas for c, _ in standing.priced.candidates if c.name not in named]
        if not left:
            continue
        if evaluation is None:
            reason = explain.why_not_simulated(race, race.optimistic(standing), leaders)
            rejections.append(reject(config, left, "bound", reason))
            continue
        for choice in standing.choices:
            if choice.candidate.replicas in left:
                left.remove(choice.candidate.replicas)
                reason = explain.why_lost(race, standing, choice, leaders)
                loser = reject(config, [choice.candidate.replicas], "beaten", reason, simulated=True)
                rejections.append(loser)
                if standing.family not in placed:  # its own twin with another token budget is no news
                    distance[loser.config] = _distance(context, choice, leaders)
        for reason, counts in _unchosen(race, standing, left).items():
            rejections.append(reject(config, counts, "beaten", reason, simulated=True))
    return explain.nearest_losers(rejections, distance, NEAREST_LOSERS), rejections


def _distance(context: Context, choice: Choice, leaders: dict[str, list[tuple[Standing, Choice]]]) -> float:
    """How far behind the last place of the list that was asked for."""
    entries = leaders[context.request.optimize]
    if not entries:
        return 0.0
    mine = getattr(choice.point, context.request.optimize)
    last = getattr(entries[-1][1].point, context.request.optimize)
    ratio = mine / last if last else float("inf")
    return float(1.0 / ratio if context.request.optimize == "throughput" and ratio else ratio)


def _unchosen(race: Race, standing: Standing, left: list[int]) -> dict[str, list[int]]:
    """Reasons for the numbers of replicas of a simulated configuration that no choice stands for."""
    context, evaluation = race.context, standing.evaluation
    assert evaluation is not None
    capacity, spare = evaluation.capacity.max_load, context.request.spare_replicas
    found: dict[str, list[int]] = {}
    for replicas in left:
        carried = (replicas - spare) * capacity
        if capacity <= 0:
            reason = f"no load meets the targets: {evaluation.capacity.limited_by} fails"
        elif replicas in standing.dropped:
            reason = f"simulated whole it misses its targets at {context.load_text(context.asked_load or 0.0)}"
        elif context.asked_load is not None and carried < context.asked_load * (1 - 1e-9):
            reason = (
                f"carries less than {context.load_text(context.asked_load)}: {capacity:.4g} {context.unit} a replica, "
                f"limited by {evaluation.capacity.limited_by}"
            )
        elif context.asked_load is not None:
            reason = (
                "between the fewest replicas that carry the load and the most: dearer than these, slower than those"
            )
        else:
            reason = "another number of these replicas costs no more a replica and carries more"
        found.setdefault(reason, []).append(replicas)
    return found


def _verdict(context: Context, plans: tuple[Plan, ...], relaxations: tuple[Relaxation, ...]) -> str:
    """One line."""
    if not plans:
        asked = "" if context.asked_load is None else f" {context.load_text(context.asked_load)} of"
        first = f" {relaxations[0].text}" if relaxations else ""
        return f"Nothing carries{asked} {context.request.model.id} within targets and budget.{first}"
    best = plans[0]
    precision = f"{best.deployment.precision}, {best.deployment.engine}"
    price_text = f"${best.usd_per_hour:.2f}/h" if best.usd_per_hour is not None else "no public price"
    low, high = best.capacity_interval
    return (
        f"Deploy {best.deployment.gpu}: {best.arithmetic} ({precision}) at {price_text}; "
        f"carries {best.capacity:.3g} {best.load_unit} ({low:.3g}–{high:.3g}) within the targets"
    )


def _notes(context: Context, rejected: list[Rejection], lists: Mapping[str, Sequence[Plan]]) -> tuple[str, ...]:
    source, *rest = context.loads.unit(context.request.seed).description.split("; ")
    lengths = "; ".join([source, *(part for part in rest if " cut to " in part)])  # the rate in it is a unit rate
    notes = [f"lengths: {lengths}", *context.parts.notes.values()]
    if any(plan.deployment.parallelism.pp > 1 for plans in lists.values() for plan in plans):
        notes += [note for note in context.parts.stage_notes.values() if note not in notes]
    unpriced = sorted({r.config.split(" × ", 1)[1].split(" ", 1)[0] for r in rejected if r.kind == "price"})
    if unpriced:
        notes.append(f"left out of a search with a budget, no public price: {', '.join(unpriced)}")
    if context.request.prefix_hit_frac:
        share = context.request.prefix_hit_frac
        notes.append(f"prefix hits: {share:.0%} of every prompt is read from a shared prefix instead of computed")
    return tuple(notes)
