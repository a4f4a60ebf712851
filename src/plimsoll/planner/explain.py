"""Why: what binds a plan, why it leads, why its neighbours lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from plimsoll.planner.context import Context
from plimsoll.planner.pool_estimate import PoolEstimator
from plimsoll.planner.results import Rejection

if TYPE_CHECKING:
    from plimsoll.planner.branch import Choice, Race, Standing

_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end-to-end latency"}


def binding_constraint(context: Context, standing: Standing, limited_by: str) -> str:
    """What fails first above the capacity, and the resource behind it."""
    target = context.targets.named().get(f"{limited_by}_s")
    percentile = f"p{context.targets.percentile:g}"
    resource = bottleneck(standing)
    if target is not None:
        return f"{_NAMES[limited_by]} {percentile} reaches its target of {target * 1e3:g} ms; behind it: {resource}"
    if limited_by == "stationarity":
        return f"throughput: beyond it the queue grows; behind it: {resource}"
    if limited_by == "none":
        return "none found: no load that was tried failed"
    return f"{limited_by}; behind it: {resource}"


def bottleneck(standing: Standing) -> str:
    """The resource that is used up first, from the estimate at the capacity."""
    estimator, estimate, evaluation = standing.screened.estimator, standing.screened.estimate, standing.evaluation
    rate = evaluation.requests_per_s if evaluation is not None else estimate.bound_per_s
    if isinstance(estimator, PoolEstimator) and rate > 0.85 * estimator.prefill_bound_per_s():
        busy = min(rate / estimator.prefill_bound_per_s(), 1.0)
        return f"compute: the prefill pool of {estimator.pools.prefill} is {busy:.0%} busy"
    batch, full = estimator.batch_at(rate), estimator.largest_batch()
    if batch is None or batch >= 0.85 * full[0]:
        sequences = f"{full[0] * estimator.num_stages:.0f} sequences"
        budget = estimator.limits.max_num_batched_tokens * estimator.limits.ranks
        words = {
            "kv memory": f"KV memory is full at {sequences}",
            "seats": f"all seats are taken at {sequences}",
            "token budget": f"the token budget: steps of {budget} are full with prompts and {sequences}",
        }
        return words[full[1]]
    steps_s = estimator.decode_step_s(max(batch, 1.0))
    share = rate * estimator.prefill_s(max(batch, 1.0), packed=False)
    if share > 0.5 and not isinstance(estimator, PoolEstimator):
        return f"compute: prompts take {min(share, 1.0):.0%} of the time"
    floor_s = estimator.decode_step_s(1.0)
    if steps_s < 1.5 * floor_s:
        return f"memory bandwidth: reading weights is {floor_s / steps_s:.0%} of a decode step"
    return f"decode steps of {steps_s * 1e3:.3g} ms with {batch * estimator.num_stages:.0f} sequences"


def why_leading(
    objective: str, context: Context, entry: tuple[Standing, Choice], others: Sequence[Choice], rank: int = 1
) -> str:
    """Why this one stands where it stands, and what the next one gives."""
    choice = entry[1]
    lead = _LEADS[objective] if rank == 1 else f"number {rank} by {objective}"
    text = f"{lead}: {figure(objective, context, choice)}"
    if not others:
        return f"{text}; nothing else {_carries(context)}"
    following = others[0]
    gap = _gap(objective, choice, following)
    return f"{text}; next is {following.candidate.name} with {figure(objective, context, following)}{gap}"


_LEADS = {"cost": "cheapest", "throughput": "most throughput", "latency": "fastest", "pareto": "not beaten"}


def _carries(context: Context) -> str:
    if context.asked_load is None:
        return "meets the targets at any load"
    return f"carries {context.load_text(context.asked_load)} within the targets"


def figure(objective: str, context: Context, choice: Choice) -> str:
    """What an objective looks at, in words."""
    if objective == "throughput":
        return f"{choice.point.throughput:.4g} {context.unit}"
    if objective == "latency":
        return f"{choice.point.latency:.3g} s mean end to end"
    if objective == "pareto":
        cost = figure("cost", context, choice)
        return f"{cost}, {figure('throughput', context, choice)}, {figure('latency', context, choice)}"
    if not math.isfinite(choice.point.cost):
        return "no price"
    if context.asked_load is not None:
        return f"${choice.point.cost:.2f}/h"
    return f"${choice.point.cost:.3g} per million tokens"


def _gap(objective: str, choice: Choice, following: Choice) -> str:
    mine = getattr(choice.point, objective) if objective != "pareto" else 0.0
    other = getattr(following.point, objective) if objective != "pareto" else 0.0
    if not (mine > 0 and math.isfinite(mine) and math.isfinite(other)):
        return ""
    change = other / mine - 1.0
    ahead = change > 0 if objective == "throughput" else change < 0
    if ahead and following.doubt > choice.doubt:
        why = f", behind because its step times are known to {following.doubt:.0%} only, these to {choice.doubt:.0%}"
        return f" ({change:+.0%}{why})"
    return f" ({change:+.0%})" if abs(change) >= 0.005 else " (a tie)"


def why_lost(race: Race, standing: Standing, choice: Choice, leaders: dict[str, list[tuple[Standing, Choice]]]) -> str:
    """Why a simulated candidate is in no list: who is before it, and by how much, the objective asked for first."""
    context = race.context
    parts = []
    for objective in sorted(leaders, key=lambda name: name != context.request.optimize):
        entries = leaders[objective]
        if not entries:
            continue
        if objective == "cost" and not math.isfinite(choice.point.cost):
            parts.append("it has no price")
            continue
        twin = next((other for other, _ in entries if other.family == standing.family), None)
        place = entries[-1] if twin is None else next(entry for entry in entries if entry[0] is twin)
        what = f"place {len(entries)}" if twin is None else "the same cut"
        parts.append(
            f"{_gap_text(objective, place[1], choice)} {what} ({place[1].candidate.name}): "
            f"{figure(objective, context, choice)} against {figure(objective, context, place[1])}"
        )
    return "; ".join(parts) or "nothing leads"


_WORSE = {"cost": "{} dearer than", "throughput": "carries {} less than", "latency": "{} slower than"}
_BETTER = {"cost": "{} cheaper than", "throughput": "carries {} more than", "latency": "{} faster than"}


def _gap_text(objective: str, leader: Choice, choice: Choice) -> str:
    """``5% dearer than``: how far `choice` is from `leader`."""
    mine, other = getattr(choice.point, objective), getattr(leader.point, objective)
    if not (mine > 0 and other > 0 and math.isfinite(mine) and math.isfinite(other)):
        return "not comparable with"
    change = mine / other - 1.0
    if abs(change) < 0.005:
        return "a tie with"
    worse = change < 0 if objective == "throughput" else change > 0
    return (_WORSE if worse else _BETTER)[objective].format(f"{abs(change):.0%}")


def why_not_simulated(race: Race, hopes: Sequence[Choice], leaders: dict[str, list[tuple[Standing, Choice]]]) -> str:
    """Why a bound was enough."""
    context, parts = race.context, []
    for objective in sorted(leaders, key=lambda name: name != context.request.optimize):
        entries = leaders[objective]
        if not entries or not hopes:
            continue
        best = min(hopes, key=lambda hope: _order(objective, hope))
        if objective == "cost" and not math.isfinite(best.point.cost):
            continue
        last = entries[-1][1]
        parts.append(
            f"{figure(objective, context, best)} at best against {figure(objective, context, last)} "
            f"({last.candidate.name})"
        )
    return "not simulated, for its optimistic bound is beaten: " + ("; ".join(parts) or "it carries too little")


def _order(objective: str, choice: Choice) -> float:
    value = float(getattr(choice.point, objective))
    return -value if objective == "throughput" else value


def nearest_losers(rejections: Sequence[Rejection], order: dict[str, float], limit: int) -> tuple[Rejection, ...]:
    """The simulated losers closest to a place, by `order` (rejection's config to distance)."""
    beaten = [rejection for rejection in rejections if rejection.config in order]
    return tuple(sorted(beaten, key=lambda rejection: order[rejection.config])[:limit])
