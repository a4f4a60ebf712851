"""Names become catalogue entries, a memory plan, a step model and an engine configuration."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from plimsoll.api.calibrations import Applied, apply_calibration
from plimsoll.api.checks import check_milliseconds, check_rate, check_settings, load_gpu, required
from plimsoll.api.engines import DEFAULT_ENGINE, NamedEngine, named_engine
from plimsoll.api.gpu_layers import LayerSplit, layer_split
from plimsoll.api.offloaded import OFFLOADING, offloaded
from plimsoll.api.routing import router_notes
from plimsoll.api.scenario import DeploymentFields, TargetFields, WorkloadFields
from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import native_precision
from plimsoll.catalog.engines import EngineFacts, check_compatibility
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import PRECISIONS, Deployment, EngineSettings, Parallelism
from plimsoll.core.errors import InputError, MissingExtraError, UnknownNameError
from plimsoll.core.step import StepModel
from plimsoll.core.units import MS_PER_S
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.metrics import Targets
from plimsoll.perf.compositions import build_composed, combined_memory_effect, parse_step_model
from plimsoll.perf.memory import OWN_POOL, MemoryAssumptions, MemoryPlan, kv_capacity
from plimsoll.perf.overheads import HostTime, choose_host_time, in_use
from plimsoll.perf.request import StepModelRequest
from plimsoll.planner.own_defaults import own_defaults_note, sized_with_own_defaults
from plimsoll.planner.pools import with_pools
from plimsoll.planner.sizing import (
    composed_assumptions,
    composed_compatibility,
    composed_memory,
    engine_config,
    with_host_time,
    with_option_defaults,
    with_ranks,
)
from plimsoll.planner.swap import with_swap_seconds
from plimsoll.workload.build import build_workload
from plimsoll.workload.spec import WorkloadSpec

__all__ = ["DEFAULT_ENGINE", "Resolved", "resolve", "resolve_for", "split_engine", "targets_of", "workload_spec"]


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
        host_time: of the engine, around its steps and before them.
        engine_version: of the engine, whose facts hold.
        notes: sentences for the user.
    """

    deployment: Deployment
    model: ModelSpec
    gpu: Accelerator
    memory: MemoryPlan
    step_model: StepModel
    step_model_facts: dict[str, Any]
    config: EngineConfig
    host_time: HostTime
    engine_version: str
    notes: tuple[str, ...]

    @property
    def arithmetic(self) -> str:
        """``8 GPUs = 2 replicas × TP 4``."""
        cut = self.deployment.parallelism
        ways = [f"{name} {count}" for name, count in (("TP", cut.tp), ("PP", cut.pp), ("DP", cut.dp)) if count > 1]
        replicas, gpus = self.deployment.replicas, self.deployment.num_gpus
        factors = " × ".join([f"{replicas} replica{'s' * (replicas > 1)}", *(ways or ["TP 1"])])
        experts = f" (experts over EP {cut.ep})" if cut.ep > 1 else ""
        return f"{gpus} GPU{'s' * (gpus > 1)} = {factors}{experts}"


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
        InputError: an option without a value, or one that stands there twice.
    """
    name, *pairs = text.split(",")
    options: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise InputError("--engine", text, "write options as NAME,option=value,option=value")
        option = key.strip().replace("-", "_")
        if option in options:
            raise InputError("--engine", text, f"give {option} once")
        options[option] = _scalar(value.strip())
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
    routing = router_notes(fields.router, config.policy, config.replicas, workload)
    known = [note for note in resolved.notes if not (pooled and note.endswith(OWN_POOL))]
    notes = (*known, *_length_note(fields, resolved), *([pooled] if pooled else []), *routing)
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
    engine = named_engine("--engine", engine_name)
    facts, policy = engine.facts, engine.policy
    parallelism = Parallelism(tp=fields.tp, pp=fields.pp, dp=fields.dp, ep=fields.ep)
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
    host_time = choose_host_time(
        engine.key, with_option_defaults(options, policy, facts, parallelism), fields.overheads, fields.pp
    )
    request = StepModelRequest(
        model=model,
        gpu=gpu,
        parallelism=parallelism,
        precision=precision,
        kv_precision=fits.kv_precision,
        overheads=host_time.steps,
    )
    fits = composed_compatibility(fits, facts, request, fields.step_model)
    applied = apply_calibration(fields, request, engine.name)
    request = applied.request
    sized = _offloaded if policy in OFFLOADING else _sized
    found = sized(fields, engine, applied, settings, workload)
    memory, host_time = found.memory, in_use(host_time, found.step_facts)
    version = facts.version if engine.is_deployable else ""
    fitted = applied.host_time_notes(host_time, engine.name, version)
    config = engine_config(memory, parallelism, policy, found.replicas, fields.router, facts)
    return Resolved(
        deployment=Deployment(
            model=model.id,
            gpu=gpu.id,
            parallelism=parallelism,
            replicas=found.replicas,
            router=fields.router,
            engine=engine.name,
            precision=precision,
            kv_precision=fits.kv_precision,
            settings=dataclasses.replace(memory.settings, num_kv_blocks=memory.num_blocks),
        ),
        model=model,
        gpu=gpu,
        memory=memory,
        step_model=found.step_model,
        step_model_facts=found.step_facts,
        config=applied.with_frontend(with_host_time(config, host_time)),
        host_time=host_time,
        engine_version=version,
        notes=(*notes, *engine.notes, *applied.notes, *fitted, *fits.notes, *found.notes, *host_time.notes),
    )


class _Sized(NamedTuple):
    """What memory holds and a step takes."""

    memory: MemoryPlan
    step_model: StepModel
    step_facts: dict[str, Any]
    replicas: int
    notes: tuple[str, ...]


def _offloaded(
    fields: DeploymentFields, engine: NamedEngine, applied: Applied, settings: EngineSettings, workload: Workload
) -> _Sized:
    """Of an engine that offloads."""
    placed = offloaded(engine.policy, fields, applied.request, settings, workload)
    return _Sized(placed.memory, placed.step_model, placed.step_model.describe(), fields.replicas, tuple(placed.notes))


def _sized(
    fields: DeploymentFields, engine: NamedEngine, applied: Applied, settings: EngineSettings, workload: Workload
) -> _Sized:
    """Of an engine on its GPUs, some of whose layers may be the host's."""
    request, policy = applied.request, engine.policy
    model, gpu = request.model, request.gpu
    longest = fields.max_model_len or model.max_position
    split = layer_split(policy, settings, request, fields)
    held = request if split is None else split.part
    size = functools.partial(_memory, fields, engine.facts, held, workload=workload)
    memory = applied.with_blocks(sized_with_own_defaults(settings, policy, longest, size))
    memory = memory if split is None else split.with_host_memory(memory)
    memory = with_swap_seconds(memory, policy, gpu)
    memory, replicas, pool_notes = with_pools(memory, fields.replicas, policy, model, gpu, request.parallelism)
    step_model, step_facts, fallback = _step_model(fields.step_model, request, split)
    own = own_defaults_note(settings, policy, memory.settings)
    return _Sized(memory, step_model, step_facts, replicas, (*own, *memory.notes, *pool_notes, *fallback))


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
    shrink = settings.max_model_len is None
    assumed = composed_assumptions(
        effect,
        MemoryAssumptions(engine=facts, expected_sequence_tokens=expected_tokens, shrink_max_model_len=shrink),
    )
    memory = kv_capacity(
        request.model, request.gpu, request.parallelism, composed.precision, composed.kv_precision, settings, assumed
    )
    return composed_memory(memory, effect, assumed)


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


def _step_model(
    name: str, request: StepModelRequest, split: LayerSplit | None
) -> tuple[StepModel, dict[str, Any], list[str]]:
    """The step model asked for; the roofline, said once, where silicon's package is not installed."""
    if split is not None:
        layered = split.step_model(name)
        return layered, layered.describe(), split.notes
    try:
        model = build_composed(name, request)
    except MissingExtraError as error:
        base, plus, compositions = name.partition("+")
        if base != "silicon":
            raise
        model = build_composed(f"roofline{plus}{compositions}", request)
        return model, model.describe(), [f"{error}; the roofline answers instead"]
    return model, model.describe(), []
