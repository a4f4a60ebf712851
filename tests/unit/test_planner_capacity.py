"""The capacity search on probes whose answer is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import LoadKind
from plimsoll.metrics import Targets
from plimsoll.planner.capacity import CapacityOptions, find_capacity, find_whole_capacity
from plimsoll.planner.probes import ProbeLength, measured_part, queue_growth
from plimsoll.planner.seed_search import fit_threshold

SHORT = ProbeLength(min_requests=60, fixed=True)


def steady_run(
    rate_per_s: float, ttft_s: float, num_requests: int, *, unfinished: int = 0, users: int | None = None
) -> Run:
    """Equal gaps, everybody waits the same: nothing grows."""
    arrival_s = np.arange(num_requests) / rate_per_s
    status = np.full(num_requests, Status.FINISHED, dtype=np.int8)
    status[num_requests - unfinished :] = Status.UNFINISHED
    first = np.where(status == Status.FINISHED, arrival_s + ttft_s, np.nan)
    ones = np.ones(num_requests, dtype=np.int64)
    return Run(
        arrival_s=arrival_s,
        scheduled_s=arrival_s,
        first_token_s=first,
        finish_s=first + 0.1,
        prompt_tokens=ones,
        output_tokens=2 * ones,
        cached_tokens=0 * ones,
        preemptions=0 * ones,
        replica=0 * ones,
        status=status,
        timeline=None,
        load_kind=LoadKind.OPEN if users is None else LoadKind.CLOSED,
        concurrency=users,
    )


def knee(rate_per_s: float, seed: int, num_requests: int) -> Run:
    """TTFT passes 1 s at exactly 10 requests per second."""
    return steady_run(rate_per_s, 0.1 * rate_per_s, num_requests)


@pytest.mark.parametrize("start", [None, 0.001, 9.9, 1e5])
def test_finds_the_knee_from_any_start(start: float | None) -> None:
    options = CapacityOptions(seeds=(0, 1, 2, 3), length=SHORT, rel_tolerance=0.01)
    result = find_capacity(knee, Targets(ttft_s=1.0), options, start)
    assert result.max_rate_per_s == pytest.approx(10.0, rel=0.01)
    assert result.interval[0] <= 10.0 <= result.interval[1]
    assert result.interval[1] / result.interval[0] < 1.03
    assert result.limited_by == "ttft"
    assert result.confidence == 0.95
    assert result.unit == "requests/s"


def test_every_probe_is_recorded_with_its_verdict() -> None:
    asked: list[tuple[float, int, int]] = []

    def probe(rate: float, seed: int, num_requests: int) -> Run:
        asked.append((rate, seed, num_requests))
        return knee(rate, seed, num_requests)

    result = find_capacity(probe, Targets(ttft_s=1.0), CapacityOptions(seeds=(3, 7), length=SHORT))
    assert [(p.load, p.seed, p.num_requests) for p in result.probes] == asked
    assert {p.seed for p in result.probes} == {3, 7}
    for p in result.probes:
        assert p.passed is (p.load <= 10.0)
        assert p.failed_by == (None if p.passed else "ttft")
        assert p.figures["ttft_s"] == pytest.approx(0.1 * p.load)


def test_one_seed_has_a_bracket_and_no_confidence() -> None:
    result = find_capacity(knee, Targets(ttft_s=1.0), CapacityOptions(seeds=(0,), length=SHORT))
    assert result.confidence is None
    assert "bracket" in result.note
    assert result.interval == (result.by_seed[0].highest_pass, result.by_seed[0].lowest_fail)


def test_a_target_that_an_idle_system_misses_gives_zero() -> None:
    def slow(rate: float, seed: int, num_requests: int) -> Run:
        return steady_run(rate, 5.0, num_requests)

    result = find_capacity(slow, Targets(ttft_s=1.0), CapacityOptions(length=SHORT))
    assert result.max_rate_per_s == 0.0
    assert result.interval[0] == 0.0
    assert result.limited_by == "ttft"
    assert "no load meets the targets" in result.note
    assert len(result.by_seed) == 2  # two seeds settle it


def test_what_never_fails_is_a_lower_bound_and_says_so() -> None:
    def endless(rate: float, seed: int, num_requests: int) -> Run:
        return steady_run(rate, 0.001, num_requests)

    result = find_capacity(endless, Targets(ttft_s=1.0), CapacityOptions(length=SHORT, max_load=5000.0))
    assert result.max_rate_per_s == 5000.0
    assert result.interval == (5000.0, math.inf)
    assert result.limited_by == "none"
    assert "lower bound" in result.note


def test_unfinished_requests_are_misses() -> None:
    def losing(rate: float, seed: int, num_requests: int) -> Run:
        return steady_run(rate, 0.01, num_requests, unfinished=0 if rate <= 20.0 else 5)

    options = CapacityOptions(seeds=(0, 1), length=ProbeLength(min_requests=100, fixed=True))
    result = find_capacity(losing, Targets(ttft_s=1.0), options)
    assert result.max_rate_per_s == pytest.approx(20.0, rel=0.03)
    worst = max(result.probes, key=lambda p: p.load)
    assert worst.figures["ttft_s"] == math.inf


def test_noise_widens_the_interval_and_keeps_the_truth_inside() -> None:
    def noisy(rate: float, seed: int, num_requests: int) -> Run:
        # Each (rate, seed) has its own luck: verdicts near the knee contradict each other.
        luck = np.random.default_rng([seed, round(rate * 1e6)]).lognormal(0.0, 0.1)
        return steady_run(rate, 0.1 * rate * luck, num_requests)

    result = find_capacity(noisy, Targets(ttft_s=1.0), CapacityOptions(seeds=tuple(range(8)), length=SHORT))
    low, high = result.interval
    assert low < 10.0 < high
    assert 1.05 < high / low < 1.4
    plain = find_capacity(knee, Targets(ttft_s=1.0), CapacityOptions(seeds=tuple(range(8)), length=SHORT))
    assert high / low > 2 * (plain.interval[1] / plain.interval[0] - 1) + 1


def test_short_probes_reject_clear_failures_only() -> None:
    length = ProbeLength(min_requests=400)
    result = find_capacity(knee, Targets(ttft_s=1.0), CapacityOptions(seeds=(0, 1), length=length), 1000.0)
    short = [p for p in result.probes if p.short]
    assert short
    for p, following in itertools.pairwise(result.probes):
        if p.short and following.load == p.load:
            assert following.num_requests >= 2 * p.num_requests
    assert all(p.passed in (False, None) for p in short)
    assert any(p.passed is False and p.load > 20 for p in short)
    passes = [p for p in result.probes if p.passed]
    assert passes
    assert all(not p.short for p in passes)


def test_users_are_whole_and_a_closed_loop_cannot_grow() -> None:
    def loop(users: float, seed: int, num_requests: int) -> Run:
        assert users == round(users)
        return steady_run(10.0, 0.0499 * users, num_requests, users=round(users))

    result = find_whole_capacity(loop, Targets(ttft_s=1.0), CapacityOptions(seeds=(0, 1), length=SHORT))
    assert result.max_load == pytest.approx(20)
    assert result.unit == "users"
    assert all(seed.load == 20 for seed in result.by_seed)


def test_probe_length_follows_the_requests_in_flight() -> None:
    length = ProbeLength(min_requests=100, turnovers=5.0, max_requests=1000)
    assert length.num_requests(None) == 100
    assert length.num_requests(10.0) == 100
    assert length.num_requests(50.0) == 250
    assert length.num_requests(1e6) == 1000
    assert ProbeLength(min_requests=100, fixed=True).num_requests(1e6) == 100
    assert length.num_warmup(250, 50.0) == 50
    assert length.num_warmup(250, 500.0) == 125


def test_the_warm_up_is_not_judged() -> None:
    run = steady_run(10.0, 0.1, 200)
    part = measured_part(run, ProbeLength(min_requests=100, warmup_frac=0.25))
    assert len(part) == 150
    assert part.arrival_s[0] == run.arrival_s[50]


def test_a_steady_queue_does_not_grow() -> None:
    assert not queue_growth(steady_run(10.0, 0.1, 200)).growing


@pytest.mark.parametrize(
    ("passing", "failing", "expected"),
    [
        ([], [1.0], 0.0),
        ([1.0], [], math.inf),
        ([1.0, 2.0], [4.0, 8.0], math.sqrt(8.0)),
        ([1.0, 2.0, 16.0], [4.0, 8.0, 32.0], math.sqrt(8.0)),  # one stray pass
        ([4.0, 8.0, 16.0], [1.0, 32.0], math.sqrt(16.0 * 32.0)),  # one stray failure
    ],
)
def test_the_threshold_that_fewest_verdicts_speak_against(
    passing: list[float], failing: list[float], expected: float
) -> None:
    assert fit_threshold(passing, failing) == pytest.approx(expected)


@pytest.mark.parametrize(
    "options",
    [{"seeds": ()}, {"seeds": (1, 1)}, {"rel_tolerance": 0.0}, {"min_load": 0.0}, {"first_ratio": 1.0}],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        CapacityOptions(**options)  # type: ignore[arg-type]


def test_a_start_of_nothing_is_refused() -> None:
    with pytest.raises(InputError):
        find_capacity(knee, Targets(ttft_s=1.0), CapacityOptions(length=SHORT), -1.0)
