"""Names become catalogue entries, a memory plan, a step model and an engine configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

from plimsoll.api.calibrations import apply_calibration
from plimsoll.api.checks import check_milliseconds, check_policy, check_rate, check_settings, load_gpu, required
from plimsoll.api.offloaded import OFFLOADING, offloaded
from plimsoll.api.scenario import DeploymentFields, TargetFields, WorkloadFields
from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import native_precision
from plimsoll.catalog.engines import EngineFacts, check_compatibility, list_engines, load_engine
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import PRECISIONS, Deployment, EngineSettings, Parallelism
from plimsoll.core.errors import InputError, MissingExtraError, UnknownNameError
from plimsoll.core.step import StepModel
from plimsoll.core.units import MS_PER_S
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.metrics import Targets
from plimsoll.perf.compositions import build_composed, combined_memory_effect, parse_step_model
from plimsoll.perf.memory import MemoryAssumptions, MemoryPlan, kv_capacity
from plimsoll.perf.overheads import list_overheads, load_overheads
from plimsoll.perf.request import StepModelRequest
from plimsoll.planner.pools import with_pools
from plimsoll.planner.sizing import composed_memory, engine_config, with_ranks
from plimsoll.planner.swap import with_swap_seconds
from plimsoll.workload.build import build_workload
from plimsoll.workload.spec import WorkloadSpec

DEFAULT_ENGINE = "vllm-v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A deployment with everything that its names stand for.

    Attributes:
        deployment: with complete settings.
        model, gpu: catalogue entries.
        memory: where the memory of the worst GPU goes.
        step_model: seconds of a step.
        step_model_facts: what it is made of: name, sources, versions.
        config: what the engine is told.
        notes: sentences for the user.
    """

    deployment: Deployment
    model: ModelSpec
    gpu: Accelerator
    memory: MemoryPlan
    step_model: StepModel
    step_model_facts: dict[str, Any]
    config: EngineConfig
    notes: tuple[str, ...]

    @property
    def arithmetic(self) -> str:
        """``8 GPUs = 2 replicas × TP 4``."""
        cut = self.deployment.parallelism
        ways = [f"{name} {count}" for name, count in (("TP", cut.tp), ("PP", cut.pp), ("DP", cut.dp)) if count > 1]
        replicas, gpus = self.deployment.replicas, self.deployment.num_gpus
        factors = " × ".join([f"{replicas} replica{'s' * (replicas > 1)}", *(ways or ["TP 1"])])
        return f"{gpus} GPU{'s' * (gpus > 1)} = {factors}"


def targets_of(fields: TargetFields) -> Targets:
    """Targets in seconds from fields in milliseconds."""

    def seconds(field: str, milliseconds: float | None) -> float | None:
        check_milliseconds(field, milliseconds)
        return None if milliseconds is None else milliseconds / MS_PER_S

    return Targets(
        ttft_s=seconds("--ttft-ms", fields.ttft_ms),
        tpot_s=seconds("--tpot-ms", fields.tpot_ms),
        e2e_s=seconds("--e2e-ms", fields.e2e_ms),
        percentile=fields.percentile,
    )


def workload_spec(fields: WorkloadFields, duration_s: float | None = None) -> WorkloadSpec:
    """The fields as the workload package takes them; not every verb has all of them."""
    check_rate(fields.rate_per_s)
    return WorkloadSpec(
        preset=fields.workload,
        trace=fields.trace,
        trace_format=fields.trace_format,
        prompt_tokens=fields.prompt_tokens,
        output_tokens=fields.output_tokens,
        rate_per_s=fields.rate_per_s,
        concurrency=getattr(fields, "concurrency", None),
        users=fields.users,
        at_once=getattr(fields, "at_once", False),
        arrivals=fields.arrivals,
        burstiness=fields.burstiness,
        think_s=fields.think_s,
        num_requests=getattr(fields, "num_requests", None),
        duration_s=duration_s,
        seed=fields.seed,
    )


