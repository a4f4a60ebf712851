"""The parts of `profile` that need CUDA, where there is one: clock, flash kernel, grouped products, watts, NCCL."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.profiling import profile
from plimsoll.profiler.attend import blocks, expanded, masked, packed, varlen_of
from plimsoll.profiler.clock import CudaClock, power_rows
from plimsoll.profiler.collectives import measure_collectives
from plimsoll.profiler.experts import Experts, has_grouped
from plimsoll.profiler.samples import Effort
from tests.own_kinds import write_kind
from tests.own_profiles import write_config


def has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


pytestmark = pytest.mark.skipif(not has_cuda(), reason="no torch with a CUDA device")
EFFORT = Effort(warm_ups=2, min_samples=5, max_samples=5, budget_s=0.0)


def random(*size: int) -> Any:
    import torch

    return torch.randn(*size, device="cuda", dtype=torch.bfloat16)


def test_events_agree_with_wall_time_of_long_work() -> None:
    import torch

    left, right = random(8192, 8192), random(8192, 8192)
    ((seconds, *_),) = CudaClock(torch).samples([(lambda _: left @ right, 1)], EFFORT)
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    for _ in range(20):
        left @ right
    torch.cuda.synchronize()
    assert seconds == pytest.approx((time.perf_counter() - began_s) / 20, rel=0.3)


def test_launching_is_not_timed() -> None:
    """A tiny kernel takes a few microseconds, though Python needs longer to launch it."""
    import torch

    inputs = random(1, 128)
    ((*_, seconds),) = CudaClock(torch).samples([(lambda _: inputs + 1, 1)], EFFORT)
    assert 0.2e-6 < seconds < 5e-6


@pytest.mark.parametrize(("new", "context", "window"), [(1, 500, None), (64, 300, None), (64, 0, None), (64, 500, 100)])
def test_the_flash_kernel_attends_as_blocks_do(new: int, context: int, window: int | None) -> None:
    import torch

    flash = varlen_of(torch)
    if flash is None:
        pytest.skip("this torch has no varlen_attn with windows")
    query, key, value = random(2 * new, 8, 64), random(2 * (new + context), 2, 64), random(2 * (new + context), 2, 64)
    with torch.inference_mode():
        found = packed(torch, flash, [(new, context)] * 2, window, "cuda")(query, key, value)
    heads = (tensor.unflatten(0, (2, -1)).transpose(1, 2).float() for tensor in (query, key, value))
    whole = masked(torch, *heads, blocks(torch, new, context, window, "cuda")).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found.float(), whole, rtol=0.05, atol=0.05)


def test_the_flash_kernel_takes_padded_values_of_latents() -> None:
    import torch

    flash = varlen_of(torch)
    if flash is None:
        pytest.skip("this torch has no varlen_attn with windows")
    key, value = expanded(torch, random(2, 40, 64 + 32), random(4, 64 + 48, 64), 64)
    value = torch.nn.functional.pad(value, (0, 96 - 48))
    query = random(2 * 40, 4, 96)
    found = packed(torch, flash, [(40, 0)] * 2, None, "cuda")(query, key.flatten(0, 1), value.flatten(0, 1))
    assert found.shape == (80, 4, 96)
    assert bool((found[..., 48:] == 0).all())


def test_grouped_products_are_those_of_single_experts() -> None:
    import torch

    if not has_grouped(torch, "cuda", torch.bfloat16):
        pytest.skip("no grouped_mm on this device")
    sizes = {"num_experts": 16, "experts_per_token": 4, "expert_size": 64, "hidden_size": 128, "num_moe_layers": 1}
    experts = Experts(torch, {**sizes, "mlp_matrices": 3}, 1, random, "cuda")
    up, down = experts.weights[0]
    inputs, routing = random(40, 128), experts.routing(40, 10)
    grouped = experts.forward(inputs, routing, up, down)
    experts.grouped = False
    single = experts.forward(inputs, routing, up, down)
    scale = single.float().abs().max()
    torch.testing.assert_close(grouped.float() / scale, single.float() / scale, rtol=0.05, atol=0.02)


def test_watts_are_between_nothing_and_a_rack() -> None:
    import torch

    matrix = random(8192, 8192)
    rows = power_rows(torch, lambda: [matrix @ matrix for _ in range(10)])
    if not rows:
        pytest.skip("NVML does not answer")
    watts = {row["load"]: row["power_w"] for row in rows}
    assert 1 < watts["idle"] < watts["busy"] < 3000


@pytest.mark.parametrize("kind", ["llama", "gpt-oss", "deepseek"])
def test_a_whole_profile_on_cuda(tmp_path: Path, kind: str) -> None:
    config = write_config(tmp_path / "m") if kind == "llama" else write_kind(tmp_path / "m", kind)
    fields = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 256, "precision": "bf16"}
    found = profile(model=str(config), folder=str(tmp_path / "p"), device="cuda", **fields)
    assert found.profiled.num_measured > 20
    again = profile(model=str(config), folder=str(tmp_path / "p"), device="cuda", **fields)
    assert again.profiled.num_measured == 0


def test_devices_exchange_messages() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    rows = measure_collectives(2, "cuda", (1024, 2**20))
    assert all(0 < row["time_us"] < 1e5 for row in rows)
