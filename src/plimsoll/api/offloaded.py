"""An engine that offloads (``flexgen``): where weights, cache and hidden states lie, and in what blocks.

Its memory plan is no GPU's: the block of sequences comes from the placement over GPU, CPU and disk, and the engine gets
exactly the KV blocks that this many longest sequences take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import weight_bytes
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.source import Source
from plimsoll.core.workload import Workload
from plimsoll.engine.config import Option
from plimsoll.engine.plugins import load_plugin, option_defaults
from plimsoll.perf.memory import MemoryPlan
from plimsoll.perf.offload.flexgen import BlockWork, Placement, block_model, check_tiers, evaluate, stored_bytes
from plimsoll.perf.offload.flexgen_search import OffloadPlan, SearchLimits, best_placement, search
from plimsoll.perf.offload.hardware import OffloadHardware
from plimsoll.perf.offload.layer import LayerShape, layer_shape
from plimsoll.perf.offload.machines import USABLE, machine_for
from plimsoll.perf.offload.steps import OffloadedSteps

OFFLOADING = ("flexgen",)
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
    step_model: OffloadedSteps
    notes: tuple[str, ...]


def offloaded(
    policy: str,
    model: ModelSpec,
    gpu: Accelerator,
    parallelism: Parallelism,
    settings: EngineSettings,
    workload: Workload,
) -> Offloaded:
    """Place a model that need not fit on its GPU, for the longest prompt and the longest answer of the workload.

    Raises:
        InfeasibleError: more than one GPU, weights that no tier holds, or no block that fits.
        InputError, UnknownNameError: an option that cannot be used.
        MissingExtraError: the placement search needs scipy.
    """
    if parallelism.num_gpus > 1:
        raise InfeasibleError(f"{policy} is simulated on one GPU; use --tp 1 and --pp 1", "topology")
    options = {**option_defaults(load_plugin("plimsoll.engine.policies", policy, "--engine")), **settings.options}
    hardware, note = machine_for(gpu, str(options["machine"]))
    shape = layer_shape(model)
    work = _work(options, workload)
    check_tiers(shape, hardware, work)
    plan = _plan(shape, hardware, work, options, settings)
    longest = plan.work.prompt_tokens + plan.work.output_tokens
    memory = _memory(plan, model, shape, longest, settings)
    notes = [
        f"blocks are made for the longest prompt and answer of this workload: {longest:,} tokens",
        f"rates: {hardware.source}",
    ]
    return Offloaded(
        memory=memory,
        step_model=OffloadedSteps(shape, hardware, plan.placement, plan.work),
        notes=(*notes, *([note] if note else [])),
    )


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
    token_bytes = shape.num_layers * shape.plain_kv_bytes
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
