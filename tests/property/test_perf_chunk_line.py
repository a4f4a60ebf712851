"""Lines for chunk after chunk: to the last bit what the step model says of each step; and whose lines do not count."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import MissingExtraError, OutOfRangeError
from plimsoll.core.step import StepModel, StepShape, chunk_line_of, lockstep_of
from plimsoll.perf.build import build_step_model
from plimsoll.perf.compositions._wrapped import Composed
from plimsoll.perf.request import StepModelRequest
from tests.oracle.models import KinkedModel, LinedModel, SkewedModel
from tests.property.test_engine_rank_group import Meeting

DEPLOYMENTS = [
    ("roofline", "Llama-2-7B", "A100-SXM-80GB", Parallelism()),
    ("roofline", "meta-llama/Llama-3.1-70B", "H100-SXM", Parallelism(tp=8, pp=2)),
    ("roofline", "deepseek-ai/DeepSeek-V3", "B200", Parallelism(tp=1, dp=8, ep=8)),
    ("silicon", "Qwen/Qwen3-32B", "H200", Parallelism(tp=2)),
]


@functools.cache
def build(name: str, model: str, gpu: str, cut: Parallelism) -> Any:
    request = StepModelRequest(model=load_model(model), gpu=load_accelerator(gpu), parallelism=cut)
    return build_step_model(name, request)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda given: f"{given[0]}-{given[1].split('/')[-1]}")
def test_the_line_is_the_step_to_the_last_bit(deployment: tuple[str, str, str, Parallelism]) -> None:
    try:
        model = build(*deployment)
    except MissingExtraError:
        pytest.skip("the silicon tables are not installed")
    chunk_line = chunk_line_of(model)
    assert chunk_line is not None

    @settings(max_examples=200, deadline=None)
    @given(
        chunk=st.integers(1, 2048),
        num_decode=st.integers(0, 300),
        length=st.integers(1, 4000),
        context=st.integers(0, 20_000),
    )
    def check(chunk: int, num_decode: int, length: int, context: int) -> None:
        pairs = chunk * context + chunk * (chunk + 1) // 2
        read = num_decode * length
        try:
            fixed_s, chunk_s, pair_s, context_s, base_s, slope_s, below = chunk_line(chunk, num_decode, 0)
            expected_s = model.step_s(chunk, 1, pairs, context, 0, num_decode, read)
        except OutOfRangeError:
            return
        for line in ((base_s, slope_s, below), chunk_line(chunk, num_decode, read)[4:]):
            if read < line[2]:
                chunks_s = chunk_s + pair_s * pairs + context_s * context
                assert fixed_s + chunks_s + (line[0] + line[1] * read) == expected_s

    check()


class PassesOn:
    """A wrapper that has whatever its inner model has, but charges twice as much."""

    def __init__(self, inner: StepModel) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step_s(self, *args: int) -> float:
        return 2 * self.inner.step_s(*args)


def test_only_what_a_class_writes_down_itself_counts() -> None:
    lined = LinedModel()
    assert chunk_line_of(lined) == lined.chunk_line
    assert chunk_line_of(KinkedModel()) is None
    assert chunk_line_of(SkewedModel()) is None
    wrapper: Any = PassesOn(lined)
    assert wrapper.chunk_line == lined.chunk_line
    assert chunk_line_of(wrapper) is None
    meeting: Any = PassesOn(Meeting())
    assert meeting.lockstep_s([StepShape()]) == Meeting().lockstep_s([StepShape()])
    assert lockstep_of(meeting) is None
    assert lockstep_of(Meeting()) is not None
    assert chunk_line_of(Composed("nothing", build(*DEPLOYMENTS[0]), {})) is None
