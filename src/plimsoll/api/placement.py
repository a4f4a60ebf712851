"""`plan --placement`: the layers of one model on a set of unlike GPUs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from plimsoll._version import __version__
from plimsoll.api.calibrations import calibration_notes, carried_over_notes
from plimsoll.api.planning import plan_request
from plimsoll.api.scenario import PlanScenario, build
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.metrics import to_json_dict as metrics_json
from plimsoll.planner.context import Context
from plimsoll.planner.placement import PlacedPlan, PlacementResult, search_placements, usd_per_million_tokens
from plimsoll.planner.request import PlanRequest

PLACERS = ("helr",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacementAnswer:
    """What placing layers answers.

    Attributes:
        scenario: what was asked.
        request: the same, resolved.
        result: placements, best first.
        tokens_per_request: mean prompt and output together, which prices divide by.
    """

    scenario: PlanScenario
    request: PlanRequest
    result: PlacementResult
    tokens_per_request: float

    def to_json_dict(self) -> dict[str, Any]:
        """The document that ``plimsoll plan --placement helr --json`` prints."""
        result = self.result
        return {
            "verdict": result.verdict,
            "feasible": bool(result.plans),
            "placement": self.scenario.placement,
            "model": self.request.model.id,
            "gpus": {limit.accelerator.id: limit.max_gpus for limit in self.request.gpus},
            "plans": [self._plan(rank, plan) for rank, plan in enumerate(result.plans, 1)],
            "targets": {**result.targets.named(), "percentile": result.targets.percentile},
            "notes": list(result.notes),
            "wall_s": result.wall_s,
            "version": __version__,
        }

    def _plan(self, rank: int, plan: PlacedPlan) -> dict[str, Any]:
        capacity = plan.capacity
        return {
            "rank": rank,
            "arithmetic": plan.arithmetic,
            "num_gpus": len(plan.stages),
            "precision": plan.precision,
            "objective": plan.objective,
            "num_sequences": plan.num_sequences,
            "stages": [dataclasses.asdict(stage) for stage in plan.stages],
            "kv_tokens": plan.kv_tokens,
            "request_s": plan.request_s,
            "usd_per_hour": plan.usd_per_hour,
            "usd_per_million_tokens": usd_per_million_tokens(plan, self.tokens_per_request),
            "capacity_per_s": {
                "value": capacity.max_load,
                "interval": [bound if math.isfinite(bound) else None for bound in capacity.interval],
                "unit": capacity.unit,
                "seeds": len(capacity.by_seed),
                "limited_by": capacity.limited_by,
            },
            "metrics": None if plan.metrics is None else metrics_json(plan.metrics),
        }


def place(scenario: PlanScenario | None = None, **fields: Any) -> PlacementAnswer:
    """Place the layers of a model on a set of GPUs of several kinds, and say how much load that carries.

    Args:
        scenario: what is asked; or give its fields as keywords: ``place(model="Llama-2-70b", placement="helr",
            gpus="A100-SXM-80GB:2,L40S:2", workload="chat", ttft_ms=5000)``. `gpus` is the set: as many of each kind as
            may be used, all in one pipeline; `optimize` orders the answer.
        **fields: of `PlanScenario`.

    Raises:
        InputError, UnknownNameError: a field that cannot be used, or that a placement does not look at.
    """
    asked = scenario if scenario is not None else build(PlanScenario, fields)
    if asked.placement not in PLACERS:
        raise UnknownNameError("--placement", str(asked.placement), PLACERS)
    unused = {
        "--rate": asked.rate_per_s, "--users": asked.users, "--tp": asked.tp, "--pp": asked.pp, "--dp": asked.dp,
        "--disaggregated": asked.disaggregated, "--split": asked.split, "--spare": asked.spare or None,
        "--throughput-tokens-per-s": asked.throughput_tokens_per_s, "--start-from": asked.start_from,
        "--budget-usd-per-hour": asked.budget_usd_per_hour,
    }  # fmt: skip
    for flag, value in unused.items():
        if value is not None:
            raise InputError(flag, value, "leave it out with --placement, which uses the given GPUs as one pipeline")
    if "+" in asked.step_model:
        remedy = "a placement does not count what compositions change in memory; name the step model alone"
        raise InputError("--step-model", asked.step_model, remedy)
    request = plan_request(dataclasses.replace(asked, placement=None))
    engine = request.engines[0]  # of all stages, see `planner.placement_case`
    notes = calibration_notes(asked, [engine], [limit.accelerator.id for limit in request.gpus])
    context = Context(request)
    result = search_placements(request)
    notes += carried_over_notes(asked, _circumstances(engine, result))
    return PlacementAnswer(
        scenario=asked,
        request=request,
        result=dataclasses.replace(result, notes=(*result.notes, *notes)),
        tokens_per_request=context.mean_prompt_tokens + context.mean_output_tokens,
    )


def _circumstances(engine: str, result: PlacementResult) -> dict[str, list[dict[str, str | int]]]:
    """Engine, stages and precision of the placements, by the GPUs that they use."""
    found: dict[str, list[dict[str, str | int]]] = {}
    for plan in result.plans:
        here: dict[str, str | int] = {"engine": engine, "tp": 1, "pp": len(plan.stages), "precision": plan.precision}
        for gpu in {stage.gpu for stage in plan.stages}:
            found.setdefault(gpu, []).append(here)
    return found
