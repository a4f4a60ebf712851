"""Is this profile in the units, and of the model and GPU, that it is taken for?

Nothing is faster than the hardware: a matrix product takes at least its operations at the datasheet's rate, and at
least its weights at the memory's. And no engine leaves more than 99 % of both idle on its largest shapes. A table
in milliseconds that is read as microseconds breaks the first rule, one in nanoseconds the second. What is no matrix
product takes at least as long as a GPU needs to start and end an empty kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import Attention, DenseMlp, ModelSpec, Moe
from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.bundle import Bundle
from plimsoll.perf.profiles.curves import Curve

FASTEST = 0.8  # of the limit: boost clocks lie above the datasheet's, and weights can stay in a large cache
SLOWEST = 100.0
KV_BYTES = 2
DENSE, PER_SEQUENCE = "dense.csv", "per_sequence.csv"
EMPTY_KERNEL_S = 0.2e-6
"""Far below any: the shortest of all operators in the bundles at hand takes 1.85 us (RTX 4090, a layer's norm)."""


def check_plausible(bundle: Bundle, model: ModelSpec, gpu: Accelerator, precision: str) -> None:
    """Compare every matrix product, the experts and the largest decode batch with the GPU's physical limit.

    Raises:
        InputError: a measurement is faster than the hardware, or slower than any engine.
    """
    flop_per_s = max(gpu.dense_flop_per_s.get(name, 0.0) for name in (precision, "bf16", "fp16"))
    for file, name, curve, weights in _products(bundle, model):
        limit_s = 2.0 * curve.last * weights / flop_per_s
        _judge(file, gpu, f"{name} of {curve.last:.0f} rows", curve.values[-1], limit_s)
    _judge_experts(bundle, model, gpu, flop_per_s)
    for table, curves in ((DENSE, bundle.dense), (PER_SEQUENCE, bundle.per_sequence)):
        for name, curve in curves.items():
            if min(curve.values) < EMPTY_KERNEL_S:
                _judge(bundle.folder / table, gpu, name, min(curve.values), EMPTY_KERNEL_S / FASTEST)
    attention = model.groups[0].mixer
    if isinstance(attention, Attention):
        num_decode = bundle.attention.decode.last
        curve = bundle.attention.decode.items[num_decode]
        elements = attention.num_kv_heads * (attention.head_dim + attention.v_head_dim)
        num_bytes = num_decode * curve.last * elements * KV_BYTES / bundle.tp
        limit_s = num_bytes / gpu.memory_bandwidth_bytes_per_s
        what = f"attention of {num_decode} decodes over {curve.last:.0f} tokens"
        _judge(bundle.folder / "attention.csv", gpu, what, curve.values[-1], limit_s)


def _products(bundle: Bundle, model: ModelSpec) -> Iterator[tuple[Path, str, Curve, float]]:
    """Matrix products: file, name, times, weights on one rank."""
    group = model.groups[0]
    sizes: dict[str, float] = {}
    if isinstance(group.mixer, Attention):
        heads = group.mixer
        sizes["o_proj"] = heads.num_heads * heads.v_head_dim * model.hidden_size
        kv_width = heads.num_kv_heads * (heads.head_dim + heads.v_head_dim)
        sizes["qkv_proj"] = model.hidden_size * (heads.num_heads * heads.head_dim + kv_width)
    if isinstance(group.mlp, DenseMlp):
        sizes["down_proj"] = group.mlp.intermediate_size * model.hidden_size
        sizes["gate_up_proj"] = (1 + group.mlp.gated) * sizes["down_proj"]
    for name, size in sizes.items():
        curve = bundle.dense.get(name)
        if curve is not None:
            yield bundle.folder / DENSE, name, curve, size / bundle.tp
    head = bundle.per_sequence.get("lm_head")
    if head is not None:
        yield bundle.folder / PER_SEQUENCE, "lm_head", head, model.hidden_size * model.vocab_size / bundle.tp


def _judge_experts(bundle: Bundle, model: ModelSpec, gpu: Accelerator, flop_per_s: float) -> None:
    """The most tokens with the most experts in use, of one layer."""
    moe = next((group.mlp for group in model.groups if isinstance(group.mlp, Moe)), None)
    if moe is None or bundle.experts is None:
        return
    tokens = bundle.experts.rows.last
    curve = bundle.experts.rows.items[tokens]
    size = (2 + moe.gated) * moe.intermediate_size * model.hidden_size / bundle.tp
    limit_s = 2.0 * tokens * moe.top_k * size / flop_per_s
    what = f"{curve.last:.0f} experts of {tokens} tokens"
    _judge(bundle.folder / "moe.csv", gpu, what, curve.values[-1], limit_s)


def _judge(file: Path, gpu: Accelerator, what: str, seconds: float, limit_s: float) -> None:
    if seconds < FASTEST * limit_s:
        reason = f"faster than {gpu.id} can be ({limit_s * 1e6:.3g} us)"
    elif seconds > SLOWEST * limit_s:
        reason = f"{seconds / limit_s:.0f} times slower than {gpu.id} allows"
    else:
        return
    raise InputError(
        str(file),
        f"{what}: {seconds * 1e6:.3g} us",
        f"that is {reason}; times are microseconds, of the model and GPU that the profile names",
    )
