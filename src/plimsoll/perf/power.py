"""Watts of a GPU in a step: idle plus a share of the rest that follows how busy its units are.

    P = idle + (TDP − idle) · min(1, a·√u_compute + b·√(u_memory + s·u_sorting))

with ``u_compute`` the FLOPs and ``u_memory`` the bytes of the step over what the datasheet could do in its time, and
``u_sorting`` the share of the time in which a sampler sorts logits. The roots are an observation: the first percent of
a unit's rate, with clocks up and caches at work, costs more than the last. Of eight forms it was the best on models
that the coefficients had not seen; they, by architecture where they were measured, and their error are in
``data/power.toml``.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.core.deployment import Parallelism
from plimsoll.core.step import StepShape
from plimsoll.perf.kernels import Pricing, kernel_class
from plimsoll.perf.operators import ACTIVATION_BYTES, Collective, Elementwise, Gemm, GroupedGemm, StepOperators


@functools.cache
def load_power() -> Mapping[str, Any]:
    """The coefficients, with their source."""
    text = (resources.files("plimsoll.perf") / "data" / "power.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _matrix_work(op: Gemm | GroupedGemm, rows: float) -> tuple[float, float]:
    """FLOPs and bytes of all calls of a matrix product."""
    if isinstance(op, Gemm):
        mine = rows * op.rows_share
        size = op.k * op.n * op.weight_bits / 8 + ACTIVATION_BYTES * (op.k + op.n) * mine
        return op.count * 2.0 * op.k * op.n * mine, op.count * size
    mine = op.expert_rows(rows)
    size = op.expert_params * op.weight_bits / 8 * op.active_experts(rows)
    size += ACTIVATION_BYTES * (2 * op.hidden + op.matrices * op.inter) * mine
    return op.count * 2.0 * op.expert_params * mine, op.count * size


def busy_seconds(operators: StepOperators, pricing: Pricing, shape: StepShape) -> tuple[float, float]:
    """``(compute_s, memory_s)`` that the step would take at the datasheet's rates, each alone, on one GPU."""
    peak, bandwidth = pricing.plain_flop_per_s, pricing.gpu.memory_bandwidth_bytes_per_s
    tokens = shape.prefill_tokens + shape.num_decode
    sampled = shape.num_prefill_done + shape.num_decode
    compute_s = size = 0.0
    for op in operators.token_ops + operators.sampled_ops if tokens else ():
        rows = sampled if op in operators.sampled_ops else tokens
        if isinstance(op, Gemm | GroupedGemm):
            flop, moved = _matrix_work(op, rows)
            computes_in = kernel_class(pricing.gpu, op.precision)[1]
            compute_s += flop / (peak if computes_in == "plain" else pricing.gpu.dense_flop_per_s[computes_in])
            size += moved
        elif isinstance(op, Elementwise):
            size += op.count * op.bytes_per_row * rows * op.rows_share
        else:
            assert isinstance(op, Collective)
    work = operators.attention
    if work is not None:
        compute_s += (work.pair_flop * shape.prefill_pairs + work.context_flop * shape.prefill_read_tokens) / peak
        compute_s += work.decode_flop * shape.decode_read_tokens / peak
        size += work.read_bytes * (shape.prefill_read_tokens + shape.decode_read_tokens)
        size += work.token_bytes * tokens
    if operators.state is not None:
        size += operators.state.sequence_bytes * (shape.num_decode + shape.num_prefill)
        compute_s += operators.state.token_flop * shape.prefill_tokens / peak
    return compute_s, size / bandwidth


def step_energy_j(
    gpu: Accelerator,
    operators: StepOperators,
    parallelism: Parallelism,
    pricing: Pricing,
    step: tuple[StepShape, float],
    sorting_s: float = 0.0,
) -> float | None:
    """Joules of a step ``(shape, time_s)`` on all GPUs of the replica: every stage spends them once per step.

    GPUs only: no CPU, memory, fan or power-supply loss. None where the catalogue has no TDP. `sorting_s`: seconds of it
    in which the sampler sorts.
    """
    shape, time_s = step
    if not gpu.tdp_w or time_s <= 0:
        return None
    table = load_power()
    idle = gpu.idle_w if gpu.idle_w is not None else table["idle_frac"] * gpu.tdp_w
    table = {**table, **table.get(gpu.architecture, {})}
    compute_s, memory_s = busy_seconds(operators, pricing, shape)
    if not shape.prefill_tokens and not shape.num_decode:
        busy = 0.0
    else:
        memory_s += min(time_s, sorting_s) * table["sorting"]
        busy = table["compute"] * math.sqrt(compute_s / time_s) + table["memory"] * math.sqrt(memory_s / time_s)
    watts = idle + (gpu.tdp_w - idle) * min(1.0, busy)
    return watts * time_s * parallelism.num_gpus
