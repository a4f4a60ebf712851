"""The calibrated step model keeps the port's promises."""

from __future__ import annotations

import numpy as np
import pytest

from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.calibrated import Calibrated, calibrated
from plimsoll.perf.factors import Factors
from tests.oracle.models import KinkedModel

SOME = Factors(compute=1.7, bandwidth=0.6, per_step_s=0.003)


def test_no_factors_is_the_model_itself() -> None:
    model = KinkedModel()
    assert calibrated(model, None) is model


def test_factors_of_one_change_nothing() -> None:
    model, same = KinkedModel(), Calibrated(KinkedModel(), Factors())
    for args in ((0, 0, 0, 0, 0, 3, 900), (64, 1, 2080, 0, 1, 0, 0), (64, 2, 2080, 500, 1, 5, 4000)):
        assert same.step_s(*args) == pytest.approx(model.step_s(*args), rel=1e-15)


@pytest.mark.parametrize("read", [1, 699, 700, 5000])
def test_a_decode_step_lies_on_its_line_to_the_last_bit(read: int) -> None:
    model = Calibrated(KinkedModel(), SOME)
    base_s, slope_s, below = model.decode_line(4, read)
    assert below > read
    assert model.step_s(0, 0, 0, 0, 0, 4, read) == base_s + slope_s * read


def test_what_prompts_add_is_compute_and_what_decodes_take_is_bandwidth() -> None:
    model = KinkedModel()
    decode_s = model.step_s(0, 0, 0, 0, 0, 4, 800)
    whole_s = model.step_s(100, 1, 5050, 0, 1, 4, 800)
    expected_s = 0.6 * decode_s + 1.7 * (whole_s - decode_s) + 0.003
    assert Calibrated(model, SOME).step_s(100, 1, 5050, 0, 1, 4, 800) == pytest.approx(expected_s, rel=1e-12)


def test_slower_factors_never_answer_earlier() -> None:
    rng = np.random.default_rng(4)
    workload = Workload(
        arrival_s=np.sort(rng.uniform(0, 20, 80)),
        prompt_tokens=rng.integers(10, 400, 80),
        output_tokens=rng.integers(1, 60, 80),
    )
    config = EngineConfig(num_blocks=2000, max_num_seqs=16)
    fast = simulate(workload, config, KinkedModel())
    slow = simulate(workload, config, Calibrated(KinkedModel(), Factors(compute=1.3, bandwidth=1.3)))
    assert float(slow.finish_s.mean()) > float(fast.finish_s.mean())


def frontend_run(frontend_s: float, concurrency: int | None) -> Run:
    rng = np.random.default_rng(5)
    workload = Workload(
        arrival_s=np.zeros(60) if concurrency else np.sort(rng.uniform(0, 30, 60)),
        prompt_tokens=rng.integers(10, 400, 60),
        output_tokens=rng.integers(1, 60, 60),
        concurrency=concurrency,
    )
    return simulate(workload, EngineConfig(num_blocks=2000, frontend_s=frontend_s), KinkedModel())


def test_a_front_end_shifts_an_open_loop() -> None:
    plain, behind = frontend_run(0.0, None), frontend_run(0.25, None)
    np.testing.assert_allclose(behind.arrival_s, plain.arrival_s, atol=1e-9)
    np.testing.assert_allclose(behind.first_token_s, plain.first_token_s + 0.25, atol=1e-9)
    np.testing.assert_allclose(behind.finish_s, plain.finish_s + 0.25, atol=1e-9)


def test_users_of_a_closed_loop_wait_for_the_front_end_every_time() -> None:
    plain, behind = frontend_run(0.0, 1), frontend_run(0.25, 1)
    np.testing.assert_allclose(behind.first_token_s - behind.arrival_s, plain.first_token_s - plain.arrival_s + 0.25)
    np.testing.assert_allclose(behind.arrival_s[1:], behind.finish_s[:-1], atol=1e-9)
    assert behind.end_s == pytest.approx(plain.end_s + 60 * 0.25)
