"""Asynchronous scheduling without content: stretches that run through ends and arrivals, against single steps.

Who watches (a step log, an observer) makes the engine take one plan at a time; the naive clock knows nothing of either.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.policies.vllm_v1 import VllmV1
from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.replica import Replica
from tests.oracle.models import KinkedModel, SkewedModel, maybe_skewed
from tests.oracle.naive_clock import clocked
from tests.property.test_engine_prefix_oracle import LAYERS, check, random_case

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
Case = tuple[Workload, EngineConfig, KinkedModel | SkewedModel, float | None]


def late_case(seed: int) -> Case:
    """Calm stretches, long prompts in many chunks beside short answers, and memory that is nearly full."""
    rng = np.random.default_rng([seed, 5])
    n, block = int(rng.integers(1, 60)), int(rng.choice([1, 4, 16]))
    budget = int(rng.choice([3, 8, 32, 128]))
    prompt = rng.integers(1, int(rng.choice([10, 100, 12 * budget])) + 1, n)
    output = rng.integers(1, int(rng.choice([3, 12, 150])) + 1, n)
    crowd = bool(rng.random() < 0.25)  # alike and together, so that all want their next block in the same step
    if crowd:
        n, budget, prompt, output = 40, 128, np.full(40, block), np.full(40, 3 * block)
    peak = int(-(-(prompt + output).max() // block))
    gaps = rng.exponential(float(rng.choice([1e-3, 1e-2, 5e-2, 0.3])), n)
    closed = bool(rng.random() < 0.15)
    workload = Workload(
        arrival_s=floats(np.zeros(n) if closed or crowd else np.cumsum(gaps) - gaps[0]),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        priority=ints(rng.integers(0, 3, n)),
        concurrency=int(rng.integers(1, 9)) if closed else None,
        think_s=float(rng.choice([0.0, 0.02])) if closed else 0.0,
    )
    config = EngineConfig(
        num_blocks=max(1, int(peak * (15 if crowd else rng.choice([1.0, 1.2, 2.0, 5.0, 40.0])))),
        block_size=block,
        max_num_seqs=64 if crowd else int(rng.choice([1, 2, 8, 64])),
        max_num_batched_tokens=budget,
        options={
            "long_prefill_token_threshold": int(rng.choice([0, 0, 0, 7])),
            "reserve_full_isl": bool(rng.random() < 0.7),
            "watermark": float(rng.choice([0.0, 0.0, 0.1])),
            "enable_prefix_caching": False,
            "scheduling_policy": str(rng.choice(["fcfs", "fcfs", "priority"])),
            "async_scheduling": True,
        },
    )
    model = KinkedModel(kink=int(rng.choice([13, 200, 5000])), layers=LAYERS[int(rng.integers(len(LAYERS)))])
    duration_s = float(rng.uniform(0.01, 1.0)) if rng.random() < 0.2 else None
    return workload, config, maybe_skewed(model, rng), duration_s


@pytest.mark.parametrize("chunk", range(2))
def test_every_token_time_equals_the_naive_clocks(chunk: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk, CASES, 2):
        workload, config, model, duration_s = late_case(seed)
        expected, _ = clocked(workload, config, model, np.inf if duration_s is None else duration_s)
        run = simulate(workload, config, model, duration_s=duration_s)
        check(run, expected, duration_s, f"seed {seed}: {config}")
        seen["evicted"] += bool(run.preemptions.any())
        seen["cut into chunks"] += bool((workload.prompt_tokens > 2 * config.max_num_batched_tokens).any())
        seen["closed"] += workload.concurrency is not None
        seen["windows"] += model.attention_layers != ((1, None),)
        seen["longest"] += isinstance(model, SkewedModel)
    assert len(seen) == 5
    assert min(seen.values()) >= CASES // 30, seen


def same(left: Run, right: Run, where: str) -> None:
    """Every column of the requests, and the times of all tokens."""
    for name in ("first_token_s", "finish_s", "scheduled_s", "preemptions", "cached_tokens", "replica", "status"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=f"{where} {name}")
    assert left.timeline is not None
    assert right.timeline is not None
    for request in range(len(left)):
        mine, theirs = left.timeline.token_times_s(request), right.timeline.token_times_s(request)
        assert mine.tolist() == theirs.tolist(), f"{where} request {request}"


@pytest.mark.parametrize(
    "router", ["round-robin", "least-loaded", "power-of-two", "prefix-aware", "least-pending-tokens"]
)
def test_a_log_changes_nothing_behind_any_router(router: str) -> None:
    """Without one, replicas behind routers that count are put off and run ahead; a log says how many wait when."""
    for seed in range(CASES // 3):
        workload, config, model, duration_s = (late_case if seed % 2 else random_case)(seed)
        options = {**config.options, "async_scheduling": True}
        config = dataclasses.replace(config, replicas=1 + seed % 4, router=router, options=options)
        alone = simulate(workload, config, model, duration_s=duration_s)
        watched = simulate(workload, dataclasses.replace(config, keep_step_log=True), model, duration_s=duration_s)
        same(alone, watched, f"seed {seed}: {config}")


class Onlooker:
    """Sees every step, and does nothing."""

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        """Nothing."""

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        """Nothing."""


def rows(run: Run) -> list[tuple[float, int, int]]:
    """What a log says of the batch and the blocks."""
    log = run.step_log
    if log is None:
        return []
    return list(zip(log.time_s.tolist(), log.num_running.tolist(), log.used_blocks.tolist(), strict=True))


def test_the_rows_of_a_log_are_those_of_single_steps() -> None:
    """An observer sees single steps, each with a row of its own; the batch gets smaller in the same rows."""
    num_rows = 0
    for seed in range(CASES // 3):
        workload, config, model, duration_s = (late_case if seed % 2 else random_case)(seed)
        options = {**config.options, "async_scheduling": True}
        config = dataclasses.replace(config, keep_step_log=True, options=options)
        where = f"seed {seed}: {config}"
        mine = rows(simulate(workload, config, model, duration_s=duration_s))
        single = rows(simulate(workload, config, model, duration_s=duration_s, observer=Onlooker()))
        assert set(mine) <= set(single), where
        fewer = {row for before, row in pairwise(single) if row[1] < before[1]}
        assert fewer <= set(mine), where
        num_rows += len(mine)
    assert num_rows > 10 * CASES


@pytest.mark.parametrize("late", [False, True])
def test_ranks_take_the_same_steps_one_by_one(late: bool) -> None:
    """An observer sees single steps, so that ranks do not run through stretches of decodes."""
    stretched = 0
    for seed in range(CASES // 3):
        workload, config, model, duration_s = (late_case if seed % 2 else random_case)(seed)
        options = {**config.options, "async_scheduling": late}
        if not late:
            options.update(enable_prefix_caching=True, cache_own_blocks=True)  # else they are plain ranks
        config = dataclasses.replace(config, ranks=1 + seed % 4, options=options)
        alone = simulate(workload, config, model, duration_s=duration_s)
        watched = simulate(workload, config, model, duration_s=duration_s, observer=Onlooker())
        same(alone, watched, f"seed {seed}: {config}")
        stretched += config.ranks > 1 and alone.num_steps > 50
    assert stretched >= CASES // 12


def calm(num: int) -> Workload:
    """Short prompts, long answers, and time between arrivals."""
    rng = np.random.default_rng(1)
    return Workload(
        arrival_s=floats(np.cumsum(rng.exponential(0.4, num))),
        prompt_tokens=ints(rng.integers(20, 60, num)),
        output_tokens=ints(rng.integers(20, 200, num)),
    )


@pytest.mark.interpreted
@pytest.mark.parametrize("ranks", [1, 3])
def test_an_arrival_or_an_end_costs_no_more_than_one_plan_or_two(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asynchronously it was twice as many as synchronously: one more for each arrival and each end."""
    count, plan = [0], VllmV1.plan

    def counting(self: VllmV1, replica: Replica, /) -> StepPlan:
        count[0] += 1
        return plan(self, replica)

    monkeypatch.setattr(VllmV1, "plan", counting)
    workload = calm(200)
    plans = {}
    for late in (False, True):
        count[0] = 0
        options = {"async_scheduling": late, "enable_prefix_caching": False}
        run = simulate(workload, EngineConfig(num_blocks=4000, ranks=ranks, options=options), KinkedModel())
        plans[late] = count[0] / len(workload)
        assert run.num_steps > 10 * len(workload)
    if ranks == 1:
        assert plans[True] < 1.5 < 2 < plans[False]
    else:
        assert plans[True] < plans[False]
