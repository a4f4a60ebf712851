"""Late replicas behind a router that counts tokens: followed, and nobody sees the difference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.fleets.fleet import Fleet
from plimsoll.engine.fleets.following import FollowingFleet, followed
from plimsoll.engine.fleets.late_course import LateCourse
from plimsoll.engine.policies.vllm_v1 import VllmV1
from plimsoll.engine.replicas.replica import Replica
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel, maybe_skewed
from tests.single_steps import counted_calls, same_as_single_steps
from tests.unit.test_engine_following import Even, engine, load

LATE = {"async_scheduling": True}


def random_case(rng: np.random.Generator) -> tuple[Workload, EngineConfig, Any]:
    """From hardly any load to far too much, small budgets, few blocks, and arrivals at the very ends of steps."""
    num, block, budget = int(rng.integers(1, 120)), int(rng.choice([1, 4, 16])), int(rng.choice([3, 8, 32, 128, 512]))
    prompt = rng.integers(1, int(rng.choice([10, 100, 12 * budget])) + 1, num)
    output = rng.integers(1, int(rng.choice([3, 12, 150])) + 1, num)
    even = rng.random() < 0.25
    times_s = np.cumsum(rng.exponential(float(rng.choice([1e-3, 1e-2, 5e-2, 0.3])), num) * (20 if even else 1))
    if even:
        times_s = np.round(times_s / 0.125) * 0.125
    options = {
        "long_prefill_token_threshold": int(rng.choice([0, 0, 0, 7])),
        "reserve_full_isl": bool(rng.random() < 0.7),
        "watermark": float(rng.choice([0.0, 0.0, 0.1])),
        **LATE,
    }
    peak = int(-(-(prompt + output).max() // block))
    config = EngineConfig(
        replicas=int(rng.integers(1, 6)),
        num_blocks=int(peak * rng.choice([1.0, 1.2, 2.0, 5.0, 40.0])),
        block_size=block,
        max_num_seqs=int(rng.choice([1, 2, 8, 64])),
        max_num_batched_tokens=budget,
        options=options,
    )
    model: Any = Even() if even else maybe_skewed(KinkedModel(kink=int(rng.choice([13, 200, 5000]))), rng)
    return Workload(arrival_s=floats(times_s), prompt_tokens=ints(prompt), output_tokens=ints(output)), config, model


def replicas_of(workload: Workload, config: EngineConfig, model: Any) -> tuple[Requests, list[Replica]]:
    requests, replicas = Requests(workload, config.max_model_len), []
    for number in range(config.replicas):
        policy = VllmV1(config, **config.options)
        replica = policy.make_replica(requests, config, model, number, None)
        assert replica is not None
        replica.lane.number = number
        replicas.append(replica)
    return requests, replicas


class Asks:
    """Routes by what a plain fleet says, now and then by dice, and wants to hear the same from another."""

    def __init__(self, plain: Fleet, rng: np.random.Generator, where: str) -> None:
        self.plain, self.rng, self.where = plain, rng, where

    def choose(self, fleet: Any, request: int, now_s: float, /) -> int:
        plain, dice = self.plain, self.rng.random()
        plain.now_s = now_s
        if dice < 0.6:
            assert fleet.pending_tokens() == plain.pending_tokens(), f"{self.where} request {request}"
        if dice > 0.4:
            assert fleet.least_pending() == plain.least_pending(), f"{self.where} request {request}"
        chosen = plain.least_pending()
        if self.rng.random() < 0.1:
            chosen = int(self.rng.integers(len(plain)))
        plain.send(chosen, request)
        return chosen


def test_whenever_it_is_asked_a_fleet_counts_the_same() -> None:
    evicted = 0
    for seed in (*range(300), 4856):  # in the last a step that nobody works on evicts, and begins at an arrival
        rng = np.random.default_rng([seed, 77])
        workload, config, model = random_case(rng)
        requests, replicas = replicas_of(workload, config, model)
        known = followed(replicas, requests)
        assert known is requests.final
        others, plain_replicas = replicas_of(workload, config, model)
        limit_s = float("inf") if rng.random() < 0.8 else float(workload.arrival_s[-1] * 1.1)
        fleet, plain = FollowingFleet(replicas, requests, known, limit_s), Fleet(plain_replicas, others)
        fleet.serve(Asks(plain, rng, f"seed {seed}"), list(range(len(workload))), workload.arrival_s.tolist())  # type: ignore[arg-type]
        fleet.finish(limit_s)
        plain.finish(limit_s)
        for mine, theirs in zip(replicas, plain_replicas, strict=True):
            assert mine.lane.ends == theirs.lane.ends, seed
        for name in ("replica", "last_step", "preemptions"):
            assert list(getattr(requests, name)) == list(getattr(others, name)), seed
        np.testing.assert_array_equal(requests.scheduled_s, others.scheduled_s)
        evicted += any(requests.preemptions)
    assert evicted > 20


@pytest.mark.parametrize("gap_s", [0.001, 0.004, 0.02, 0.2])
def test_runs_are_those_of_single_steps(gap_s: float) -> None:
    for num_blocks in (70, 400):
        run = same_as_single_steps(load(200, gap_s, 30, 60), engine(num_blocks=num_blocks, options=LATE), KinkedModel())
        assert num_blocks > 70 or gap_s > 0.01 or run.preemptions.sum() > 20


@pytest.mark.interpreted
def test_replicas_are_turned_to_two_or_three_times_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = counted_calls(monkeypatch, (LateCourse, "turn"))
    simulate(load(400, 0.05, 60, 60), engine(replicas=8, options=LATE), KinkedModel())
    assert 400 < calls["turn"] < 1200
    calls.clear()
    simulate(load(400, 0.002, 60, 60), engine(options=LATE), KinkedModel())
    assert 0 < calls["turn"] < 400


def test_where_more_is_expected_than_there_will_be_they_are_counted_one_by_one() -> None:
    """Whoever is over keeps what it did not get as long as it lingers."""
    workload = load(60, 0.02, 40, 30)
    told = load(60, 0.02, 40, 30, max_output_tokens=workload.output_tokens + ints(np.arange(60) % 7))
    same = load(60, 0.02, 40, 30, max_output_tokens=workload.output_tokens)
    for given, expected in ((told, False), (same, True)):
        requests, replicas = replicas_of(given, engine(options=LATE), KinkedModel())
        assert (followed(replicas, requests) is not None) == expected
        same_as_single_steps(given, engine(options=LATE), KinkedModel())
