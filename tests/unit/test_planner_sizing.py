"""From a memory plan to the engine, with data-parallel ranks and with optimisations of the cache."""

from __future__ import annotations

import dataclasses

import pytest

import plimsoll
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError
from plimsoll.perf.compositions import MemoryEffect
from plimsoll.perf.memory import MemoryAssumptions, MemoryPlan, kv_capacity
from plimsoll.planner.sizing import composed_assumptions, composed_memory, engine_config

PLAIN = MemoryEffect()


def memory_plan(effect: MemoryEffect = PLAIN, expected_tokens: int = 1000, **settings: int | None) -> MemoryPlan:
    """Of Llama-3.1-8B on an H100 under `effect`."""
    model, gpu = load_model("meta-llama/Llama-3.1-8B"), load_accelerator("H100-SXM")
    given = EngineSettings(**{"max_model_len": 8192, **settings})
    shrink = given.max_model_len is None
    assumed = MemoryAssumptions(expected_sequence_tokens=expected_tokens, shrink_max_model_len=shrink)
    assumed = composed_assumptions(effect, assumed)
    return composed_memory(kv_capacity(model, gpu, Parallelism(), "bf16", "bf16", given, assumed), effect, assumed)


def test_the_null_block_is_not_for_requests() -> None:
    memory = memory_plan()
    config = engine_config(memory, Parallelism(), "vllm-v1", replicas=2, router="round-robin")
    assert config.num_blocks == memory.num_blocks - 1
    assert (config.replicas, config.policy) == (2, "vllm-v1")


def test_data_parallel_ranks_pool_seats_and_budget() -> None:
    memory = memory_plan(max_num_seqs=100, max_num_batched_tokens=512)
    config = engine_config(memory, Parallelism(dp=4, ep=4), "vllm-v1", replicas=1, router="round-robin")
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (400, 2048)


def test_a_smaller_cache_token_makes_more_blocks() -> None:
    memory = memory_plan()
    halved = memory_plan(MemoryEffect(kv_bytes_factor=0.5))
    assert halved.num_blocks == pytest.approx(2 * memory.num_blocks, abs=2)
    kept = memory_plan(MemoryEffect(kept=((0.25, None), (0.75, 400))))
    assert kept.block_bytes == pytest.approx(memory.block_bytes * (0.25 + 0.75 * 0.4))
    assert f"= {kept.num_blocks} blocks" in kept.breakdown


def test_resident_bytes_leave_fewer_blocks_or_none() -> None:
    memory = memory_plan()
    less = memory_plan(MemoryEffect(extra_bytes=memory.kv_bytes / 2))
    assert less.num_blocks == pytest.approx(memory.num_blocks / 2, abs=2)
    with pytest.raises(InfeasibleError, match="one sequence of 8192 tokens needs"):
        memory_plan(MemoryEffect(extra_bytes=memory.kv_bytes))


def test_blocks_that_were_given_stay() -> None:
    assert memory_plan(MemoryEffect(kv_bytes_factor=0.5), num_kv_blocks=1234).num_blocks == 1234
    memory = memory_plan()
    assert composed_memory(memory, MemoryEffect(), MemoryAssumptions()) is memory


def test_what_is_kept_decides_the_longest_sequence() -> None:
    """A sequence that is too long for the GPU fits where a part of it is elsewhere, or smaller."""
    memory = memory_plan()
    longest = memory.largest_max_model_len
    extra = MemoryEffect(extra_bytes=memory.kv_bytes - 30_000 * memory.block_bytes / 16)
    assert longest == 131_072  # the model's own
    with pytest.raises(InfeasibleError, match="one sequence of 100000 tokens needs"):
        memory_plan(extra, max_model_len=100_000)
    smaller = dataclasses.replace(extra, kv_bytes_factor=0.25)
    assert memory_plan(smaller, max_model_len=100_000).max_model_len == 100_000


def away(share: float, gib: float) -> MemoryEffect:
    return MemoryEffect(
        gpu_kv_share=1 - share, kv_tier="cpu", tier_kv_share=share, tier_bytes=gib * 2**30, tier_source="here"
    )


def test_a_tier_below_the_gpu_bounds_the_blocks() -> None:
    memory = memory_plan()
    roomy = memory_plan(away(0.75, 1000))
    assert roomy.num_blocks == pytest.approx(4 * memory.num_blocks, abs=4)
    assert roomy.notes == memory.notes
    tight = memory_plan(away(0.75, 30))
    assert tight.num_blocks == int(30 * 2**30 / (0.75 * memory.block_bytes))
    assert "30 GiB of cpu for one GPU" in tight.notes[-1]
    assert "here" in tight.notes[-1]
    smaller = memory_plan(dataclasses.replace(away(0.75, 30), kv_bytes_factor=0.5, kept=((0.5, None),)))
    assert smaller.num_blocks == pytest.approx(4 * tight.num_blocks, abs=4)


def test_a_tier_that_is_too_small_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="hold 1 blocks"):
        memory_plan(away(0.99, 0.003), max_model_len=None)
    with pytest.raises(InfeasibleError, match="a sequence of 8,192 tokens needs more"):
        memory_plan(away(0.99, 0.5))
    short = memory_plan(away(0.99, 0.5), max_model_len=None)
    assert short.max_model_len == short.settings.max_model_len == (short.num_blocks - 1) * 16
    with pytest.raises(InfeasibleError, match="1234 KV blocks were asked for; 1 GiB of cpu"):
        memory_plan(away(0.99, 1), num_kv_blocks=1234)
    assert memory_plan(away(0.99, 3), num_kv_blocks=1234).num_blocks == 1234


def test_simulate_takes_compositions_after_the_step_model() -> None:
    fields = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "workload": "chat", "rate_per_s": 2.0, "num_requests": 50}
    plain = plimsoll.simulate(**fields)
    small = plimsoll.simulate(**fields, step_model="roofline+kv_quantisation,bits=8")
    assert small.resolved.memory.num_blocks > 1.9 * plain.resolved.memory.num_blocks
    assert dataclasses.asdict(small.workload) == dataclasses.asdict(plain.workload)
