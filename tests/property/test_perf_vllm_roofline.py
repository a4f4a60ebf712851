"""What ``vllm-roofline`` promises to the engine, alone and under compositions: lines to the last bit, and monotony."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.catalog import counting
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.run import Status
from plimsoll.core.step import StepShape, chunk_line_of
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.compositions import build_composed
from plimsoll.perf.request import StepModelRequest
from tests.oracle.naive_pipeline import naive_pipeline
from tests.oracle.naive_vllm import naive_simulate
from tests.property.test_perf_compositions import STACKS

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "60"))
DENSE, EXPERTS = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B"
DEPLOYMENTS = (
    (DENSE, "H100-SXM", Parallelism()),
    (DENSE, "A100-SXM-80GB", Parallelism(pp=2)),
    (EXPERTS, "B200", Parallelism(tp=4, ep=4)),
    ("mistralai/Mixtral-8x7B-v0.1", "H100-SXM", Parallelism(tp=2)),
    ("deepseek-ai/DeepSeek-V3", "B200", Parallelism(dp=8, ep=8)),
    ("nvidia/Nemotron-H-8B-Base-8K", "H100-SXM", Parallelism()),
    ("google/gemma-3-27b-it", "H100-SXM", Parallelism(tp=2)),
)
NAMES = (
    "vllm-roofline",
    "vllm-roofline:sampler=greedy",
    "vllm-roofline:graph_tokens=0",
    "vllm-roofline:graph_tokens=60",
)
STACKED = ((DENSE, "H100-SXM", Parallelism()), ("mistralai/Mixtral-8x7B-v0.1", "H100-SXM", Parallelism(tp=4)))


@functools.cache
def build(name: str, deployment: tuple[str, str, Parallelism]) -> Any:
    model, gpu, cut = deployment
    spec = load_model(model)
    precision = counting.native_precision(spec)
    request = StepModelRequest(model=spec, gpu=load_accelerator(gpu), parallelism=cut, precision=precision)
    return build_composed(name, request)


plain = st.builds(build, st.sampled_from(NAMES), st.sampled_from(DEPLOYMENTS))
stacked = st.builds(
    lambda name, stack, deployment: build(f"{name}+{stack}", deployment),
    st.sampled_from((NAMES[0], NAMES[3])),
    st.sampled_from(STACKS),
    st.sampled_from(STACKED),
)
models = plain | stacked
steps = st.tuples(
    st.integers(0, 9000),
    st.integers(0, 40),
    st.integers(0, 10**8),
    st.integers(0, 10**6),
    st.integers(0, 40),
    st.integers(0, 1100),
    st.integers(0, 10**7),
)


@settings(max_examples=400, deadline=None)
@given(models, st.integers(0, 1100), st.integers(0, 10**7), st.integers(0, 10**6))
def test_decode_runs_are_bit_equal_to_their_steps(model: Any, num: int, read: int, ahead: int) -> None:
    base, slope, below = model.decode_line(num, read)
    assert below > read
    for r in (read, min(read + ahead, below - 1), below - 1 if below < 10**9 else read):
        assert model.step_s(0, 0, 0, 0, 0, num, r) == base + slope * r
        assert model.decode_line(num, r) == (base, slope, below)


@settings(max_examples=500, deadline=None)
@given(models, steps, st.integers(0, 6), st.integers(1, 2000))
def test_more_work_never_takes_less_time(model: Any, step: tuple[int, ...], place: int, more: int) -> None:
    grown = list(step)
    grown[place] += more if place not in (1, 4, 5) else 1 + more % 50
    assert model.step_s(*grown) >= model.step_s(*step) * (1 - 1e-11)


@settings(max_examples=300, deadline=None)
@given(models, st.integers(1, 1100), st.integers(1, 10**7))
def test_pieces_meet(model: Any, num: int, read: int) -> None:
    base, slope, below = model.decode_line(num, read)
    if below >= 10**9:
        return
    after = model.decode_line(num, below)
    step_of_one = abs(after[1] - slope) + slope + after[1]
    assert after[0] + after[1] * below == pytest.approx(base + slope * below, rel=1e-9, abs=2 * step_of_one)


@settings(max_examples=200, deadline=None)
@given(plain, steps)
def test_the_limits_are_a_bound(model: Any, step: tuple[int, ...]) -> None:
    assert model.limits().step_s(*step) <= model.step_s(*step) * (1 + 1e-12)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(STACKS), st.sampled_from(STACKED), steps)
def test_no_composition_launches_faster(
    name: str, stack: str, deployment: tuple[str, str, Parallelism], step: tuple[int, ...]
) -> None:
    """Prompts are launched layer by layer whatever happens on the GPU."""
    bare, composed = build(name, deployment), build(f"{name}+{stack}", deployment)
    if step[0] or step[1]:
        assert composed.step_s(*step) >= bare.launched_s(step[0], mixed=True) * (1 - 1e-12)
    names = [
        "prefill_tokens", "num_prefill", "prefill_pairs", "prefill_read_tokens", "num_prefill_done", "num_decode",
        "decode_read_tokens",
    ]  # fmt: skip
    assert composed.step(StepShape(**dict(zip(names, step, strict=True)))).time_s == composed.step_s(*step)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(NAMES), st.sampled_from(DEPLOYMENTS[:-1]), st.integers(1, 4096), st.integers(0, 700),
    st.integers(1, 4000), st.integers(0, 20_000),
)  # fmt: skip
def test_a_chunk_line_is_the_step_to_the_last_bit(
    name: str, deployment: tuple[str, str, Parallelism], chunk: int, num: int, length: int, context: int
) -> None:
    model = build(name, deployment)
    chunk_line = chunk_line_of(model)
    assert chunk_line is not None
    pairs, read = chunk * context + chunk * (chunk + 1) // 2, num * length
    expected_s = model.step_s(chunk, 1, pairs, context, 0, num, read)
    for begin in (0, read):
        fixed_s, chunk_s, pair_s, context_s, base_s, slope_s, below = chunk_line(chunk, num, begin)
        if read < below:
            assert fixed_s + (chunk_s + pair_s * pairs + context_s * context) + (base_s + slope_s * read) == expected_s


def test_chunk_lines_hold_where_kernels_outlast_launches_alone() -> None:
    dense, experts = build(NAMES[0], DEPLOYMENTS[0]), build(NAMES[0], DEPLOYMENTS[2])
    assert dense.chunk_line(2048, 8, 0)[6] > 10**9
    assert experts.chunk_line(512, 8, 100)[6] == 100  # nowhere: launching 48 layers of experts takes longer
    assert experts.chunk_line(512, 8, 10**9)[6] > 10**9  # so many decodes' caches beside it do not


def _case(seed: int, num: int = 60) -> tuple[Workload, EngineConfig]:
    rng = np.random.default_rng(seed)
    workload = Workload(
        arrival_s=np.cumsum(rng.exponential(float(rng.choice([1e-3, 0.02])), num)),
        prompt_tokens=rng.integers(1, 1500, num),
        output_tokens=rng.integers(1, 60, num),
    )
    config = EngineConfig(
        num_blocks=int(rng.choice([200, 4000])), block_size=16, max_num_seqs=int(rng.choice([8, 64])),
        max_num_batched_tokens=int(rng.choice([96, 512, 2048])), max_model_len=2000, policy="vllm-v1",
    )  # fmt: skip
    return workload, config


@pytest.mark.parametrize("name", [*NAMES, "vllm-roofline+nanoflow", "vllm-roofline:graph_tokens=8+kv_quantisation"])
def test_an_engine_runs_as_the_naive_one(name: str) -> None:
    preempted = 0
    for seed in range(CASES // 12):
        workload, config = _case(seed)
        model = build(name, STACKED[0] if seed % 2 else (EXPERTS, "B200", Parallelism()))
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for i, facts in enumerate(naive_simulate(workload, config, model, math.inf)):
            if run.status[i] == Status.REJECTED:
                continue
            assert run.timeline.token_times_s(i).tolist() == facts["token_times_s"], f"seed {seed}, request {i}"
        preempted += int(run.preemptions.sum())
    assert preempted > 0 or CASES < 60


def test_pipelined_stages_run_as_the_naive_ones() -> None:
    model = build(NAMES[0], DEPLOYMENTS[1])
    for seed in range(CASES // 10):
        workload, config = _case(seed)
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for i, facts in enumerate(naive_pipeline(workload, config, model)):
            assert run.timeline.token_times_s(i).tolist() == facts["token_times_s"], f"seed {seed}, request {i}"
