"""A step model that waits for the longest decode is told it through whatever wraps it.

The same run, to the last bit, with and without a wrapper that changes nothing; and another one where nobody is told.
"""

from __future__ import annotations

import pickle
from typing import Any, cast

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Run
from plimsoll.core.step import FULL_ATTENTION, StepModel, StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.compositions._wrapped import Composed
from plimsoll.planner.prefix import SharedPrefix
from tests.oracle.models import SkewedModel

SEEDS = range(40)
ENGINES = ("vllm-v1", "vllm-v0", "sglang", "fastgen")


class Deaf:
    """The same model, with all decodes of a step as long as each other."""

    attention_layers = FULL_ATTENTION
    num_stages = 1

    def __init__(self, inner: SkewedModel) -> None:
        self._inner = inner

    def step_s(self, *args: int) -> float:
        return self._inner.step_s(*args)  # type: ignore[arg-type]

    def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
        return self._inner.decode_line(num_decode, read)


def case(seed: int) -> tuple[Workload, EngineConfig, SkewedModel]:
    rng = np.random.default_rng([seed, 77])
    n = int(rng.integers(2, 30))
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(0.02, n))),
        prompt_tokens=ints(rng.integers(1, 200, n)),
        output_tokens=ints(rng.integers(1, 60, n)),
    )
    config = EngineConfig(
        num_blocks=int(rng.integers(20, 200)), max_num_seqs=8, max_num_batched_tokens=64, max_model_len=512,
        policy=ENGINES[seed % len(ENGINES)],
    )  # fmt: skip
    return workload, config, SkewedModel(kink=200, longest_kink=int(rng.choice([3, 37])))


def run_with(seed: int, wrap: Any) -> Run:
    workload, config, model = case(seed)
    return simulate(workload, config, cast(StepModel, wrap(model)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: Composed("same", model, {}),
        lambda model: Composed("again", Composed("same", model, {}), {}),
        lambda model: SharedPrefix(model, 0.0),
        lambda model: SharedPrefix(Composed("same", model, {}), 0.0),
    ],
)
def test_a_wrapper_that_changes_nothing_changes_nothing(wrap: Any) -> None:
    for seed in SEEDS:
        bare, wrapped = run_with(seed, lambda model: model), run_with(seed, wrap)
        assert np.array_equal(bare.finish_s, wrapped.finish_s, equal_nan=True), seed
        assert np.array_equal(bare.first_token_s, wrapped.first_token_s, equal_nan=True), seed


def test_and_it_matters_that_it_is_told() -> None:
    slower = 0
    for seed in SEEDS:
        told, deaf = run_with(seed, lambda model: Composed("same", model, {})), run_with(seed, Deaf)
        slower += told.end_s > deaf.end_s
    assert slower > len(SEEDS) // 2


def test_a_shared_prefix_makes_the_longest_longer() -> None:
    inner = SkewedModel()
    model = SharedPrefix(inner, 100.0)
    assert model.needs_longest
    assert model.step_s(0, 0, 0, 0, 0, 3, 90, 50) == pytest.approx(inner.step_s(0, 0, 0, 0, 0, 3, 390, 150))
    base_s, per_token_s, _ = model.decode_line(3, 90, 50)
    assert base_s + per_token_s * 90 == pytest.approx(inner.step_s(0, 0, 0, 0, 0, 3, 390, 150))
    shape = StepShape(num_decode=3, decode_read_tokens=90, longest_decode=50)
    assert model.step(shape).time_s == pytest.approx(inner.step_s(0, 0, 0, 0, 0, 3, 390, 150))


def test_a_told_model_can_be_sent_to_another_process() -> None:
    model = Composed("same", cast(Any, SkewedModel()), {})
    there = pickle.loads(pickle.dumps(model))
    assert there.needs_longest
    assert there.step_s(0, 0, 0, 0, 0, 3, 90, 50) == model.step_s(0, 0, 0, 0, 0, 3, 90, 50)


def test_where_decodes_are_others_than_the_inner_models_they_count_as_equally_long() -> None:
    class Twice(Composed):
        same_decodes = False

    assert not Twice("twice", cast(Any, SkewedModel()), {}).needs_longest
    windowed = Composed("windowed", cast(Any, SkewedModel()), {}, layers=((1, 64),))
    assert not windowed.needs_longest
