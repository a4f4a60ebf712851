"""`plan`: which GPUs, how many, cut how, with which settings, and why?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plimsoll import launch
from plimsoll._version import __version__
from plimsoll.api.calibrations import calibrated_gpus, calibration_notes, carried_over_notes, circumstances
from plimsoll.api.checks import called, check_engine_name, check_rate, check_settings, load_gpu, required
from plimsoll.api.engines import named_engine
from plimsoll.api.offloaded import OFFLOADING
from plimsoll.api.pool_commands import pool_command
from plimsoll.api.resolve import targets_of, workload_spec
from plimsoll.api.resume import KeptCapacities
from plimsoll.api.scenario import PlanScenario, build
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import native_precision
from plimsoll.catalog.engines import list_engines
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import PRECISIONS, EngineSettings
from plimsoll.core.errors import InputError, PlimsollError, UnknownNameError
from plimsoll.engine.cluster import POLICIES
from plimsoll.engine.plugins import list_plugins, load_plugin
from plimsoll.launch.parse_vllm import parse_vllm_serve
from plimsoll.perf.overheads import choose_host_time
from plimsoll.planner.pools import DEFAULT_ENGINE as DEFAULT_POOL_ENGINE
from plimsoll.planner.pools import parse_split
from plimsoll.planner.preferences import preferred_targets
from plimsoll.planner.request import PlanRequest, StartingPoint
from plimsoll.planner.results import Plan, PlanResult, plan_json
from plimsoll.planner.results import to_json_dict as result_json
from plimsoll.planner.search import SearchOptions, search
from plimsoll.planner.space import GpuLimit

DEFAULT_GPUS = "H100-SXM:8,A100-SXM-80GB:8,L40S:8,H200:8"
"""What is considered where --gpus is not given: four types that many providers rent."""

PLAN_LISTS = ("plans", "top_throughput", "top_latency", "top_cost", "pareto")
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanAnswer:
    """What a plan answers, with ready commands.

    Attributes:
        scenario: what was asked.
        request: the same, resolved.
        result: plans, losers, what would have to give.
    """

    scenario: PlanScenario
    request: PlanRequest
    result: PlanResult

    def commands(self, plan: Plan) -> dict[str, str]:
        """Commands that start a plan's deployment, by target; a target that cannot run it says why in a comment."""
        gpu = next(limit.accelerator for limit in self.request.gpus if limit.accelerator.id == plan.deployment.gpu)
        request = launch.LaunchRequest(deployment=plan.deployment, model=self.request.model, gpu=gpu)
        commands = {}
        for target in launch.list_targets():
            try:
                if plan.pools is None:
                    commands[target] = launch.render(target, request)
                else:
                    commands[target] = pool_command(target, request, plan.pools)
            except PlimsollError as error:
                commands[target] = f"# {target}: {error}"
        return commands

    def to_json_dict(self) -> dict[str, Any]:
        """The document that ``plimsoll plan --json`` prints."""
        document = result_json(self.result)
        known: dict[str, dict[str, str]] = {}
        for name in PLAN_LISTS:
            document[name] = [self._plan(plan, known) for plan in getattr(self.result, name)]
        return {**document, "version": __version__}

    def _plan(self, plan: Plan, known: dict[str, dict[str, str]]) -> dict[str, Any]:
        """One plan with its commands; a deployment in several lists is written out once."""
        key = repr((plan.deployment, plan.pools))
        if key not in known:
            known[key] = self.commands(plan)
        return {**plan_json(plan), "launch": known[key]}


