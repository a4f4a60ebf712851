"""An engine that offloads (``flexgen``): where weights, cache and hidden states lie, and in what blocks.

Its memory plan is no GPU's: the block of sequences comes from the placement over GPU, CPU and disk, and the engine gets
exactly the KV blocks that this many longest sequences take. What a user asks for and FlexGen has not is refused, not
passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from plimsoll.api.scenario import DeploymentFields
from plimsoll.calibration import read_calibration
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import weight_bytes
from plimsoll.core.deployment import EngineSettings
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.source import Source
from plimsoll.core.workload import Workload
from plimsoll.engine.config import Option
from plimsoll.engine.plugins import load_plugin, option_defaults
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.calibrated import Calibrated, calibrated
from plimsoll.perf.compositions import parse_step_model
from plimsoll.perf.memory import MemoryPlan
from plimsoll.perf.offload.composed import APPLIED, composed_work, composition_notes, with_compositions
from plimsoll.perf.offload.flexgen import BlockWork, Placement, block_model, check_tiers, evaluate, stored_bytes
from plimsoll.perf.offload.flexgen_search import OffloadPlan, SearchLimits, best_placement, search
from plimsoll.perf.offload.hardware import OffloadHardware
from plimsoll.perf.offload.layer import LayerShape, layer_shape
from plimsoll.perf.offload.machines import USABLE, machine_for
from plimsoll.perf.offload.steps import OffloadedSteps
from plimsoll.perf.request import StepModelRequest

OFFLOADING = ("flexgen",)
PLAIN_STEP_MODEL = "roofline"
"""What ``--step-model`` is where nobody says anything: an engine that offloads has a step cost of its own."""
SIXTEEN_BIT = ("fp16", "bf16")
Fields = TypeVar("Fields", bound=DeploymentFields)
BLOCK_TOKENS = 16
NUM_PERCENT = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offloaded:
    """What stands for memory and seconds of an engine that offloads.

    Attributes:
        memory: sizes for the engine, and the placement in words.
        step_model: seconds of its steps.
        notes: sentences for the user.
    """

    memory: MemoryPlan
    step_model: DescribedStepModel | Calibrated
    notes: tuple[str, ...]


def offloaded(
    policy: str,
    fields: DeploymentFields,
    request: StepModelRequest,
    settings: EngineSettings,
    workload: Workload,
) -> Offloaded:
    """Place a model that need not fit on its GPU, for the longest prompt and the longest answer of the workload.

    Raises:
        InfeasibleError: more than one GPU, weights that no tier holds, no block that fits, or something asked for that
            the engine does not apply (a step model, a composition, a precision, a setting).
        InputError, UnknownNameError: an option that cannot be used.
        MissingExtraError: the placement search needs scipy.
    """
    _refuse_ignored(policy, fields, request)
    model, gpu, choices = request.model, request.gpu, parse_step_model(fields.step_model)[1]
    if request.parallelism.num_gpus > 1:
        raise InfeasibleError(f"{policy} is simulated on one GPU; use --tp 1 and --pp 1", "topology")
    options = {**option_defaults(load_plugin("plimsoll.engine.policies", policy, "--engine")), **settings.options}
    hardware, note = machine_for(gpu, str(options["machine"]))
    shape = layer_shape(model)
    work = composed_work(_work(options, workload), choices, request)
    check_tiers(shape, hardware, work)
    plan = _plan(shape, hardware, work, options, settings)
    longest = plan.work.prompt_tokens + plan.work.output_tokens
    memory = _memory(plan, model, shape, longest, settings)
    notes = [
        f"blocks are made for the longest prompt and answer of this workload: {longest:,} tokens",
        f"rates: {hardware.source}",
    ]
    steps = with_compositions(OffloadedSteps(shape, hardware, plan.placement, plan.work), choices, request)
    return Offloaded(
        memory=memory,
        step_model=calibrated(steps, request.factors),
        notes=(*notes, *([note] if note else []), *composition_notes(choices)),
    )


def own_step_model(fields: Fields) -> Fields:
    """For a comparison with other engines: an engine that offloads keeps its own step cost, compositions included."""
    base, plus, compositions = fields.step_model.partition("+")
    if fields.engine.partition(",")[0] not in OFFLOADING or base == PLAIN_STEP_MODEL:
        return fields
    return dataclasses.replace(fields, step_model=f"{PLAIN_STEP_MODEL}{plus}{compositions}")


def _refuse_ignored(policy: str, fields: DeploymentFields, request: StepModelRequest) -> None:
    """Refuse what would change nothing.

    Raises:
        InfeasibleError: constraint ``engine`` or ``precision``; names the flag.
    """
    base = parse_step_model(fields.step_model)[0]
    if base != PLAIN_STEP_MODEL:
        raise InfeasibleError(
            f"{policy} has a step cost of its own and no use for the step model {base}: leave --step-model out, or "
            f"write {PLAIN_STEP_MODEL}+ and one of {', '.join(APPLIED)}",
            "engine",
        )
    sizes = "gpu-batch and num-gpu-batches size its blocks"
    given = (
        ("--kv-blocks", fields.kv_blocks, sizes),
        ("--block-size", fields.block_size, sizes),
        ("--max-num-batched-tokens", fields.max_num_batched_tokens, sizes),
        ("--gpu-memory-utilization", fields.gpu_memory_utilization, f"it fills {USABLE:.0%} of every tier"),
        ("--overheads", fields.overheads, "the fitted rates of its machine have the host's time in them"),
    )
    for flag, value, instead in given:
        if value is not None:
            raise InfeasibleError(f"{policy} does not apply {flag} {value}: {instead}; leave it out", "engine")
    wanted = (("--precision", request.precision), ("--kv-precision", request.kv_precision))
    for flag, precision in wanted:
        if precision not in SIXTEEN_BIT:
            remedy = "write compress-weights=true or compress-cache=true for 4 bit, or a 16-bit precision"
            raise InfeasibleError(f"{policy} does not apply {flag} {precision}: {remedy}", "precision")
    if fields.calibration is not None:
        measured = read_calibration(fields.calibration).circumstances.get("engine")
        if measured != policy:
            reason = (
                f"{policy} has a step cost of its own, which a calibration measured with {measured} says nothing of"
            )
            raise InfeasibleError(f"{reason}: leave --calibration out", "engine")


def _work(options: Mapping[str, Option], workload: Workload) -> BlockWork:
    """Lengths and compression; a block of one sequence until sizes are chosen."""
    compress_cache = bool(options["compress_cache"])
    for name in ("gpu_batch", "num_gpu_batches"):
        if int(options[name]) < 0:
            raise InputError(f"option {name} of flexgen", options[name], "give a size of at least 1, or 0 to search")
    return BlockWork(
        prompt_tokens=int(workload.prompt_tokens.max()),
        output_tokens=int(workload.output_tokens.max()),
        gpu_batch=max(1, int(options["gpu_batch"])),
        num_gpu_batches=max(1, int(options["num_gpu_batches"])),
        compress_weights=bool(options["compress_weights"]),
        compress_cache=compress_cache,
        cpu_attention=bool(options["cpu_attention"]) and not compress_cache,
    )


def _plan(
    shape: LayerShape,
    hardware: OffloadHardware,
    work: BlockWork,
    options: Mapping[str, Option],
    settings: EngineSettings,
) -> OffloadPlan:
    """Given sizes and placement, given sizes and the best placement, or both from the search."""
    percent = str(options["percent"])
    fixed = bool(options["gpu_batch"]) or bool(options["num_gpu_batches"])
    if percent:
        placement = _percent(percent)
        cost = evaluate(block_model(shape, hardware, work), placement)
        _check_fit(shape, work, placement, hardware)
        return OffloadPlan(work=work, placement=placement, cost=cost)
    if not fixed:
        most = settings.max_num_seqs or SearchLimits().max_gpu_batch
        return search(shape, hardware, work, SearchLimits(max_gpu_batch=min(most, SearchLimits().max_gpu_batch)))
    found = best_placement(shape, hardware, work)
    if found is None:
        reason = f"a block of {work.num_gpu_batches} × {work.gpu_batch} sequences fits no placement on {hardware.name}"
        raise InfeasibleError(f"{reason}; use smaller batches, 4-bit storage or larger tiers", "memory")
    return found


def _percent(text: str) -> Placement:
    """``20/80/0/100/0/100``: weights, cache, hidden states on GPU and CPU; the rest lies on disk."""
    try:
        values = [float(part) for part in text.split("/")]
    except ValueError:
        values = []
    pairs = [values[k : k + 2] for k in range(0, len(values), 2)]
    if len(values) != NUM_PERCENT or any(sum(pair) > 100 or min(pair) < 0 for pair in pairs):
        raise InputError("option percent of flexgen", text, "write six shares, such as 20/80/0/100/0/100")
    return Placement.percent(*values)


def _check_fit(shape: LayerShape, work: BlockWork, placement: Placement, hardware: OffloadHardware) -> None:
    """Refuse a given placement whose weights and cache alone are larger than a tier.

    The cost model's peaks are bounds for its search; FlexGen's authors ran placements above them.
    """
    weights, cache = (shape.num_layers * size for size in stored_bytes(shape, work))
    cache *= work.block * work.stored_tokens
    shares = dataclasses.asdict(placement)
    for name, letter, usable in (
        ("GPU", "g", hardware.gpu_bytes),
        ("CPU", "c", hardware.cpu_bytes),
        ("disk", "d", hardware.disk_bytes),
    ):
        need, have = shares[f"w{letter}"] * weights + shares[f"c{letter}"] * cache, usable / USABLE
        if need > have:
            reason = (
                f"this placement keeps {need / 1e9:.1f} GB in {name} memory and {hardware.name} has {have / 1e9:.1f}"
            )
            raise InfeasibleError(f"{reason}; move shares to another tier or use smaller batches", "memory")


def _memory(
    plan: OffloadPlan, model: ModelSpec, shape: LayerShape, longest: int, settings: EngineSettings
) -> MemoryPlan:
    """The sizes that make the engine run these blocks."""
    placement, work = plan.placement, plan.work
    per_sequence = -(-longest // BLOCK_TOKENS)
    weights = weight_bytes(model, "int4" if work.compress_weights else "fp16")
    token_bytes = shape.num_layers * stored_bytes(shape, work)[1] * work.stored_tokens / longest
    shares = dataclasses.asdict(placement)
    tiers = {
        what: "/".join(f"{100 * abs(shares[letter + tier]):.0f}" for tier in "gcd")
        for what, letter in (("weights", "w"), ("cache", "c"), ("hidden states", "h"))
    }
    where = ", ".join(f"{what} {percent}" for what, percent in tiers.items())
    seats = min(work.block, settings.max_num_seqs or work.block)
    complete = dataclasses.replace(
        settings,
        max_num_seqs=seats,
        max_num_batched_tokens=max(1, work.block * work.prompt_tokens),
        max_model_len=longest,
        block_size=BLOCK_TOKENS,
        gpu_memory_utilization=settings.gpu_memory_utilization or 0.8,
    )
    return MemoryPlan(
        weight_bytes=placement.wg * weights,
        activation_peak_bytes=0.0,
        runtime_bytes=0.0,
        graph_bytes=0.0,
        kv_bytes=placement.cg * work.block * longest * token_bytes,
        block_bytes=BLOCK_TOKENS * token_bytes,
        block_size=BLOCK_TOKENS,
        num_blocks=1 + work.block * per_sequence,
        num_dp_ranks=1,
        max_model_len=longest,
        largest_max_model_len=longest,
        settings=complete,
        source=Source.MODELLED,
        breakdown=(
            f"a block of {work.num_gpu_batches} × {work.gpu_batch} sequences; on GPU/CPU/disk in %: {where}; "
            f"{plan.cost.throughput_tokens_per_s:.3g} output tokens/s with full blocks"
        ),
        notes=(),
    )
