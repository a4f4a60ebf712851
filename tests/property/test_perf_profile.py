"""What holds of every profile: measured points come back, lines are bit-equal to steps, ranks in lockstep wait."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.step import StepShape
from plimsoll.perf.build import build_step_model
from plimsoll.perf.profiles.bundle import read_bundle
from plimsoll.perf.profiles.model import Profiled
from plimsoll.perf.request import StepModelRequest

LLAMA = "RTXPRO6000/meta-llama/Llama-3.1-8B/bf16"
MOE = "RTXPRO6000/Qwen/Qwen3-30B-A3B-Instruct-2507/bf16"
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.cache
def build(root: Path, folder: str, dp: int = 1, ep: int = 1) -> Profiled:
    model = load_model(folder.split("/", 1)[1].removesuffix("/bf16"))
    request = StepModelRequest(model=model, gpu=load_accelerator("RTX-PRO-6000"), parallelism=Parallelism(dp=dp, ep=ep))
    built = build_step_model(f"profile:{root / folder}", request)
    assert isinstance(built, Profiled)
    return built


@pytest.fixture
def profiles(shared_data: Path) -> Path:
    return shared_data / "real-vllm" / "profiles"


@pytest.mark.parametrize("folder", [LLAMA, MOE, "RTX4090/meta-llama/Llama-3.1-8B/bf16"])
def test_every_measured_attention_comes_back_as_it_is(profiles: Path, folder: str) -> None:
    grid = read_bundle(profiles / folder, 1).attention
    with (profiles / folder / "tp1" / "attention.csv").open() as file:
        for row in csv.DictReader(file):
            chunk, context, n, length = (
                int(row[key]) for key in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
            )
            if not chunk:
                found = grid.decode_curve(n).at(length)
            elif n:
                found = grid.mixed_s(chunk, context, n, length)
            else:
                found = grid.prefill_s(chunk, context)
            assert found == pytest.approx(float(row["time_us"]) * 1e-6, rel=1e-12)


@quick
@given(chunk=st.integers(1, 2048), context=st.integers(0, 16384), n=st.integers(1, 128), length=st.integers(1, 16384))
def test_holes_are_bridged_between_measured_times(
    profiles: Path, chunk: int, context: int, n: int, length: int
) -> None:
    grid = read_bundle_once(profiles / LLAMA).attention
    times = [
        value
        for row in grid.mixed.items.values()
        for column in row.items.values()
        for curve in column.items.values()
        for value in curve.values
    ]
    assert min(times) <= grid.mixed_s(chunk, context, n, length) <= max(times)


@functools.cache
def read_bundle_once(folder: Path):  # type: ignore[no-untyped-def]
    return read_bundle(folder, 1)


@quick
@given(n=st.integers(1, 256), mean=st.integers(1, 9000), gap=st.integers(0, 3000), steps=st.integers(1, 400))
def test_a_run_of_decodes_lies_on_its_lines_to_the_last_bit(
    profiles: Path, n: int, mean: int, gap: int, steps: int
) -> None:
    model = build(profiles, LLAMA)
    read, longest = n * mean, mean + gap if gap else 0
    line = model.decode_line(n, read, longest)
    for step in range(steps):
        if read >= line[2]:
            line = model.decode_line(n, read, longest)
        fresh = build(profiles, LLAMA) if step % 50 else Profiled_again(profiles)
        assert fresh.step_s(0, 0, 0, 0, 0, n, read, longest) == line[0] + line[1] * read
        assert line[2] > read
        read, longest = read + n, longest + 1 if longest else 0


@functools.cache
def Profiled_again(profiles: Path) -> Profiled:  # noqa: N802
    """Another instance, which remembers other lines than the one asked."""
    return build.__wrapped__(profiles, LLAMA)


@quick
@given(n=st.integers(2, 200), mean=st.integers(16, 8000), more=st.integers(0, 4000))
def test_a_longer_longest_costs_more(profiles: Path, n: int, mean: int, more: int) -> None:
    model = build(profiles, LLAMA)
    even = model.step_s(0, 0, 0, 0, 0, n, n * mean)
    uneven = model.step_s(0, 0, 0, 0, 0, n, n * mean, mean + more)
    assert uneven >= even * (1 - 1e-3)  # measured times are not smooth
    mixed = model.step_s(100, 1, 5050, 0, 1, min(n, 128), min(n, 128) * mean, mean + more)
    assert mixed > model.step_s(0, 0, 0, 0, 0, 1, 16)


@quick
@given(n=st.integers(1, 128), mean=st.integers(16, 8000), chunk=st.integers(0, 1024))
def test_equal_ranks_in_lockstep_are_an_even_split(profiles: Path, n: int, mean: int, chunk: int) -> None:
    model = build(profiles, MOE, dp=2, ep=2)
    rank = StepShape(
        prefill_tokens=chunk,
        num_prefill=1 if chunk else 0,
        prefill_pairs=chunk * (chunk + 1) // 2,
        num_prefill_done=1 if chunk else 0,
        num_decode=n,
        decode_read_tokens=n * mean,
    )
    done = 2 * rank.num_prefill_done
    pairs = 2 * rank.prefill_pairs
    together = model.step_s(2 * chunk, 2 * rank.num_prefill, pairs, 0, done, 2 * n, 2 * n * mean)
    assert model.lockstep_s([rank, rank]) == pytest.approx(together, rel=1e-9)
    assert model.lockstep_s([rank, StepShape()]) <= model.lockstep_s([rank, rank])


def test_more_experts_are_used_by_more_tokens(profiles: Path) -> None:
    model = build(profiles, MOE)
    times = [model.step_s(0, 0, 0, 0, 0, n, n * 100) for n in (1, 4, 16, 64, 256)]
    assert times == sorted(times)
    assert times[2] > 3 * times[0]  # 16 tokens wake most experts of 128 that one wakes 8 of