def plan(
    scenario: PlanScenario | None = None,
    *,
    on_progress: Progress | None = None,
    keep_in: str | Path | None = None,
    **fields: Any,
) -> PlanAnswer:
    """Search for what to deploy.

    Args:
        scenario: what is asked; or give its fields as keywords: ``plan(model="Llama-3.1-8B", gpus="H100-SXM:8",
            workload="chat", ttft_ms=1000, tpot_ms=50)``.
        on_progress: called with done, total and a word.
        keep_in: a folder in which capacities are kept as they are found, so that an interrupted search goes on where it
            stopped; None keeps nothing.
        **fields: of `PlanScenario`.

    Raises:
        InputError, UnknownNameError: a field that cannot be used. Nothing that fits is no error: `result.feasible`.
    """
    asked = scenario if scenario is not None else build(PlanScenario, fields)
    request = plan_request(asked)
    calibrations = calibration_notes(asked, request.engines, [limit.accelerator.id for limit in request.gpus])
    options = SearchOptions()
    if on_progress is not None:
        options = options._replace(on_progress=on_progress)
    if keep_in is None:
        with called("--engine", "--engines"):
            result = search(request, options)
        calibrations += carried_over_notes(asked, _circumstances(request, result))
        return PlanAnswer(scenario=asked, request=request, result=_with_notes(result, calibrations))
    kept = KeptCapacities(Path(keep_in))
    try:
        with called("--engine", "--engines"):
            result = search(request, options._replace(cache=kept))
    finally:
        kept.close()
    notes = [*calibrations, *carried_over_notes(asked, _circumstances(request, result))]
    if kept.num_resumed:
        notes.append(f"resumed: {kept.num_resumed} capacities were known from an earlier search in {keep_in}")
    return PlanAnswer(scenario=asked, request=request, result=_with_notes(result, notes))


def _circumstances(request: PlanRequest, result: PlanResult) -> dict[str, list[dict[str, str | int]]]:
    """What the listed plans and the existing one differ in, by GPU; what was searched where nothing is listed."""
    listed = [plan for name in PLAN_LISTS for plan in getattr(result, name)]
    searched = list(itertools.product(request.engines, request.resolved_precisions())) if not listed else []
    found: dict[str, list[dict[str, str | int]]] = {
        limit.accelerator.id: [{"engine": engine, "precision": precision} for engine, precision in searched]
        for limit in request.gpus
    }
    for plan in [*listed, *([] if result.starting_point is None else [result.starting_point])]:
        one = plan.deployment
        engine = one.engine if plan.pools is None else plan.pools.engine
        here = circumstances(engine, one.parallelism, one.precision, one.kv_precision)
        found.setdefault(one.gpu, []).append(here)
    return found


def _with_notes(result: PlanResult, notes: list[str]) -> PlanResult:
    return dataclasses.replace(result, notes=(*result.notes, *notes)) if notes else result


def plan_request(asked: PlanScenario) -> PlanRequest:
    """The scenario with every name resolved."""
    required(asked, "model")
    if asked.placement is not None:
        raise InputError("--placement", asked.placement, "in Python call plimsoll.api.placement.place with it")
    check_settings(asked)
    check_rate(asked.rate_per_s)
    choose_host_time("", {}, asked.overheads)  # a wrong name is wrong before the search
    if asked.latency_preference is not None:
        preferred_targets(asked.latency_preference)  # a wrong name is wrong, also where targets make it idle
    assert asked.model is not None
    model = load_model(asked.model)
    thinking_s = 0.0 if asked.users is not None else asked.think_s  # the planner sets the users, not the spec
    spec = workload_spec(dataclasses.replace(asked, rate_per_s=asked.rate_per_s or 1.0, users=None, think_s=thinking_s))
    gpus = _gpus(asked.gpus if asked.gpus is not None else DEFAULT_GPUS)
    return PlanRequest(
        model=model,
        gpus=gpus,
        workload=spec,
        rate_per_s=asked.rate_per_s,
        users=asked.users,
        think_s=asked.think_s,
        throughput_tokens_per_s=asked.throughput_tokens_per_s,
        budget_usd_per_hour=asked.budget_usd_per_hour,
        targets=targets_of(asked),
        latency_preference=asked.latency_preference,
        precisions=_precisions(asked.precisions),
        precision_tolerance=asked.precision_tolerance,
        kv_precision=asked.kv_precision,
        engines=_engines(asked.engines),
        step_model=asked.step_model,
        overheads=asked.overheads,
        token_budgets=tuple(_numbers("--token-budgets", asked.token_budgets) or ()),
        settings=EngineSettings(
            max_num_seqs=asked.max_num_seqs,
            max_model_len=asked.max_model_len,
            gpu_memory_utilization=asked.gpu_memory_utilization,
        ),
        tp=_numbers("--tp", asked.tp),
        pp=_numbers("--pp", asked.pp),
        dp=_numbers("--dp", asked.dp),
        pool_engine=_pool_engine(asked),
        split=parse_split(asked.split) if asked.split is not None else None,
        prefix_hit_frac=asked.prefix_hit_frac,
        spare_replicas=asked.spare,
        optimize=asked.optimize,
        top=asked.top,
        router=asked.router,
        seed=asked.seed,
        starting_point=_starting_point(asked, model, gpus),
        factors=calibrated_gpus(asked, model, [limit.accelerator for limit in gpus]),
    )


