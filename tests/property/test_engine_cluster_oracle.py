"""Clusters against naive ones, to the last bit: routers, mixed hardware, ranks in lockstep, disaggregated pools."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import ints
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.plugins import list_plugins
from tests.oracle.models import KinkedModel, SkewedModel
from tests.oracle.naive_cluster import naive_cluster
from tests.oracle.naive_pools import Box, NaiveDistserve, NaiveSplitwise, Request, naive_pools
from tests.property.test_engine_oracle import random_case

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
OPTIONS = {"prefix-aware": ["", ",max_lead=2,max_ratio=1.1", ",min_match=0.0", ",min_match=0.9"]}


def with_columns(workload: Workload, rng: np.random.Generator) -> Workload:
    """Sessions, expectations and content, where the dice say so."""
    n = len(workload)
    changes: dict[str, Any] = {}
    if rng.random() < 0.7:
        changes["session"] = ints(rng.integers(0, max(1, n // 3), n))
    if rng.random() < 0.4:
        changes["max_output_tokens"] = workload.output_tokens + ints(rng.integers(0, 40, n))
    if rng.random() < 0.3:
        changes["predicted_output_tokens"] = ints(rng.integers(1, 100, n))
    if rng.random() < 0.7:
        block = int(rng.choice([4, 16]))
        rows, ids = [], {}
        for prompt in workload.prompt_tokens.tolist():
            group, chain = int(rng.integers(0, 4)), []
            for depth in range(prompt // block):
                unique = rng.random() < 0.1
                group = 100 + len(ids) if unique else group
                chain.append(ids.setdefault((group, depth), len(ids)))
            rows.append(chain)
        changes["block_tokens"] = block
        changes["prompt_block_ids"] = ints([x for chain in rows for x in chain])
        changes["prompt_block_offsets"] = ints(np.concatenate([[0], np.cumsum([len(chain) for chain in rows])]))
    return dataclasses.replace(workload, **changes)


def assert_same(run: Run, expected: list[dict[str, Any]], where: str, *, cut: bool) -> None:
    assert len(run) == len(expected), where
    assert run.timeline is not None
    for i, facts in enumerate(expected):
        at = f"{where} request {i}"
        if run.status[i] == Status.REJECTED:
            assert not facts["token_times_s"], at
            continue
        assert run.timeline.token_times_s(i).tolist() == facts["token_times_s"], at
        assert run.replica[i] == facts["replica"], at
        assert run.arrival_s[i] == facts["arrival_s"], at
        assert (run.status[i] == Status.FINISHED) == facts["finished"], at
        assert run.scheduled_s[i] == facts["scheduled_s"] or math.isnan(run.scheduled_s[i]), at
        if facts["token_times_s"]:
            assert run.first_token_s[i] == facts["token_times_s"][0], at
        if not cut:
            assert run.preemptions[i] == facts["preemptions"], at


def router_of(rng: np.random.Generator) -> str:
    name = str(rng.choice(list_plugins("plimsoll.engine.routers")))
    return name + str(rng.choice(OPTIONS.get(name, [""])))


@pytest.mark.parametrize("chunk", range(4))
def test_every_router_sees_and_chooses_as_the_naive_one(chunk: int) -> None:
    for seed in range(chunk, CASES, 4):
        workload, config, model, duration_s = random_case(seed)
        rng = np.random.default_rng([seed, 7])
        workload = with_columns(workload, rng)
        config = dataclasses.replace(config, replicas=int(rng.integers(1, 6)), router=router_of(rng))
        options = {**config.options, "enable_prefix_caching": False}  # the router's guess is tested, not the cache
        config = dataclasses.replace(config, keep_step_log=bool(rng.random() < 0.5), options=options)
        expected = naive_cluster(
            workload, config, model, seed=seed, duration_s=math.inf if duration_s is None else duration_s
        )
        run = simulate(workload, config, model, duration_s=duration_s, seed=seed)
        assert_same(run, expected, f"seed {seed}: {config}", cut=duration_s is not None)


def test_replicas_of_different_kinds_behave_each_as_its_own() -> None:
    for seed in range(CASES // 4):
        workload, config, model, _ = random_case(seed)
        rng = np.random.default_rng([seed, 8])
        config = dataclasses.replace(config, router=router_of(rng))
        members = []
        for _ in range(int(rng.integers(1, 4))):
            kind = dataclasses.replace(
                config,
                replicas=int(rng.integers(1, 3)),
                max_num_seqs=int(rng.choice([1, 4, 16])),
                num_blocks=int(config.num_blocks * rng.choice([1, 2])),
                block_size=int(config.block_size * rng.choice([1, 2])),
            )
            members.append((kind, KinkedModel(kink=int(rng.choice([50, 3000])), layers=model.attention_layers)))
        expected = naive_cluster(workload, config, model, seed=seed, members=members)
        run = simulate(workload, config, model, seed=seed, members=members)
        assert_same(run, expected, f"seed {seed}: {config}", cut=False)


def test_ranks_in_lockstep_wait_for_the_slowest() -> None:
    preempted = 0
    for seed in range(CASES // 2):
        workload, config, model, duration_s = random_case(seed)
        rng = np.random.default_rng([seed, 9])
        config = dataclasses.replace(
            config, ranks=int(rng.integers(2, 5)), replicas=int(rng.integers(1, 3)), router=router_of(rng)
        )
        expected = naive_cluster(
            workload, config, model, seed=seed, duration_s=math.inf if duration_s is None else duration_s
        )
        run = simulate(workload, config, model, seed=seed, duration_s=duration_s)
        assert_same(run, expected, f"seed {seed}: {config}", cut=duration_s is not None)
        preempted += int(run.preemptions.sum())
    assert preempted > 5


class Odd(KinkedModel):
    """Steps get shorter the more they hold: nothing that a router is told in advance may depend on the contrary."""

    def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
        base_s, per_token_s, below = super().decode_line(num_decode, read)
        return base_s / max(num_decode, 1), per_token_s, below


@pytest.mark.parametrize("router", ["least-loaded", "power-of-two", "least-pending-tokens"])
def test_routers_see_right_where_bigger_batches_are_faster(router: str) -> None:
    for seed in range(min(CASES, 300) // 4):
        workload, config, _, _ = random_case(seed)
        config = dataclasses.replace(config, replicas=3, router=router)
        model = Odd()
        expected = naive_cluster(workload, config, model, seed=seed)
        assert_same(simulate(workload, config, model, seed=seed), expected, f"seed {seed}: {config}", cut=False)


def test_the_naive_cluster_knows_every_router() -> None:
    """Every file of the folder is drawn by the cases above, and none of them is the fall-back by mistake."""
    rng = np.random.default_rng(3)
    workload = dataclasses.replace(random_case(8)[0], concurrency=None, think_s=0.0)
    config = EngineConfig(num_blocks=4000, block_size=16, max_num_seqs=4, replicas=4)
    seen = {router_of(rng).split(",")[0] for _ in range(200)}
    assert seen == set(list_plugins("plimsoll.engine.routers"))
    choices = {
        name: tuple(simulate(workload, dataclasses.replace(config, router=name), KinkedModel()).replica.tolist())
        for name in ("random", "power-of-two", "round-robin", "least-loaded", "least-pending-tokens")
    }
    assert len(set(choices.values())) == len(choices)


def pools_case(seed: int, engine: str) -> tuple[Workload, EngineConfig, KinkedModel | SkewedModel, float | None]:
    """A random case with pools; memory from tight to ample, links from quick to hopeless."""
    workload, config, model, duration_s = random_case(seed)
    rng = np.random.default_rng([seed, 11])
    n = len(workload)
    pools = {"prefill": int(rng.integers(1, 4)), "decode": int(rng.integers(1, 4))}
    options: dict[str, Any] = {
        "transfer_s_per_token": float(rng.choice([1e-6, 1e-4, 3e-3])),
        "transfer_latency_s": float(rng.choice([0.0, 5e-3])),
    }
    if engine == "splitwise":
        pools["mixed"] = int(rng.integers(0, 3))
        options["transfer_layers"] = int(rng.choice([1, 4, 32]))
        options["overlap_min_tokens"] = int(rng.choice([1, 50]))
        options["max_pending_tokens"] = int(rng.choice([10, 200, 8192]))
        options["max_preemptions"] = int(rng.choice([1, 4]))
        if rng.random() < 0.4:
            workload = dataclasses.replace(
                workload, max_output_tokens=workload.output_tokens + ints(rng.integers(0, 40, n))
            )
    else:
        options["swap_s_per_token"] = float(rng.choice([0.0, 1e-5]))
        options["waiting_frac"] = float(rng.choice([0.05, 0.5]))
    config = dataclasses.replace(
        config, policy=engine, options={**pools, **options}, replicas=sum(pools.values()), router="round-robin",
        keep_step_log=bool(rng.random() < 0.5),
    )  # fmt: skip
    return workload, config, model, duration_s


@pytest.mark.parametrize("engine", list_plugins("plimsoll.engine.clusters"))
@pytest.mark.parametrize("chunk", range(2))
def test_pools_hand_over_as_the_naive_ones(engine: str, chunk: int) -> None:
    for seed in range(chunk, CASES, 2):
        workload, config, model, duration_s = pools_case(seed, engine)
        expected = naive_pools(workload, config, model, math.inf if duration_s is None else duration_s)
        run = simulate(workload, config, model, duration_s=duration_s)
        assert_same(run, expected, f"seed {seed}: {config}", cut=duration_s is not None)


def test_the_pool_cases_cover_the_rare_regimes() -> None:
    """Waiting at the bridge, swapping, machines that change pools, both phases in one place, decodes left out."""
    seen: collections.Counter[str] = collections.Counter()

    class Splitwise(NaiveSplitwise):
        def arrive(self, request: Request) -> None:
            pools = [box.pool for box in self.boxes]
            super().arrive(request)
            seen["changed pools"] += pools != [box.pool for box in self.boxes]
            seen["both phases in one place"] += self.then[request.number].number == request.replica
            seen["no room at the arrival"] += request.number not in self.aside[request.replica]

        def launch(self, box: Box, now_s: float) -> None:
            super().launch(box, now_s)
            seen["left out"] += bool(box.blocked)
            seen["mixed steps"] += box.busy_until_s is not None and bool(box.prompts and box.decodes)

    class Distserve(NaiveDistserve):
        def launch(self, box: Box, now_s: float) -> None:
            super().launch(box, now_s)
            seen["waited at the bridge"] += bool(self.bridge)
            seen["swapped"] += bool(box.swapped)
            seen["swapped while others wait"] += bool(box.swapped and box.here)

    for seed in range(60):
        for engine, kind in (("splitwise", Splitwise), ("distserve", Distserve)):
            workload, config, model, _ = pools_case(seed, engine)
            kind(workload, config, model).run(math.inf)
    assert len(seen) == 8
    assert min(seen.values()) >= 20, seen
