"""Prefix caches in prefill and decode pools against naive ones, whose blocks have numbers: the same bits."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.pools.machine_cache import MachineCache
from plimsoll.engine.prefix.prefix_pool import PrefixPool
from tests.oracle.naive_pools import Box, naive_pools
from tests.oracle.naive_pools_cached import CachingDistserve, naive_cached_pools
from tests.oracle.naive_vllm import Request
from tests.property.test_engine_cluster_oracle import assert_same
from tests.property.test_engine_pools_oracle import (
    ENGINES,
    MODELS,
    config_of,
    options_of,
    overload_case,
    steady_case,
    tied_case,
)
from tests.property.test_engine_prefix_oracle import content
from tests.single_steps import Silent
from validation.schedules import OneSecond

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
MAKERS = (overload_case, tied_case, steady_case)
Case = tuple[Workload, EngineConfig, Any, float | None]


class Watched(CachingDistserve):
    """One that writes down the blocks in use on decode instances at each end of a step, by machine and time."""

    def __init__(self, workload: Workload, config: EngineConfig, model: Any) -> None:
        super().__init__(workload, config, model)
        self.used_at: dict[tuple[int, float], int] = {}

    def end(self, box: Box, now_s: float) -> list[Request]:
        finished = super().end(box, now_s)
        if box.pool == "decode":
            self.used_at[box.number, now_s] = self.config.num_blocks - self.free(box)
        return finished


def with_content(case: Case, seed: int) -> Case:
    """The same requests with prompts that share beginnings, and caches of all kinds."""
    workload, config, model, cut_s = case
    rng = np.random.default_rng([seed, 90])
    prompt = workload.prompt_tokens
    if rng.random() < 0.4:
        prompt = np.maximum(prompt // config.block_size, 1) * config.block_size  # so that whole prompts are known
    if rng.random() < 0.3:
        prompt = ints(rng.choice(prompt[:5], len(prompt)))
    id_tokens = int(config.block_size * rng.choice([1, 2]))
    ids, offsets = content(rng, prompt, id_tokens)
    workload = dataclasses.replace(
        workload,
        prompt_tokens=ints(prompt),
        block_tokens=id_tokens,
        prompt_block_ids=ints(ids),
        prompt_block_offsets=ints(offsets),
    )
    options = {"decode_prefix_cache": bool(rng.random() < 0.7), "prefix_aware": bool(rng.random() < 0.7)}
    return workload, dataclasses.replace(config, options={**config.options, **options}), model, cut_s


def reuse_case(seed: int, engine: str) -> Case:
    """A few families of prompts that come again and again, memory for some of them, and much at the same instants."""
    rng = np.random.default_rng([seed, 91])
    n, size = int(rng.integers(20, 90)), int(rng.choice([1, 2, 4]))
    families = [list(range(100 * k, 100 * k + int(rng.integers(1, 9)))) for k in range(int(rng.integers(1, 9)))]
    rows, prompt = [], []
    for i in range(n):
        family = families[int(rng.integers(len(families)))]
        row = family[: int(rng.integers(1, len(family) + 1)) if rng.random() < 0.4 else None]
        row = row + [10_000 + 10 * i + k for k in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0)]
        rows.append(row)
        prompt.append(len(row) * size + (int(rng.integers(1, size + 1)) if rng.random() < 0.5 else 0))
    output = rng.choice([1, 2, 3, 3, 8], n)
    if rng.random() < 0.3:
        output = rng.choice([1, 2, 30], n)
    peak = int(-(-(np.array(prompt) + output).max() // size))
    timed = bool(rng.random() < 0.5)
    gap_s = float(rng.choice([0.5, 1.0])) if timed else float(rng.choice([0.001, 0.004, 0.02]))
    gaps = rng.integers(0, 3, n) * gap_s if timed else rng.exponential(gap_s, n)
    closed = bool(rng.random() < 0.2)
    workload = Workload(
        arrival_s=floats(np.zeros(n) if closed else np.cumsum(gaps)),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        concurrency=int(rng.integers(1, 12)) if closed else None,
        block_tokens=size,
        prompt_block_ids=ints([x for row in rows for x in row]),
        prompt_block_offsets=ints(np.cumsum([0, *map(len, rows)])),
    )
    options = options_of(engine, rng, pending=[5, 30, 8192])
    options["transfer_s_per_token"] = float(rng.choice([2.0**-4, 2.0**-2] if timed else [1e-5, 1e-4]))
    options["transfer_latency_s"] = float(rng.choice([0.0, 0.5])) if timed else 1e-3
    options |= {"decode_prefix_cache": bool(rng.random() < 0.8), "prefix_aware": bool(rng.random() < 0.7)}
    if engine == "distserve":
        options["waiting_frac"] = float(rng.choice([0.3, 1.0]))
        options["swap_s_per_token"] = float(rng.choice([0.0, 0.25])) if timed else 1e-5
    config = config_of(
        engine, rng, options, block_size=size, num_blocks=int(peak * rng.choice([1, 1.5, 2, 3, 5])),
        max_num_seqs=int(rng.choice([2, 4, 16])), max_num_batched_tokens=int(rng.choice([8, 16, 64])),
        keep_step_log=bool(rng.random() < 0.2),
    )  # fmt: skip
    cut_s = None if rng.random() < 0.8 else float(rng.integers(3, 60)) * gap_s
    return workload, config, OneSecond() if timed else MODELS[int(rng.integers(0, len(MODELS)))], cut_s


def assert_as_naive(case: Case, where: str) -> Run:
    workload, config, model, cut_s = case
    run = simulate(workload, config, model, duration_s=cut_s)
    expected = naive_cached_pools(workload, config, model, math.inf if cut_s is None else cut_s)
    assert_same(run, expected, f"{where}: {config}", cut=cut_s is not None)
    for i, facts in enumerate(expected):
        if run.status[i] != Status.REJECTED:
            assert run.cached_tokens[i] == facts["cached"], f"{where}: {config} request {i}"
    return run


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_caches_find_what_the_naive_ones_find(engine: str, make: Any) -> None:
    hits = 0
    for seed in range(CASES // 10):
        run = assert_as_naive(with_content(make(seed, engine), seed), f"seed {seed}, {make.__name__}")
        hits += int((run.cached_tokens > 0).sum())
    assert hits > 3 * CASES // 10


@pytest.mark.parametrize("engine", ENGINES)
def test_prompts_that_come_again_find_what_memory_has_kept_of_them(engine: str) -> None:
    seeds = [*range(CASES // 2), 173]  # 173: one accepts twice in the midst of a stretch, which the first takes back
    runs = [assert_as_naive(reuse_case(seed, engine), f"seed {seed}") for seed in seeds]
    assert sum(int((run.cached_tokens > 0).sum()) for run in runs) > 5 * CASES


@pytest.mark.parametrize("engine", ENGINES)
def test_watched_runs_and_cut_runs_are_the_same(engine: str) -> None:
    """Cut at the end of a step, one float sooner and one later; with an observer and without."""
    for seed in range(CASES // 30):
        workload, config, model, _ = reuse_case(seed, engine)
        config = dataclasses.replace(config, keep_step_log=False)
        timeline = simulate(workload, config, model).timeline
        assert timeline is not None
        if not len(timeline.step_end_s):
            continue
        end_s = float(np.random.default_rng([seed, 92]).choice(timeline.step_end_s))
        for cut_s in (math.nextafter(end_s, 0.0), end_s, math.nextafter(end_s, math.inf)):
            where = f"seed {seed}, cut at {cut_s!r}"
            run = assert_as_naive((workload, config, model, cut_s), where)
            assert run.equal(simulate(workload, config, model, duration_s=cut_s, observer=Silent())), where


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_cache_content_changes_nothing(engine: str) -> None:
    for seed in (*range(CASES // 5), 408, 429):  # 408: as 173; 429: an idle one accepts, then one whose step ends
        workload, config, model, cut_s = reuse_case(seed, engine)
        options = {**config.options, "decode_prefix_cache": False, "prefix_cache": False}
        config = dataclasses.replace(config, options=options)
        run = simulate(workload, config, model, duration_s=cut_s)
        bare = dataclasses.replace(workload, block_tokens=None, prompt_block_ids=None, prompt_block_offsets=None)
        assert not run.cached_tokens.any()
        assert run.equal(simulate(bare, config, model, duration_s=cut_s)), f"seed {seed}: {config}"
        expected = naive_pools(bare, config, model, math.inf if cut_s is None else cut_s)
        assert_same(run, expected, f"seed {seed}: {config}", cut=cut_s is not None)


@pytest.mark.interpreted
@pytest.mark.parametrize("engine", ENGINES)
def test_the_cases_reach_what_is_rare(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: collections.Counter[str] = collections.Counter()
    accept, forget, take_back = MachineCache.accept, PrefixPool._forget, MachineCache.take_back

    def accepted(self: MachineCache, request: int, num_blocks: int) -> int:
        tokens = accept(self, request, num_blocks)
        seen["less crosses the link"] += tokens < self.contents._prompt[request]
        return tokens

    def forgotten(self: PrefixPool, run: Any) -> None:
        seen["content forgotten"] += 1
        forget(self, run)

    def came_back(self: MachineCache, request: int, num_blocks: int) -> None:
        seen["back from host memory"] += 1
        take_back(self, request, num_blocks)

    monkeypatch.setattr(MachineCache, "accept", accepted)
    monkeypatch.setattr(PrefixPool, "_forget", forgotten)
    monkeypatch.setattr(MachineCache, "take_back", came_back)
    for seed in range(60):
        workload, config, model, cut_s = reuse_case(seed, engine)
        run = simulate(workload, config, model, duration_s=cut_s)
        times = run.finish_s[np.isfinite(run.finish_s)]
        seen["found"] += int((run.cached_tokens > 0).sum())
        seen["ends at one instant"] += len(times) - len(np.unique(times))
        seen["cut"] += cut_s is not None
        seen["users wait"] += workload.concurrency is not None
    if engine == "splitwise":
        assert not seen.pop("back from host memory", 0), "splitwise sets memory aside, and never swaps"
    assert len(seen) == 6 + (engine == "distserve")
    assert min(seen.values()) >= 10, seen


@pytest.mark.parametrize("engine", ENGINES)
def test_one_prefill_machine_with_memory_for_all_finds_what_one_replica_finds(engine: str) -> None:
    """First come, first served, nothing forgotten: every prompt finds all that it shares with those before it."""
    found = 0
    for seed in range(30):
        workload = reuse_case(seed, engine)[0]
        sizes = {"num_blocks": 100_000, "block_size": workload.block_tokens, "max_num_batched_tokens": 16}
        options = {"prefill": 1, "decode": 2, "transfer_s_per_token": 1e-5}
        if engine == "splitwise":
            options["max_pending_tokens"] = 10**9
        pools = EngineConfig(policy=engine, replicas=3, options=options, **sizes)
        alone = EngineConfig(policy="vllm-v1", **sizes)
        cached = simulate(workload, pools, MODELS[0]).cached_tokens
        if workload.concurrency is None:
            assert cached.tolist() == simulate(workload, alone, MODELS[0]).cached_tokens.tolist(), f"seed {seed}"
            found += int((cached > 0).sum())
    assert found > 300


def test_the_log_counts_a_block_that_several_hold_once() -> None:
    rows = 0
    for seed in range(CASES // 10):
        workload, config, model, _ = reuse_case(seed, "distserve")
        config = dataclasses.replace(config, keep_step_log=True)
        log = simulate(workload, config, model, observer=Silent()).step_log
        naive = Watched(workload, config, model)
        naive.run(math.inf)
        assert log is not None
        listed = zip(*(column.tolist() for column in (log.replica, log.time_s, log.used_blocks)), strict=True)
        first = int(config.options["prefill"])
        found = {(number, end_s): blocks for number, end_s, blocks in listed if number >= first}
        assert found == naive.used_at, f"seed {seed}: {config}"
        rows += len(found)
    assert rows > 10 * CASES
