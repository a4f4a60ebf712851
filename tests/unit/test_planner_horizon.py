"""Probes that end at a horizon: who is judged, who is censored, and that the capacity stays what it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import plimsoll
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.metrics import Targets
from plimsoll.planner.horizon import HorizonRun, cut_at, judge_target
from plimsoll.planner.probes import ProbeLength, judge_by

NAN = float("nan")
CASE = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "workload": "chat", "ttft_ms": 1000.0, "tpot_ms": 50.0}


def cut_run(rows: list[tuple[float, float, float, int, int, Status]], horizon_s: float) -> HorizonRun:
    """Rows of arrival, first token, finish, tokens got, tokens asked, status."""
    arrival, first, finish, got, asked, status = (np.array(column) for column in zip(*rows, strict=True))
    n = len(rows)
    run = Run(
        arrival_s=arrival.astype(float),
        scheduled_s=first.astype(float),
        first_token_s=first.astype(float),
        finish_s=finish.astype(float),
        prompt_tokens=np.ones(n, dtype=np.int64),
        output_tokens=got.astype(np.int64),
        cached_tokens=np.zeros(n, dtype=np.int64),
        preemptions=np.zeros(n, dtype=np.int64),
        replica=np.zeros(n, dtype=np.int64),
        status=status.astype(np.int8),
        timeline=None,
    )
    workload = Workload(arrival_s=run.arrival_s, prompt_tokens=run.prompt_tokens, output_tokens=asked.astype(np.int64))
    return cut_at(run, workload, horizon_s)


F, U, R = Status.FINISHED, Status.UNFINISHED, Status.REJECTED


def test_a_ttft_is_judged_where_its_deadline_has_passed() -> None:
    run = cut_run(
        [
            (0.0, 0.5, 3.0, 9, 9, F),  # kept
            (1.0, NAN, NAN, 0, 9, U),  # due at 2, never came: infinitely late
            (7.0, 7.1, NAN, 5, 9, U),  # its first token is known, whatever becomes of the rest
            (9.5, 9.6, NAN, 2, 9, U),  # quick, but due at 10.5: censored all the same
            (9.9, NAN, NAN, 0, 9, U),  # censored
            (9.9, NAN, NAN, 0, 9, R),  # refused at once: judged
        ],
        10.0,
    )
    targets = Targets(ttft_s=1.0, percentile=50.0)
    judged = judge_target(run, targets, "ttft_s")
    assert (judged.num_judged, judged.num_censored) == (4, 2)
    assert judged.value_s == np.inf  # 0.1, 0.5, inf, inf
    assert judge_target(run, dataclasses.replace(targets, percentile=25.0), "ttft_s").value_s == pytest.approx(0.4)


def test_a_tpot_is_due_when_its_tokens_are() -> None:
    run = cut_run(
        [
            (0.0, 1.0, 3.0, 5, 5, F),  # 0.5 a token, due at 1 + 4
            (0.0, 2.0, NAN, 3, 9, U),  # due at 2 + 8 = 10: the cut, and not there
            (0.0, 2.1, NAN, 3, 9, U),  # due at 10.1: censored
            (0.0, NAN, NAN, 0, 9, U),  # no first token, no deadline: censored
            (0.0, 1.0, 1.0, 1, 1, F),  # one token has no TPOT at all
        ],
        10.0,
    )
    judged = judge_target(run, Targets(tpot_s=1.0, percentile=50.0), "tpot_s")
    assert (judged.num_judged, judged.num_censored) == (2, 2)
    assert judged.value_s == np.inf


def test_an_end_to_end_target_censors_by_arrival() -> None:
    rows = [(float(k), k + 0.1, k + 4.0 if k + 4.0 <= 10 else NAN, 9, 9, F if k + 4 <= 10 else U) for k in range(10)]
    judged = judge_target(cut_run(rows, 10.0), Targets(e2e_s=5.0), "e2e_s")
    assert (judged.num_judged, judged.num_censored) == (6, 4)  # arrivals 0 to 5 are due by 10
    assert judged.value_s == pytest.approx(4.0)


def test_a_target_without_a_deadline_is_refused() -> None:
    run = cut_run([(0.0, 0.5, 3.0, 9, 9, F)], 10.0)
    with pytest.raises(InputError, match="no deadline to cut a run by"):
        judge_target(run, Targets(itl_s=1.0), "itl_s")


def test_nobody_to_judge_is_an_error_and_no_pass() -> None:
    rows = [(0.1 * k, 0.1 * k + 0.01, NAN, 2, 100, U) for k in range(40)]
    with pytest.raises(InputError, match="--duration-s"):
        judge_by(Targets(tpot_s=1.0))(cut_run(rows, 4.0), ProbeLength(min_requests=40, fixed=True))


def test_a_growing_queue_fails_however_few_are_judged() -> None:
    """Each waits longer than the one before, and all first tokens are within the target so far."""
    rows = [(0.1 * k, 0.2 * k + 0.1, 0.2 * k + 0.2, 2, 2, F) for k in range(200)]
    rows = [(a, f if f <= 20 else NAN, e if e <= 20 else NAN, g, n, s if e <= 20 else U) for a, f, e, g, n, s in rows]
    verdict = judge_by(Targets(ttft_s=15.0))(cut_run(rows, 20.0), ProbeLength(min_requests=200, fixed=True))
    assert not verdict.passed
    assert verdict.failed_by == "stationarity"
    assert verdict.num_censored["ttft_s"] > 0


def test_the_capacity_within_a_horizon_is_that_of_drained_probes() -> None:
    drained = plimsoll.capacity(**CASE, num_seeds=3).result
    cut = plimsoll.capacity(**CASE, num_seeds=3, duration_s=120.0)
    assert cut.result.max_load == pytest.approx(drained.max_load, rel=0.15)
    assert cut.result.limited_by == drained.limited_by == "tpot"
    passing = [probe for probe in cut.result.probes if probe.passed]
    assert passing
    assert all(set(probe.num_censored) == {"ttft_s", "tpot_s"} for probe in passing)
    assert max(probe.num_censored["tpot_s"] for probe in passing) > 0
    document = cut.to_json_dict()
    assert document["load"] == {"kind": "rate", "unit": "requests/s", "think_s": 0.0, "duration_s": 120.0}
    assert document["probes"][0]["num_censored"].keys() == {"ttft_s", "tpot_s"}


def test_an_overload_fails_within_a_horizon_too() -> None:
    answer = plimsoll.capacity(**CASE, num_seeds=1, duration_s=60.0, rate_per_s=100.0)
    assert answer.result.max_load < 30.0
    first = answer.result.probes[0]
    assert (first.load, first.passed) == (100.0, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"duration_s": 0.5}, "the TTFT target is 1 s: give more seconds"),
        ({"duration_s": -1.0}, "give seconds above zero"),
        ({"duration_s": float("inf")}, "give seconds above zero"),
    ],
)
def test_impossible_horizons_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plimsoll.capacity(**CASE, **fields)
