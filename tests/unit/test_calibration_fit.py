"""Factors that are known come back; factors that the data cannot carry are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from plimsoll.api.calibrating import seen
from plimsoll.calibration import FACTORS, MeasuredRun, Seen, fit
from plimsoll.calibration.measured import from_columns
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.calibrated import calibrated
from plimsoll.perf.factors import Factors
from tests.oracle.models import KinkedModel

CONFIG = EngineConfig(num_blocks=4000, max_num_seqs=64, max_num_batched_tokens=512)
TRUTH = {"compute": 1.4, "bandwidth": 0.8, "per_step_s": 0.0, "per_request_s": 0.04}


def observe(workload: Workload, values: Mapping[str, float]) -> Seen:
    factors = Factors(**values)
    config = dataclasses.replace(CONFIG, frontend_s=factors.per_request_s)
    return seen(simulate(workload, config, calibrated(KinkedModel(), factors)))


def predict(run: MeasuredRun, values: Mapping[str, float]) -> Seen:
    return observe(run.workload(), values)


def measure(rate_per_s: float, seed: int, num: int = 150, values: Mapping[str, float] = TRUTH) -> MeasuredRun:
    """A run of a machine whose factors are `values`, with 1 % of noise on every time."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, num))
    workload = Workload(
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=rng.integers(20, 900, num),
        output_tokens=rng.integers(2, 150, num),
    )
    true = observe(workload, values)
    noise = rng.normal(1.0, 0.01, num)
    return from_columns(
        f"run at {rate_per_s}/s",
        list(workload.arrival_s),
        list(workload.prompt_tokens),
        list(workload.output_tokens),
        list(true.ttft_s * noise),
        list(true.e2e_s * noise),
    )


def test_known_factors_come_back_from_several_loads() -> None:
    found = fit([measure(rate, k) for k, rate in enumerate((1.0, 4.0, 10.0, 18.0))], predict)
    assert found.values["compute"] == pytest.approx(1.4, rel=0.1)
    assert found.values["bandwidth"] == pytest.approx(0.8, rel=0.05)
    assert found.values["per_request_s"] == pytest.approx(0.04, rel=0.2)
    assert found.error_before > 0.1
    assert found.error_after < 0.04
    assert found.error_after < found.error_before / 4
    assert found.held_back == "2 of 4 runs"


def test_one_run_is_judged_by_its_later_half() -> None:
    found = fit([measure(6.0, 1)], predict)
    assert found.held_back == "the later half of the requests"
    assert found.error_after < found.error_before / 2  # one load tells less than several


def test_a_machine_that_the_model_describes_keeps_factors_of_one() -> None:
    right = {"compute": 1.0, "bandwidth": 1.0}
    found = fit([measure(rate, k, values=right) for k, rate in enumerate((2.0, 8.0))], predict)
    assert all(abs(found.values.get(name, 1.0) - 1.0) < 0.06 for name in ("compute", "bandwidth"))
    assert found.values.get("per_request_s", 0.0) < 0.01


def test_a_factor_that_nothing_depends_on_is_left_out_or_refused() -> None:
    def deaf(run: MeasuredRun, values: Mapping[str, float]) -> Seen:
        return predict(run, {**values, "compute": 1.0})

    runs = [measure(3.0, 5)]
    found = fit(runs, deaf)
    assert "compute" in found.not_carried
    assert "compute" not in found.values
    with pytest.raises(InputError, match=r"--fit: 'compute'.*does not carry"):
        fit(runs, deaf, ["compute"])


def test_two_factors_with_one_effect_are_not_both_fitted() -> None:
    def same(run: MeasuredRun, values: Mapping[str, float]) -> Seen:
        product = values.get("compute", 1.0) * values.get("bandwidth", 1.0)
        base = predict(run, {})
        return Seen(ttft_s=base.ttft_s * product, tpot_s=base.tpot_s * product, e2e_s=base.e2e_s * product)

    found = fit([measure(3.0, 6)], same)
    assert len({"compute", "bandwidth"} & set(found.values)) == 1


def test_wanted_factors_only() -> None:
    found = fit([measure(4.0, 2)], predict, ["bandwidth"])
    assert set(found.values) == {"bandwidth"}
    assert set(found.not_carried) == set()


def test_requests_that_do_not_count_are_replayed_but_change_no_figure() -> None:
    """Warm-up requests of any latency leave factors and errors as they are; their load is still replayed."""
    run = measure(6.0, 1)
    counted = np.arange(len(run)) >= 50
    slow = np.where(counted, 1.0, 100.0)
    replayed: list[int] = []

    def watched(seen_run: MeasuredRun, values: Mapping[str, float]) -> Seen:
        replayed.append(len(seen_run.workload().prompt_tokens))
        return predict(seen_run, values)

    plain = fit([dataclasses.replace(run, is_counted=counted)], watched, ["bandwidth"])
    warm = dataclasses.replace(run, is_counted=counted, ttft_s=run.ttft_s * slow, e2e_s=run.e2e_s * slow)
    found = fit([warm], predict, ["bandwidth"])
    assert found.values == plain.values
    assert found.after == plain.after
    assert set(replayed) == {150}
    all_of_it = fit([dataclasses.replace(warm, is_counted=None)], predict, ["bandwidth"])
    assert all_of_it.values["bandwidth"] > 1.5 * found.values["bandwidth"]


def test_the_halves_of_a_run_are_those_of_the_requests_that_count() -> None:
    run = measure(6.0, 1)
    with pytest.raises(InputError, match="19 of 150 requests in the measured window"):
        fit([dataclasses.replace(run, is_counted=np.arange(150) < 19)], predict, ["bandwidth"])
    late = fit([dataclasses.replace(run, is_counted=np.arange(150) >= 110)], predict)
    assert late.values  # a split of all requests would have left nothing to fit
    assert late.error_after < late.error_before


@pytest.mark.parametrize(
    ("runs", "wanted", "message"),
    [
        ([], None, "at least one file"),
        ([measure(4.0, 3, num=10)], None, "at least 20"),
    ],
)
def test_too_little_is_refused(runs: list[MeasuredRun], wanted: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(runs, predict, wanted)


def test_unknown_factor_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="bandwidth"):
        fit([measure(4.0, 3)], predict, ["bandwith"])


def test_deviations_shrink_with_more_runs() -> None:
    few = fit([measure(4.0, 1), measure(8.0, 2)], predict, ["bandwidth"])
    many = fit([measure(2.0 + k, k) for k in range(8)], predict, ["bandwidth"])
    assert many.deviations["bandwidth"] < few.deviations["bandwidth"] < FACTORS["bandwidth"].spread
