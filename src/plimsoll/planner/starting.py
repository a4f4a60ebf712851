"""An existing deployment, judged like the candidates, to say what changing it would bring."""

from __future__ import annotations

import dataclasses

from plimsoll.core.errors import InfeasibleError, OutOfRangeError
from plimsoll.planner.branch import Choice, Race, job_for
from plimsoll.planner.context import Context
from plimsoll.planner.evaluate import FINE, Evaluator, WholeJob
from plimsoll.planner.finalists import Finals
from plimsoll.planner.pareto import Point
from plimsoll.planner.prune import Priced, screen_one
from plimsoll.planner.results import Plan
from plimsoll.planner.space import Candidate, GpuLimit, ReplicaConfig
from plimsoll.planner.workers import Workers


def compare_starting_point(context: Context, plans: tuple[Plan, ...]) -> tuple[Plan | None, str]:
    """The starting point as a plan of rank 0, and one sentence; (None, "") without one.

    It is judged with its own settings, whatever it costs and whether or not it carries the load.
    """
    start = context.request.starting_point
    if start is None:
        return None, ""
    config = ReplicaConfig(
        accelerator=start.accelerator,
        parallelism=start.parallelism,
        precision=start.precision,
        engine=start.engine,
        max_num_batched_tokens=start.settings.max_num_batched_tokens,
    )
    candidate = Candidate(config=config, replicas=start.replicas)
    own = dataclasses.replace(
        context.request,
        gpus=(GpuLimit(accelerator=start.accelerator, max_gpus=candidate.num_gpus),),
        settings=start.settings,
        budget_usd_per_hour=None,
        starting_point=None,
        spare_replicas=min(context.request.spare_replicas, start.replicas - 1),
    )
    own_context = Context(own, context.parts.like(own))
    try:
        screened = screen_one(own_context, config)
    except (InfeasibleError, OutOfRangeError) as error:
        return None, f"The starting point would not start: {error}"
    rental = own_context.parts.rental(config, start.replicas)
    race = Race(own_context, [Priced(screened=screened, candidates=((candidate, rental),))])
    evaluator = Evaluator(own_context)
    evaluator.know(screened)
    standing = race.standings[0]
    race.record(standing, evaluator.run(job_for(race, standing, FINE)), FINE)
    finals = Finals(race, Workers(evaluator, 1, num_workers=1))
    assert standing.evaluation is not None
    capacity = standing.evaluation.capacity
    carried = (start.replicas - own.spare_replicas) * capacity.max_load
    if not standing.choices:
        load = own_context.asked_load
        if load is None:
            return None, f"The starting point meets the targets at no load: {capacity.limited_by} fails."
        point = Point(race.cost(rental, carried, carried), carried, 0.0)
        choice = Choice(candidate=candidate, rental=rental, point=point, load=load, doubt=standing.doubt)
        job = WholeJob(config=config, replicas=start.replicas, load=load)
        latency = evaluator.run(job).metrics.e2e_s.mean
        if latency is None:
            return None, f"The starting point finishes nothing at {own_context.load_text(load)}."
        standing.choices = (dataclasses.replace(choice, point=point._replace(latency=latency)),)
    plan = finals.plan(standing, standing.choices[0], 0, "the starting point")
    return plan, _compare(own_context, plan, plans)


def _compare(context: Context, plan: Plan, plans: tuple[Plan, ...]) -> str:
    fails = context.asked_load is not None and plan.capacity < context.asked_load
    text = f"The starting point ({plan.arithmetic} {plan.deployment.gpu}) carries {plan.capacity:.3g} {plan.load_unit}"
    if fails and context.asked_load is not None:
        text += f", too little for {context.load_text(context.asked_load)}"
    if not plans:
        return f"{text}."
    best = plans[0]
    parts = []
    if plan.usd_per_hour and best.usd_per_hour:
        parts.append(f"{best.usd_per_hour / plan.usd_per_hour - 1.0:+.0%} in dollars per hour")
    if plan.usd_per_million_tokens and best.usd_per_million_tokens and not fails:
        change = best.usd_per_million_tokens / plan.usd_per_million_tokens - 1.0
        parts.append(f"{change:+.0%} in dollars per token")
    if plan.capacity > 0:
        parts.append(f"{best.capacity / plan.capacity - 1.0:+.0%} in capacity")
    if plan.e2e_s > 0 and not fails:
        parts.append(f"{best.e2e_s / plan.e2e_s - 1.0:+.0%} in latency")
    return f"{text}; the best plan changes that by {', '.join(parts)}."
