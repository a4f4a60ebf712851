"""Seconds of a swapped block reach an engine that swaps, in a plan as in a simulation."""

from __future__ import annotations

from pathlib import Path

import pytest

import plimsoll
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.deployment import Parallelism
from plimsoll.planner.context import Context
from plimsoll.planner.parts import Parts
from plimsoll.planner.prune import screen_one
from plimsoll.planner.space import GpuLimit, ReplicaConfig
from plimsoll.planner.swap import with_swap_seconds
from tests.unit.planner_fakes import plan_request

H100 = load_accelerator("H100-SXM")


def told(engine: str, tp: int = 1) -> dict[str, object]:
    request = plan_request(gpus=(GpuLimit(accelerator=H100, max_gpus=2),), engines=(engine,))
    config = ReplicaConfig(
        accelerator=H100,
        parallelism=Parallelism(tp=tp),
        precision="bf16",
        engine=engine,
        max_num_batched_tokens=2048,
    )
    parts = Parts(request)
    one = screen_one(Context(request, parts), config)
    return dict(parts.engine(config, one.memory, 1, "round-robin").options)


def test_an_engine_that_swaps_is_told_the_seconds_of_a_block() -> None:
    block_bytes = 16 * 2 * 32 * 8 * 128 * 2  # tokens, K and V, layers, KV heads, head size, bytes
    assert told("andes") == {"swap_block_s": pytest.approx(block_bytes / H100.pcie_bytes_per_s)}
    assert told("andes", tp=2)["swap_block_s"] == pytest.approx(block_bytes / 2 / H100.pcie_bytes_per_s)


def test_an_engine_that_does_not_swap_is_told_nothing() -> None:
    assert told("vllm-v1") == {"async_scheduling": True}, "what its version does by default, and no more"


def test_a_plan_says_the_same_as_a_simulation() -> None:
    simulated = plimsoll.simulate(
        model="Llama-3.1-8B", gpu="H100-SXM", engine="andes", workload="chat", rate_per_s=1.0, num_requests=5
    )
    assert told("andes")["swap_block_s"] == pytest.approx(simulated.resolved.config.options["swap_block_s"])


def test_a_plan_takes_scheduling_policies_by_name() -> None:
    answer = plimsoll.plan(
        model="Llama-3.1-8B", prompt_tokens=200, output_tokens=20, gpus="L40S:1", token_budgets="2048",
        engines="vllm-v0,vllm-v1", ttft_ms=1000.0, tpot_ms=100.0,
    )  # fmt: skip
    assert {plan.deployment.engine for plan in answer.result.plans} == {"vllm-v0", "vllm-v1"}
    assert "vllm serve" in answer.commands(answer.result.plans[0])["vllm"]


def test_a_file_of_the_users_own_is_looked_at_each_time(tmp_path: Path) -> None:
    request = plan_request(gpus=(GpuLimit(accelerator=H100, max_gpus=1),))
    config = ReplicaConfig(
        accelerator=H100, parallelism=Parallelism(), precision="bf16", engine="vllm-v1", max_num_batched_tokens=2048
    )
    memory = Parts(request).memory(config, 1024, 500, "bf16")
    file = tmp_path / "mine.py"
    plan = "    def plan(self, view): ...\n"
    file.write_text(f"class Mine:\n    def __init__(self, config): pass\n{plan}")
    assert with_swap_seconds(memory, str(file), H100) is memory
    file.write_text(
        "class Mine:\n    def __init__(self, config, *, swap_block_s=0.0): pass\n    def plan(self, view): ...\n"
    )
    assert "swap_block_s" in with_swap_seconds(memory, str(file), H100).settings.options