def _gpus(text: str) -> tuple[GpuLimit, ...]:
    """``H100-SXM:8,L40S:16``: types and how many of each at most (8 where no number is given)."""
    limits = []
    for word in _words("--gpus", text):
        name, colon, count = word.rpartition(":")
        if not colon:
            name, count = word, "8"
        if not count.isdigit() or not 1 <= int(count) <= 4096:
            raise InputError("--gpus", word, "write a type and how many at most, such as H100-SXM:8")
        limits.append(GpuLimit(accelerator=load_gpu("--gpus", name), max_gpus=int(count)))
    return tuple(limits)


def _engines(text: str) -> tuple[str, ...]:
    """Deployable engines, scheduling policies by their own names, and users' policy files."""
    found = [named_engine("--engines", word) for word in _words("--engines", text)]
    known = (*list_engines(), *list_plugins(POLICIES))
    for one in found:
        if one.policy in OFFLOADING:
            remedy = "plan keeps weights and cache on the GPU; ask simulate or study what offloading gives"
            raise InputError("--engines", one.name, remedy)
        if one.name.endswith(".py"):
            load_plugin(POLICIES, one.name, "--engines")
        elif not one.is_deployable:
            check_engine_name("--engines", one.name, known)
    return tuple(dict.fromkeys(one.name for one in found))


def _pool_engine(asked: PlanScenario) -> str | None:
    """Whose rules hold for pools; a split alone asks for pools too."""
    if asked.disaggregated is None:
        return DEFAULT_POOL_ENGINE if asked.split is not None else None
    return DEFAULT_POOL_ENGINE if asked.disaggregated == "auto" else asked.disaggregated


def _precisions(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    words = _words("--precisions", text)
    for word in words:
        if word not in PRECISIONS:
            raise UnknownNameError("--precisions", word, PRECISIONS)
    return words


def _words(field: str, text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise InputError(field, text, "give at least one name, separated by commas")
    return words


def _numbers(field: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    words = _words(field, text)
    if not all(word.isdigit() and int(word) >= 1 for word in words):
        raise InputError(field, text, "give whole numbers of at least 1, separated by commas")
    return tuple(int(word) for word in words)


def _starting_point(asked: PlanScenario, model: ModelSpec, gpus: tuple[GpuLimit, ...]) -> StartingPoint | None:
    """An existing ``vllm serve …`` command, or a file that holds one."""
    if asked.start_from is None:
        return None
    text = asked.start_from
    if not text.lstrip().startswith(("vllm", "python", "#")) and Path(text).is_file():
        text = Path(text).read_text(encoding="utf-8", errors="replace")
    serve = parse_vllm_serve(text)
    served = load_model(serve.model).id
    if served != model.id:
        raise InputError(
            "--start-from", serve.model, f"it serves another model than --model {model.id}; give its command"
        )
    gpu = serve.gpu or gpus[0].accelerator.id
    deployment = serve.deployment(gpu=gpu, native_precision=native_precision(model))
    return StartingPoint(
        accelerator=load_accelerator(deployment.gpu),
        parallelism=deployment.parallelism,
        replicas=deployment.replicas,
        precision=deployment.precision,
        engine=deployment.engine,
        settings=deployment.settings,
    )