def split_engine(text: str) -> tuple[str, dict[str, str | int | float | bool]]:
    """``vllm-v1,watermark=0.01`` as name and options.

    Raises:
        InputError: an option without a value.
    """
    name, *pairs = text.split(",")
    options: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise InputError("--engine", text, "write options as NAME,option=value,option=value")
        options[key.strip().replace("-", "_")] = _scalar(value.strip())
    return name, options


def _scalar(text: str) -> str | int | float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def resolve(fields: DeploymentFields, spec: WorkloadSpec) -> tuple[Resolved, Workload, WorkloadSpec]:
    """The deployment, and the workload cut to what the deployment takes.

    Raises:
        UnknownNameError, InputError: a name or value that cannot be used.
        InfeasibleError: the deployment would not start, with the reason and what would have to give.
    """
    required(fields, "model", "gpu")
    check_settings(fields)
    assert fields.model is not None
    model = load_model(fields.model)
    longest = min(fields.max_model_len or model.max_position, model.max_position)
    if fields.max_model_len is not None and fields.max_model_len > model.max_position:
        longest = fields.max_model_len  # positions may be stretched on purpose
    spec = dataclasses.replace(spec, max_model_len=spec.max_model_len or longest)
    workload = build_workload(spec)
    resolved = resolve_for(fields, workload)
    served = min(resolved.memory.max_model_len, resolved.config.num_blocks // fields.dp * resolved.config.block_size)
    if served < longest:
        spec = dataclasses.replace(spec, max_model_len=served)
        workload = build_workload(spec)
    config, pooled = with_ranks(resolved.config, fields.dp, workload, resolved.step_model)
    notes = (*resolved.notes, *_length_note(fields, resolved), *([pooled] if pooled else []))
    return dataclasses.replace(resolved, config=config, notes=notes), workload, spec


def resolve_for(fields: DeploymentFields, workload: Workload) -> Resolved:
    """The deployment for given requests, which are not cut; raises as `resolve`."""
    required(fields, "model", "gpu")
    check_settings(fields)
    assert fields.model is not None
    assert fields.gpu is not None
    return _resolve_names(fields, load_model(fields.model), load_gpu("--gpu", fields.gpu), workload)


def _length_note(fields: DeploymentFields, resolved: Resolved) -> list[str]:
    """Says so where the longest sequence was shortened without being asked for."""
    longest, possible = resolved.memory.max_model_len, resolved.model.max_position
    if fields.max_model_len is not None or longest >= possible or resolved.config.policy in OFFLOADING:
        return []
    shortened = f"max length {longest:,}: the longest sequence whose KV cache fits (the model takes {possible:,})"
    return [f"{shortened}; a server needs --max-model-len {longest} to start"]


def _resolve_names(fields: DeploymentFields, model: ModelSpec, gpu: Accelerator, workload: Workload) -> Resolved:
    engine_name, options = split_engine(fields.engine)
    facts = load_engine(engine_name if engine_name in list_engines() else DEFAULT_ENGINE)
    parallelism = Parallelism(tp=fields.tp, pp=fields.pp, dp=fields.dp, ep=fields.ep)
    policy = facts.policy if engine_name in list_engines() else engine_name
    if engine_name in list_engines():
        check_policy("--engine", engine_name, policy)
    precision, notes = _precision(fields, model, gpu)
    fits = check_compatibility(facts, model, gpu, parallelism, precision, fields.kv_precision)
    settings = EngineSettings(
        max_num_seqs=fields.max_num_seqs,
        max_num_batched_tokens=fields.max_num_batched_tokens,
        max_model_len=fields.max_model_len,
        block_size=fields.block_size,
        gpu_memory_utilization=fields.gpu_memory_utilization,
        num_kv_blocks=fields.kv_blocks,
        options=options,
    )
    request = StepModelRequest(
        model=model,
        gpu=gpu,
        parallelism=parallelism,
        precision=precision,
        kv_precision=fits.kv_precision,
        overheads=load_overheads(facts.id if facts.id in list_overheads() else DEFAULT_ENGINE),
    )
    applied = apply_calibration(fields, request, engine_name)
    request = applied.request
    step_model: StepModel
    if policy in OFFLOADING:
        placed = offloaded(policy, model, gpu, parallelism, settings, workload)
        memory, step_model = placed.memory, placed.step_model
        step_facts = placed.step_model.describe()
        replicas, extra = fields.replicas, list(placed.notes)
    else:
        memory = applied.with_blocks(_memory(fields, facts, request, settings, workload))
        memory = with_swap_seconds(memory, policy, gpu)
        memory, replicas, pool_notes = with_pools(memory, fields.replicas, policy, model, gpu, parallelism)
        step_model, step_facts, fallback = _step_model(fields.step_model, request)
        extra = [*memory.notes, *pool_notes, *fallback, *_overheads_note(facts.id)]
    return Resolved(
        deployment=Deployment(
            model=model.id,
            gpu=gpu.id,
            parallelism=parallelism,
            replicas=replicas,
            router=fields.router,
            engine=engine_name,
            precision=precision,
            kv_precision=fits.kv_precision,
            settings=dataclasses.replace(memory.settings, num_kv_blocks=memory.num_blocks),
        ),
        model=model,
        gpu=gpu,
        memory=memory,
        step_model=step_model,
        step_model_facts=step_facts,
        config=applied.with_frontend(engine_config(memory, parallelism, policy, replicas, fields.router)),
        notes=(*notes, *applied.notes, *fits.notes, *extra),
    )


def _memory(
    fields: DeploymentFields,
    facts: EngineFacts,
    request: StepModelRequest,
    settings: EngineSettings,
    workload: Workload,
) -> MemoryPlan:
    """The memory of the worst GPU, with what optimisations of cache and weights change."""
    expected_tokens = max(round(float((workload.prompt_tokens + workload.output_tokens).mean())), 1)
    composed, effect = combined_memory_effect(request, parse_step_model(fields.step_model)[1])
    memory = kv_capacity(
        request.model, request.gpu, request.parallelism, composed.precision, composed.kv_precision, settings,
        MemoryAssumptions(engine=facts, expected_sequence_tokens=expected_tokens, shrink_max_model_len=True),
    )  # fmt: skip
    return composed_memory(memory, effect, expected_tokens)


def _overheads_note(engine: str) -> list[str]:
    """Says so where an engine's host time is not known."""
    if engine in list_overheads():
        return []
    return [f"the host time of {engine} around a step is not known: that of {DEFAULT_ENGINE} is used"]


def _precision(fields: DeploymentFields, model: ModelSpec, gpu: Accelerator) -> tuple[str, list[str]]:
    """The precision asked for, or the checkpoint's own; fp16 where the GPU has no bf16, as vLLM falls back."""
    if fields.precision is not None:
        if fields.precision not in PRECISIONS:
            raise UnknownNameError("--precision", fields.precision, PRECISIONS)
        return fields.precision, []
    native = native_precision(model)
    if native == "bf16" and "bf16" not in gpu.dense_flop_per_s:
        return "fp16", [f"{gpu.id} has no bf16: weights run in fp16, as vLLM's --dtype auto does"]
    return native, []


def _step_model(name: str, request: StepModelRequest) -> tuple[StepModel, dict[str, Any], list[str]]:
    """The step model asked for; the roofline, said once, where silicon's package is not installed."""
    try:
        model = build_composed(name, request)
    except MissingExtraError as error:
        base, plus, compositions = name.partition("+")
        if base != "silicon":
            raise
        model = build_composed(f"roofline{plus}{compositions}", request)
        return model, model.describe(), [f"{error}; the roofline answers instead"]
    return model, model.describe(), []
