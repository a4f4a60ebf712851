"""Which engine, model, GPU, cut and precision go together: only deployments that would start pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import Attention, LatentAttention, LayerGroup, ModelSpec, Moe
from plimsoll.catalog.engine_facts import SIXTEEN_BIT, EngineFacts, PrecisionSupport, parse_version
from plimsoll.core.deployment import KV_PRECISIONS, PRECISIONS, Parallelism
from plimsoll.core.errors import InfeasibleError, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compatibility:
    """A deployment that would start, and what is to be known of it.

    Attributes:
        compute_precision: what the matrix units work in; ``bf16`` or ``fp16`` where small weights are only stored.
        kv_precision: of the cache with ``auto`` resolved: ``fp16``, ``bf16`` or ``fp8``.
        checkpoint: what the checkpoint must be (``an AWQ or GPTQ checkpoint``); empty where a plain one will do.
        notes: sentences for the user.
    """

    compute_precision: str
    kv_precision: str
    checkpoint: str
    notes: tuple[str, ...]


def check_compatibility(
    engine: EngineFacts,
    model: ModelSpec,
    gpu: Accelerator,
    parallelism: Parallelism,
    precision: str,
    kv_precision: str = "auto",
) -> Compatibility:
    """Whether the engine would start this, memory apart (`perf.memory.kv_capacity` knows that).

    Raises:
        InputError: a precision that does not exist, a cut below 1.
        InfeasibleError: with what to do, and the constraint: ``engine`` (GPU or model not supported), ``precision``,
            ``divisibility`` or ``topology``.
    """
    if precision not in PRECISIONS:
        raise InputError("precision", precision, f"write one of {', '.join(PRECISIONS)}")
    if kv_precision not in KV_PRECISIONS:
        raise InputError("kv_precision", kv_precision, f"write one of {', '.join(KV_PRECISIONS)}")
    for name in ("tp", "pp", "dp", "ep"):
        if getattr(parallelism, name) < 1:
            raise InputError(name, getattr(parallelism, name), "write a whole number of at least 1")
    notes = [*_check_gpu(engine, gpu), *_check_model(engine, model)]
    weights = _row(engine, engine.precisions, gpu, precision, "precision")
    sixteen_bit = _sixteen_bit(engine, gpu)
    resolved_kv = kv_precision if kv_precision != "auto" else (precision if precision == "fp16" else sixteen_bit)
    cache = _row(engine, engine.kv_precisions, gpu, resolved_kv, "KV precision")
    notes += [row.note for row in (weights, cache) if row.note]
    notes += _check_cut(engine, model, parallelism)
    notes += _check_topology(engine, gpu, parallelism)
    notes += _check_groups(model, parallelism, precision)
    stored = model.quantisation.method if model.quantisation else None
    if stored is not None and stored != precision:
        notes.append(f"the checkpoint is stored as {stored}; {precision} needs another checkpoint of the same model")
    compute = sixteen_bit if weights.compute == SIXTEEN_BIT else weights.compute
    return Compatibility(
        compute_precision=compute,
        kv_precision=resolved_kv,
        checkpoint="" if stored == precision else weights.needs,
        notes=tuple(dict.fromkeys(notes)),
    )


def _check_gpu(engine: EngineFacts, gpu: Accelerator) -> list[str]:
    """Vendor, compute capability, architecture."""
    for vendor in engine.vendors:
        if vendor.name != gpu.vendor:
            continue
        if vendor.min_capability is not None:
            capability = parse_version(gpu.compute_capability or "0")
            if capability < vendor.min_capability:
                need = ".".join(map(str, vendor.min_capability))
                raise InfeasibleError(
                    f"{engine.id} {engine.version} needs compute capability {need} or higher and {gpu.id} has "
                    f"{gpu.compute_capability}; use a newer GPU or an older version of the engine",
                    "engine",
                )
        if vendor.architectures and gpu.architecture not in vendor.architectures:
            raise InfeasibleError(
                f"{engine.id} {engine.version} runs on {', '.join(vendor.architectures)} of {gpu.vendor} and {gpu.id} "
                f"is {gpu.architecture}; use one of those GPUs or another engine",
                "engine",
            )
        # A plug-in engine says so; what a note says of NVIDIA versions matters only in a refusal.
        return [vendor.fact.note] if vendor.fact.note and gpu.vendor != "nvidia" else []
    names = ", ".join(vendor.name for vendor in engine.vendors)
    raise InfeasibleError(
        f"{engine.id} does not run on {gpu.id} ({gpu.vendor}); it runs on {names}: use another GPU or another engine",
        "engine",
    )


def _check_model(engine: EngineFacts, model: ModelSpec) -> list[str]:
    """Whether the engine lists the model, with what is to be known of it there."""
    if model.architecture not in engine.architectures:
        raise InfeasibleError(
            f"{engine.id} {engine.version} does not list {model.architecture} ({model.id}) among its models; "
            "use another engine",
            "engine",
        )
    return [engine.model_notes[model.architecture].note] if model.architecture in engine.model_notes else []


def _sixteen_bit(engine: EngineFacts, gpu: Accelerator) -> str:
    """What 16 bit means on this GPU: bf16 where the engine runs it there, else fp16."""
    fits = any(row.precision == "bf16" and row.fits(gpu) for row in engine.precisions)
    return "bf16" if fits else "fp16"


def _row(
    engine: EngineFacts, rows: Iterable[PrecisionSupport], gpu: Accelerator, precision: str, what: str
) -> PrecisionSupport:
    """The row that holds for `gpu`."""
    known = [row for row in rows if row.precision == precision]
    for row in known:
        if row.fits(gpu):
            return row
    possible = sorted({row.precision for row in rows if row.fits(gpu)})
    refusal = next((row.refusal for row in known if row.refusal and row.vendor in ("*", gpu.vendor)), "")
    raise InfeasibleError(
        f"{engine.id} {engine.version} has no {what} {precision} on {gpu.id}"
        f"{f' ({refusal})' if refusal else ''}; possible there: {', '.join(possible)}",
        "precision",
    )


def _check_cut(engine: EngineFacts, model: ModelSpec, parallelism: Parallelism) -> list[str]:
    """Divisibility of heads, layers, experts and widths."""
    notes: list[str] = []
    tp, pp, rules = parallelism.tp, parallelism.pp, engine.parallelism
    if tp > rules.max_tp:
        raise InfeasibleError(
            f"TP {tp} is above {rules.max_tp}, the most that {engine.id} is known for", "divisibility"
        )
    if pp > model.num_layers:
        raise InfeasibleError(
            f"PP {pp} is above the {model.num_layers} layers of {model.id}; use PP {model.num_layers} or less",
            "divisibility",
        )
    for group in model.groups:
        notes += _check_group(model, group, parallelism)
    if parallelism.dp > 1 and not rules.dp_attention:
        raise InfeasibleError(f"{engine.id} has no data parallelism inside a replica; use replicas instead", "engine")
    _check_experts(engine, model, parallelism)
    padded = -(-model.vocab_size // rules.vocab_padding) * rules.vocab_padding
    if padded % tp:
        raise InfeasibleError(
            f"TP {tp} does not divide the padded vocabulary of {model.id} ({padded} rows); use a power of two",
            "divisibility",
        )
    return notes


def _check_group(model: ModelSpec, group: LayerGroup, parallelism: Parallelism) -> list[str]:
    notes: list[str] = []
    tp, mixer, mlp = parallelism.tp, group.mixer, group.mlp
    if isinstance(mixer, (Attention, LatentAttention)) and mixer.num_heads % tp:
        raise InfeasibleError(
            f"TP {tp} does not divide the {mixer.num_heads} query heads of {model.id}; "
            f"use TP {', '.join(map(str, _divisors(mixer.num_heads)))}",
            "divisibility",
        )
    if isinstance(mixer, Attention):
        heads = mixer.num_kv_heads
        if (heads % tp) if heads >= tp else (tp % heads):
            raise InfeasibleError(
                f"TP {tp} and the {heads} key-value heads of {model.id} do not divide each other; "
                f"use TP {', '.join(map(str, _divisors(heads)))} or a multiple of {heads}",
                "divisibility",
            )
        if heads < tp:
            notes.append(f"TP {tp} is above the {heads} key-value heads: each is held by {tp // heads} GPUs")
    if isinstance(mixer, LatentAttention) and tp > 1:
        notes.append(f"the latent cache of {model.id} is held whole by each of the {tp} tensor-parallel GPUs")
    width = getattr(mlp, "intermediate_size", 0)
    expert_ranks = parallelism.tp * parallelism.dp
    if isinstance(mlp, Moe) and parallelism.ep == 1 and width % expert_ranks:
        raise InfeasibleError(
            f"{expert_ranks} GPUs do not divide the expert width {width} of {model.id}; use expert parallelism",
            "divisibility",
        )
    if mlp is not None and not isinstance(mlp, Moe) and width % tp:
        raise InfeasibleError(
            f"TP {tp} does not divide the feed-forward width {width} of {model.id}; use TP 1 or a divisor",
            "divisibility",
        )
    return notes


def _check_experts(engine: EngineFacts, model: ModelSpec, parallelism: Parallelism) -> None:
    ep, ranks = parallelism.ep, parallelism.tp * parallelism.dp
    if ep == 1:
        return
    experts = [group.mlp.num_experts for group in model.groups if isinstance(group.mlp, Moe)]
    if not experts:
        raise InfeasibleError(f"EP {ep}: {model.id} has no experts; use EP 1", "divisibility")
    if engine.parallelism.ep_is_all_ranks and ep != ranks:
        raise InfeasibleError(
            f"EP {ep}: {engine.id} spreads experts over all TP x DP = {ranks} ranks or none; use EP 1 or {ranks}",
            "divisibility",
        )
    if ranks % ep:
        raise InfeasibleError(f"EP {ep} does not divide the TP x DP = {ranks} ranks of a stage", "divisibility")
    if any(count % ep for count in experts):
        raise InfeasibleError(
            f"EP {ep} does not divide the {experts[0]} experts of {model.id}; "
            f"use EP {', '.join(map(str, _divisors(experts[0])))}",
            "divisibility",
        )


def _check_topology(engine: EngineFacts, gpu: Accelerator, parallelism: Parallelism) -> list[str]:
    """Machines: a tensor-parallel group wants to stay inside the scale-up domain."""
    domain = max(gpu.gpus_per_node, gpu.scale_up_size)
    if parallelism.tp > domain:
        if not engine.parallelism.tp_across_nodes:
            raise InfeasibleError(
                f"TP {parallelism.tp} spans machines of {domain} {gpu.id}; use TP {domain} or less with PP", "topology"
            )
        return [f"TP {parallelism.tp} spans machines of {domain} {gpu.id}: its collectives cross the network"]
    if parallelism.num_gpus > gpu.gpus_per_node:
        return [f"one replica spans {-(-parallelism.num_gpus // gpu.gpus_per_node)} machines of {gpu.gpus_per_node}"]
    return []


def _check_groups(model: ModelSpec, parallelism: Parallelism, precision: str) -> list[str]:
    """Quantisation groups: a shard of a row-parallel matrix must hold whole groups (AWQ, GPTQ: 128).

    fp4 is not checked: engines pad its experts (gpt-oss runs on 8 GPUs with 2880 / 8 = 360).
    """
    if precision != "int4":
        return []
    group_size = 128
    for group in model.groups:
        mlp = group.mlp
        if mlp is None:
            continue
        ranks = parallelism.tp
        if isinstance(mlp, Moe):
            ranks = 1 if parallelism.ep > 1 else parallelism.tp * parallelism.dp
        if (mlp.intermediate_size / ranks) % group_size:
            raise InfeasibleError(
                f"{precision}: {mlp.intermediate_size} / {ranks} of {model.id} is no multiple of the quantisation "
                f"group of {group_size}; use a smaller TP or another precision",
                "divisibility",
            )
    return []


def _divisors(number: int, limit: int = 64) -> list[int]:
    return [candidate for candidate in range(1, min(number, limit) + 1) if number % candidate == 0]
