"""What every composition, and every stack of them, promises to the engine."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.step import StepShape
from plimsoll.perf.compositions import build_composed, list_compositions
from plimsoll.perf.overheads import load_overheads
from plimsoll.perf.request import StepModelRequest

LLAMA, OPT, GEMMA, MOE = (
    "meta-llama/Llama-3.1-8B",
    "facebook/opt-13b",
    "google/gemma-3-27b-it",
    "mistralai/Mixtral-8x7B-v0.1",
)
DEPLOYMENTS = (
    (LLAMA, "A100-SXM-80GB", Parallelism()),
    ("meta-llama/Llama-3.1-70B", "H100-SXM", Parallelism(tp=8)),
    (OPT, "A100-SXM-80GB", Parallelism(tp=2)),
    (GEMMA, "H100-SXM", Parallelism(tp=2)),
    (MOE, "A100-SXM-80GB", Parallelism(tp=4)),
)
STACKS = (
    "nanoflow",
    "nanoflow,nano=4",
    "no_flash_attention",
    "h2o,ratio=0.2",
    "h2o,ratio=0.2,max_tokens=4096",
    "razor_attention",
    "razor_attention,buffer=500,buffer_divisor=0,retrieval=0",
    "kv_quantisation,bits=4",
    "kv_quantisation,bits=8,group=64",
    "kv_offload,share=0.5",
    "kv_offload,tier=disk,overlap=off",
    "infinigen",
    "speculative,tokens=3,acceptance=0.8/0.6",
    "speculative,method=mtp,tokens=1,amortise=off",
    "speculative,method=draft,draft=Qwen/Qwen3-0.6B,host_ms=1",
    "smoothquant,overhead=0.1",
    "llm_int8",
    "awq",
    "sparsity",
    "h2o,ratio=0.3+kv_quantisation,bits=8+nanoflow",
    "sparsity+razor_attention+kv_offload,share=0.25",
    "nanoflow+speculative,tokens=2",
)


@functools.cache
def build(stack: str, deployment: tuple[str, str, Parallelism]):
    model, gpu, cut = deployment
    request = StepModelRequest(
        model=load_model(model),
        gpu=load_accelerator(gpu),
        parallelism=cut,
        overheads=load_overheads("vllm-v1-sync"),
    )
    return build_composed(f"roofline+{stack}", request)


models = st.builds(build, st.sampled_from(STACKS), st.sampled_from(DEPLOYMENTS))
steps = st.tuples(
    st.integers(0, 9000),
    st.integers(0, 40),
    st.integers(0, 10**8),
    st.integers(0, 10**6),
    st.integers(0, 40),
    st.integers(0, 1100),
    st.integers(0, 10**7),
)


def test_every_composition_is_in_a_stack():
    written = {part.split(",")[0] for stack in STACKS for part in stack.split("+")}
    assert written == set(list_compositions())


@settings(max_examples=400, deadline=None)
@given(models, st.integers(0, 1100), st.integers(0, 10**7), st.integers(0, 10**6))
def test_decode_runs_are_bit_equal_to_their_steps(model, num, read, ahead):
    base, slope, below = model.decode_line(num, read)
    assert below > read
    for r in (read, min(read + ahead, below - 1)):
        assert model.step_s(0, 0, 0, 0, 0, num, r) == base + slope * r
        assert model.decode_line(num, r) == (base, slope, below)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(STACKS), st.sampled_from(DEPLOYMENTS), st.integers(1, 600), st.lists(st.integers(0, 10**7)))
def test_the_line_does_not_depend_on_what_was_asked_before(stack, deployment, num, reads):
    asked = build(stack, deployment)
    fresh = build.__wrapped__(stack, deployment)
    for read in reads:
        asked.decode_line(num, read)
    for read in reversed(reads):
        assert fresh.decode_line(num, read) == asked.decode_line(num, read)


@settings(max_examples=600, deadline=None)
@given(models, steps, st.integers(0, 6), st.integers(1, 2000))
def test_more_work_never_takes_less_time(model, step, place, more):
    grown = list(step)
    grown[place] += more if place not in (1, 4, 5) else 1 + more % 50
    assert model.step_s(*grown) >= model.step_s(*step) * (1 - 1e-11)


@settings(max_examples=700, deadline=None)  # seven in ten lie on a last piece
@given(models, st.integers(1, 600), st.integers(1, 10**7))
def test_pieces_meet(model, num, read):
    base, slope, below = model.decode_line(num, read)
    if below >= 10**9:
        return  # the last piece meets nothing
    after = model.decode_line(num, below)
    step_of_one = abs(after[1] - slope) + slope + after[1]
    assert after[0] + after[1] * below == pytest.approx(base + slope * below, rel=1e-9, abs=2 * step_of_one)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DEPLOYMENTS), steps)
def test_keeping_or_overlapping_only_saves(deployment, step):
    plain = build("smoothquant", deployment), build("h2o,ratio=1", deployment)
    assert plain[0].step_s(*step) > 0
    whole = plain[1].step_s(*step)
    for stack in ("nanoflow", "h2o,ratio=0.2"):
        assert build(stack, deployment).step_s(*step) <= whole * (1 + 1e-12)
    for stack in ("no_flash_attention", "kv_offload,share=0.5", "llm_int8"):
        assert build(stack, deployment).step_s(*step) >= whole * (1 - 1e-12)


@settings(max_examples=100, deadline=None)
@given(models, steps)
def test_a_step_reports_the_time_of_step_s(model, step):
    names = (
        "prefill_tokens",
        "num_prefill",
        "prefill_pairs",
        "prefill_read_tokens",
        "num_prefill_done",
        "num_decode",
        "decode_read_tokens",
    )
    assert model.step(StepShape(**dict(zip(names, step, strict=True)))).time_s == model.step_s(*step)
