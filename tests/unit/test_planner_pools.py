"""Prefill and decode pools as candidates of a plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.planner.context import Context
from plimsoll.planner.evaluate import COARSE, Evaluator, Job
from plimsoll.planner.pool_estimate import PoolEstimator, balanced_prefill_frac
from plimsoll.planner.pools import Pools, list_pool_engines, parse_split, splits_near
from plimsoll.planner.prune import screen_one
from plimsoll.planner.results import PlanResult
from plimsoll.planner.search import SearchOptions, search
from plimsoll.planner.space import Candidate, GpuLimit, ReplicaConfig, replica_counts
from plimsoll.planner.stages import pool_configs, pool_sizes
from tests.unit.planner_fakes import FAST, FakeParts, plan_request

LISTS = ("plans", "top_cost", "top_throughput", "top_latency", "pareto")


def config(pools: Pools | None, tp: int = 1) -> ReplicaConfig:
    return ReplicaConfig(
        accelerator=FAST,
        parallelism=Parallelism(tp=tp),
        precision="bf16",
        engine="vllm-v1",
        max_num_batched_tokens=2048,
        pools=pools,
    )


def test_arithmetic_names_the_ratio() -> None:
    split = config(Pools(prefill=3, decode=1), tp=2)
    candidate = Candidate(config=split, replicas=1)
    assert candidate.arithmetic == "8 GPUs = (3 prefill + 1 decode) × TP 2"
    assert (candidate.num_gpus, split.num_machines) == (8, 4)
    assert split.stem == "FAST TP2 bf16 vllm-v1 distserve 3P:1D"
    assert split.machine_stem == "FAST TP2 bf16 vllm-v1"


def test_pools_are_one_deployment() -> None:
    split = config(Pools(prefill=2, decode=1))
    assert replica_counts(split, GpuLimit(accelerator=FAST, max_gpus=64)) == (1,)
    assert replica_counts(split, GpuLimit(accelerator=FAST, max_gpus=2)) == ()
    assert replica_counts(split, GpuLimit(accelerator=FAST, max_gpus=8, min_gpus=4)) == ()


@pytest.mark.parametrize(
    ("machines", "frac", "splits"),
    [
        (2, 0.1, ((1, 1),)),
        (4, 0.5, ((2, 2), (3, 1))),
        (8, 0.3, ((2, 6), (3, 5))),
        (8, 0.99, ((7, 1),)),
        (3, 0.0, ((1, 2),)),
    ],
)
def test_splits_lie_around_the_balance(machines: int, frac: float, splits: tuple[tuple[int, int], ...]) -> None:
    assert splits_near(machines, frac) == splits


def test_sizes_are_every_one_and_then_fewer() -> None:
    assert pool_sizes(1) == ()
    assert pool_sizes(5) == (2, 3, 4, 5)
    assert pool_sizes(20) == (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20)


def test_a_split_is_written_with_a_colon() -> None:
    assert parse_split("3:1") == (3, 1)
    assert parse_split("auto") is None
    for wrong in ("3", "3:0", "a:b", ""):
        with pytest.raises(InputError, match="3:1"):
            parse_split(wrong)
    with pytest.raises(InputError):
        Pools(prefill=0, decode=1)


def run(**fields: Any) -> PlanResult:
    request = plan_request(**{"gpus": (GpuLimit(accelerator=FAST, max_gpus=4),), "tp": (1,), **fields})
    return search(request, SearchOptions(parts=FakeParts(request), num_workers=1))


@pytest.mark.parametrize("split", [(1, 1), (2, 1), (1, 3)])
def test_the_bound_is_never_below_what_a_simulation_finds(split: tuple[int, int]) -> None:
    request = plan_request(pool_engine="distserve")
    context = Context(request, FakeParts(request))
    one = screen_one(context, config(Pools(prefill=split[0], decode=split[1])))
    assert isinstance(one.estimator, PoolEstimator)
    evaluator = Evaluator(context)
    job = Job(config=one.config, effort=COARSE, guess=one.estimate.predicted_per_s, replicas=(1,))
    found = evaluator.run(job).capacity.max_load
    assert 0.5 * one.estimate.bound_per_s < found < 1.1 * one.estimate.bound_per_s


def test_the_balance_makes_both_pools_equally_busy() -> None:
    request = plan_request()
    one = screen_one(Context(request, FakeParts(request)), config(None))
    frac = balanced_prefill_frac(one.estimator)
    assert 0.0 < frac < 1.0
    estimator = one.estimator
    prefill = PoolEstimator(estimator.model, estimator.means, estimator.limits, Pools(prefill=1, decode=10**6),
                            _no_link()).estimate()  # fmt: skip
    decode = PoolEstimator(estimator.model, estimator.means, estimator.limits, Pools(prefill=10**6, decode=1),
                           _no_link()).estimate()  # fmt: skip
    assert frac * prefill.bound_per_s == pytest.approx((1.0 - frac) * decode.bound_per_s, rel=1e-6)
    assert prefill.limited_by == "prefill pool"
    assert decode.limited_by != "prefill pool"


def _no_link() -> Any:
    from plimsoll.planner.pool_estimate import LinkCost

    return LinkCost(s_per_token=0.0, latency_s=0.0)


@pytest.fixture(scope="module")
def with_pools() -> PlanResult:
    return run(pool_engine="distserve")


def test_a_plan_with_pools_accounts_for_everybody_and_names_the_split(with_pools: PlanResult) -> None:
    result = with_pools
    pooled = [plan for name in LISTS for plan in getattr(result, name) if plan.pools is not None]
    assert pooled, "nowhere in the lists"
    for plan in pooled:
        assert plan.pools is not None
        assert plan.deployment.num_gpus == plan.deployment.replicas == plan.pools.num_machines
        assert plan.pools.text in plan.arithmetic
        assert plan.usd_per_hour == 4.0 * plan.pools.num_machines
        assert plan.metrics.e2e_s.mean is not None
    named = {plan.arithmetic + str(plan.deployment.settings.max_num_batched_tokens) for name in LISTS
             for plan in getattr(result, name)}  # fmt: skip
    assert len(named) + sum(rejection.num_candidates for rejection in result.rejected) == result.num_candidates
    without = run()
    assert result.num_candidates > without.num_candidates
    assert not any(plan.pools for name in LISTS for plan in getattr(without, name))


def test_splits_of_one_cut_compete_for_one_place(with_pools: PlanResult) -> None:
    splits = [plan for plan in with_pools.top_cost if plan.pools is not None]
    assert len(splits) <= 1


def test_a_given_split_is_the_only_one() -> None:
    request = plan_request(pool_engine="splitwise", split=(2, 1), gpus=(GpuLimit(accelerator=FAST, max_gpus=4),))
    context = Context(request, FakeParts(request))
    found = pool_configs(context, [screen_one(context, config(None))])
    assert [one.pools for one in found] == [Pools(prefill=2, decode=1, engine="splitwise")]
    wide = dataclasses.replace(request, split=(5, 1))
    assert pool_configs(Context(wide, FakeParts(wide)), [screen_one(context, config(None))]) == []


def test_pools_carry_a_rate_that_is_asked_for() -> None:
    result = run(pool_engine="distserve", rate_per_s=20.0)
    pooled = [plan for name in LISTS for plan in getattr(result, name) if plan.pools is not None]
    for plan in pooled:
        assert plan.capacity >= 20.0
        assert plan.verdict.passed
        assert plan.judged_load == 20.0


def test_unknown_engines_and_spares_are_refused() -> None:
    assert set(list_pool_engines()) >= {"distserve", "splitwise"}
    with pytest.raises(UnknownNameError, match="distserve"):
        plan_request(pool_engine="distsrve")
    with pytest.raises(InputError, match="--spare"):
        plan_request(pool_engine="distserve", spare_replicas=1)
