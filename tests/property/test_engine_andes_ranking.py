"""Andes' decision: what `Ranking` finds by looking at a few, against memory handed out to everybody one by one."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.andes_ranking import TOKENS_BITS, Ranking, less_gain
from tests.oracle.models import KinkedModel

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))


@dataclasses.dataclass
class Somebody:
    request: int
    tokens: int
    busy_s: float
    runs: bool


def one_by_one(
    everybody: list[Somebody], free: int, seats: int, horizon_s: float, interval_s: float, size: int
) -> tuple[list[int], list[int]]:
    """The definition: everybody by gain per token, and memory to whoever fits, from nothing."""

    def gain(one: Somebody) -> float:
        waits_s = horizon_s - one.busy_s
        return float(np.clip(waits_s, 0.0, interval_s)) / one.tokens

    free += sum(one.tokens // size + 1 for one in everybody if one.runs)
    seats += sum(one.runs for one in everybody)
    chosen = set()
    for one in sorted(everybody, key=lambda one: (-gain(one), not one.runs, one.request)):
        if free <= 0 or seats <= 0:
            break
        blocks = one.tokens // size + 1
        if blocks <= free:
            chosen.add(one.request)
            free, seats = free - blocks, seats - 1
    gone = [one.request for one in everybody if one.runs and one.request not in chosen]
    taken = [one.request for one in everybody if not one.runs and one.request in chosen]
    return sorted(gone), sorted(taken)


def random_people(rng: np.random.Generator, horizon_s: float, interval_s: float) -> list[Somebody]:
    longest = int(rng.choice([3, 40, 2000]))
    late = float(rng.choice([0.2, 0.5, 0.9, 1.0]))
    people = []
    for request in rng.permutation(int(rng.integers(0, 40))).tolist():
        waits_s = float(rng.uniform(-interval_s, interval_s))
        if rng.random() < late:
            waits_s = interval_s + float(rng.exponential(2.0))
        elif rng.random() < 0.3:  # gains that are equal to those of late ones
            waits_s = float(rng.choice([interval_s, interval_s / 2, interval_s / 4, 0.0, -np.inf]))
        runs = bool(rng.random() < 0.5)
        people.append(Somebody(request, int(rng.integers(1, longest + 1)), horizon_s - waits_s, runs))
    return people


@pytest.mark.parametrize("seed", range(8))
def test_sharing_equals_the_definition(seed: int) -> None:
    moved = early = 0
    for case in range(CASES // 2):
        rng = np.random.default_rng([seed, case])
        interval_s, size, horizon_s = float(rng.choice([0.5, 1.0, 8.0])), int(rng.choice([1, 4, 16])), 128.0
        ranking = Ranking(interval_s, size)
        people = random_people(rng, horizon_s, interval_s)
        for one in people:
            if not one.runs:  # some become late only after they were added
                ranking.add(one.request, one.tokens, one.busy_s, float(rng.choice([horizon_s, 0.0])))
        total = sum(one.tokens // size + 1 for one in people)
        free, seats = int(rng.integers(-total // 2 - 1, total + 2)), int(rng.integers(-8, 20))
        expected = one_by_one(people, free, seats, horizon_s, interval_s, size)
        running = [one for one in people if one.runs]
        waits_s = [horizon_s - one.busy_s for one in running]
        late = [
            -(o.tokens << TOKENS_BITS | o.request) for o, w in zip(running, waits_s, strict=True) if w >= interval_s
        ]
        rest = [(one, w) for one, w in zip(running, waits_s, strict=True) if not w >= interval_s]
        soon = [(less_gain(w, one.tokens), one.request, one.tokens) for one, w in rest]
        gone, taken = ranking.share(late, soon, free, seats, horizon_s)
        assert (sorted(gone), sorted(taken)) == expected, f"seed {seed}, case {case}"
        moved += bool(gone and taken)
        early += any(0 < horizon_s - one.busy_s < interval_s for one in people)
    assert moved > CASES // 20
    assert early > CASES // 10


def test_whoever_is_dropped_is_not_ranked() -> None:
    ranking = Ranking(1.0, 16)
    ranking.add(1, 40, 0.0, 10.0)
    ranking.add(2, 20, 9.5, 10.0)
    ranking.add(3, 10, 0.0, 10.0)
    for request in (3, 2, 7):
        ranking.drop(request)
    assert ranking.share([], [], 100, 100, 10.0) == ([], [1])
    ranking.clear()
    assert ranking.share([], [], 100, 100, 10.0) == ([], [])


def test_no_number_as_a_target_comes_last() -> None:
    ranking = Ranking(1.0, 16)
    ranking.add(1, 20, float("nan"), 10.0)
    ranking.add(2, 20, float("inf"), 10.0)
    assert ranking.share([], [], 2, 9, 10.0) == ([], [2])
    assert ranking.share([], [], 4, 9, 10.0) == ([], [2, 1])


def test_a_run_at_a_long_queue_moves_people_in_and_out() -> None:
    rng = np.random.default_rng(5)
    n = 300
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(0.01, n))),
        prompt_tokens=ints(rng.integers(1, 60, n)),
        output_tokens=ints(rng.integers(5, 80, n)),
    )
    config = EngineConfig(
        num_blocks=80, max_num_seqs=16, max_num_batched_tokens=64, max_model_len=512, policy="andes",
        options={"interval_s": 0.2, "tokens_per_s": 30.0, "ttft_s": 0.1},
    )  # fmt: skip
    run = simulate(workload, config, KinkedModel())
    assert run.preemptions.sum() > n // 10
    assert np.isfinite(run.finish_s).all()
    assert run.output_tokens.tolist() == workload.output_tokens.tolist()
