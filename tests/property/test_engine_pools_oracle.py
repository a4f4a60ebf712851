"""Prefill and decode pools against naive ones where it is hard: far too much load, and much at the same instants."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.clusters.splitwise import Splitwise
from plimsoll.engine.plugins import list_plugins
from plimsoll.engine.pools.bridge import Bridge
from plimsoll.engine.pools.decode_instance import DecodeInstance
from plimsoll.engine.pools.prompts_ahead import PromptsAhead
from plimsoll.engine.pools.split_machine import SplitMachine
from tests.oracle.models import KinkedModel, LinedModel, SkewedModel
from tests.oracle.naive_pools import Box, NaiveSplitwise, naive_pools
from tests.oracle.naive_vllm import Request
from tests.property.test_engine_cluster_oracle import assert_same
from tests.single_steps import Silent
from validation.schedules import OneSecond

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
ENGINES = list_plugins("plimsoll.engine.clusters")
MODELS = [KinkedModel(), KinkedModel(layers=((1, None), (3, 25))), SkewedModel(), LinedModel()]


class WatchedSplitwise(NaiveSplitwise):
    """One that writes down the blocks in use at each end of a step, by machine and time."""

    def __init__(self, workload: Workload, config: EngineConfig, model: Any) -> None:
        super().__init__(workload, config, model)
        self.used_at: dict[tuple[int, float], int] = {}

    def results(self, box: Box, now_s: float) -> list[Request]:
        finished = super().results(box, now_s)
        self.used_at[box.number, now_s] = self.used(box)
        return finished


def options_of(engine: str, rng: np.random.Generator, *, pending: list[int]) -> dict[str, Any]:
    if engine == "distserve":
        return {"waiting_frac": float(rng.choice([0.02, 0.05, 0.3, 1.0]))}
    return {
        "mixed": int(rng.integers(0, 3)) if rng.random() < 0.4 else 0,
        "max_pending_tokens": int(rng.choice(pending)),
        "max_preemptions": int(rng.choice([1, 4])),
        "transfer_layers": int(rng.choice([1, 4])),
        "overlap_min_tokens": 4,
    }


def config_of(engine: str, rng: np.random.Generator, options: dict[str, Any], **sizes: Any) -> EngineConfig:
    pools = {"prefill": int(rng.integers(1, 5)), "decode": int(rng.integers(1, 5))}
    total = pools["prefill"] + pools["decode"] + options.get("mixed", 0)
    return EngineConfig(policy=engine, replicas=total, options={**pools, **options}, **sizes)


def overload_case(seed: int, engine: str) -> tuple[Workload, EngineConfig, Any, float | None]:
    """More requests than can be served, memory for a few: backlogs at the bridge, swaps, prompts without room."""
    rng = np.random.default_rng([seed, 77])
    n, gap_s = int(rng.integers(40, 130)), float(rng.choice([0.0005, 0.002, 0.004, 0.01]))
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(gap_s, n))),
        prompt_tokens=ints(rng.integers(1, int(rng.choice([20, 100, 300])) + 1, n)),
        output_tokens=ints(rng.integers(1, int(rng.choice([10, 60])) + 1, n)),
    )
    if rng.random() < 0.25:
        users, think_s = int(rng.integers(1, 40)), float(rng.choice([0.0, 0.01]))
        workload = dataclasses.replace(workload, concurrency=users, think_s=think_s, arrival_s=floats(np.zeros(n)))
    options = options_of(engine, rng, pending=[10, 200, 8192])
    options["transfer_s_per_token"] = float(rng.choice([1e-6, 1e-5, 1e-4]))
    options["transfer_latency_s"] = float(rng.choice([0.0, 2e-3]))
    if engine == "distserve":
        options["swap_s_per_token"] = float(rng.choice([0.0, 1e-5]))
    size, num_blocks = ((4, [100, 200, 400]), (16, [45, 70, 120]))[int(rng.integers(0, 2))]
    config = config_of(
        engine, rng, options, block_size=size, num_blocks=int(rng.choice(num_blocks)),
        max_num_seqs=int(rng.choice([4, 16, 64])), max_num_batched_tokens=int(rng.choice([64, 128, 512])),
        keep_step_log=bool(rng.random() < 0.3),
    )  # fmt: skip
    cut_s = None if rng.random() < 0.7 else float(rng.uniform(0, n * gap_s * 2))
    return workload, config, MODELS[int(rng.integers(0, len(MODELS)))], cut_s


def tied_case(seed: int, engine: str) -> tuple[Workload, EngineConfig, Any, float | None]:
    """Steps of a second, arrivals each half second, transfers of simple fractions: many things at the same instant."""
    rng = np.random.default_rng([seed, 78])
    n = int(rng.integers(5, 60))
    workload = Workload(
        arrival_s=floats(np.sort(rng.integers(0, int(rng.choice([3, 20, 60])), n) / 2)),
        prompt_tokens=ints(rng.integers(1, int(rng.choice([4, 16, 40])) + 1, n)),
        output_tokens=ints(rng.integers(1, int(rng.choice([3, 12])) + 1, n)),
    )
    if rng.random() < 0.3:
        users, think_s = int(rng.integers(1, 12)), float(rng.choice([0.0, 0.5]))
        workload = dataclasses.replace(workload, concurrency=users, think_s=think_s, arrival_s=floats(np.zeros(n)))
    options = options_of(engine, rng, pending=[5, 30, 8192])
    options["transfer_s_per_token"] = float(rng.choice([2.0**-4, 2.0**-2, 0.5]))
    options["transfer_latency_s"] = float(rng.choice([0.0, 0.5, 1.0]))
    if engine == "distserve":
        options["swap_s_per_token"] = float(rng.choice([0.0, 0.25]))
    config = config_of(
        engine, rng, options, block_size=4, num_blocks=int(rng.choice([14, 20, 60])),
        max_num_seqs=int(rng.choice([2, 4, 16])), max_num_batched_tokens=int(rng.choice([8, 16, 64])),
    )  # fmt: skip
    cut_s = None if rng.random() < 0.7 else float(rng.integers(3, 60)) / 2 + (seed % 2) / 10
    return workload, config, OneSecond(), cut_s


def steady_case(seed: int, engine: str) -> tuple[Workload, EngineConfig, Any, float | None]:
    """Ample memory, and machines that decode all the time: what a benchmark does."""
    rng = np.random.default_rng([seed, 79])
    n = int(rng.integers(30, 90))
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(float(rng.choice([0.01, 0.03])), n))),
        prompt_tokens=ints(rng.integers(1, 200, n)),
        output_tokens=ints(rng.integers(1, int(rng.choice([10, 40])) + 1, n)),
    )
    options = options_of(engine, rng, pending=[8192]) | {"transfer_s_per_token": 1e-5, "transfer_latency_s": 2e-3}
    pools = {"prefill": int(rng.integers(1, 3)), "decode": int(rng.integers(1, 3)), "mixed": 0}
    if engine == "distserve":
        pools.pop("mixed")
        options["waiting_frac"] = 0.3
    config = EngineConfig(
        policy=engine, options={**options, **pools}, replicas=pools["prefill"] + pools["decode"], num_blocks=2000,
        block_size=16, max_num_seqs=64, max_num_batched_tokens=128,
    )  # fmt: skip
    return workload, config, MODELS[int(rng.integers(0, len(MODELS)))], None


def assert_as_naive(case: tuple[Workload, EngineConfig, Any, float | None], where: str) -> int:
    workload, config, model, cut_s = case
    run = simulate(workload, config, model, duration_s=cut_s)
    expected = naive_pools(workload, config, model, math.inf if cut_s is None else cut_s)
    assert_same(run, expected, f"{where}: {config}", cut=cut_s is not None)
    return int(run.preemptions.sum())


@pytest.mark.parametrize("engine", ENGINES)
def test_far_too_much_load_is_served_as_by_the_naive_ones(engine: str) -> None:
    preemptions = sum(assert_as_naive(overload_case(seed, engine), f"seed {seed}") for seed in range(CASES // 5))
    assert (preemptions > CASES // 30) == (engine == "distserve"), "splitwise sets memory aside, and never swaps"


@pytest.mark.parametrize("engine", ENGINES)
def test_machines_that_decode_all_the_time_do_so_as_the_naive_ones(engine: str) -> None:
    for seed in range(CASES // 5):
        assert_as_naive(steady_case(seed, engine), f"seed {seed}")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_happens_at_the_same_instant_happens_in_the_same_order(engine: str) -> None:
    for seed in range(CASES):
        assert_as_naive(tied_case(seed, engine), f"seed {seed}")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_is_cut_at_the_end_of_a_step_has_its_tokens(engine: str) -> None:
    """Cut just there, one float sooner and one later: steps that begin before count, up to tokens that come then."""
    seen: collections.Counter[str] = collections.Counter()
    for seed in range(CASES // 15):
        for make in (overload_case, tied_case, steady_case):
            workload, config, model, _ = make(seed, engine)
            config = dataclasses.replace(config, keep_step_log=False)
            timeline = simulate(workload, config, model).timeline
            assert timeline is not None
            end_s = float(np.random.default_rng([seed, 80]).choice(timeline.step_end_s))
            for cut_s in (math.nextafter(end_s, 0.0), end_s, math.nextafter(end_s, math.inf)):
                where = f"seed {seed}, {make.__name__}, cut at {cut_s!r}"
                assert_as_naive((workload, config, model, cut_s), where)
                run = simulate(workload, config, model, duration_s=cut_s)
                assert run.equal(simulate(workload, config, model, duration_s=cut_s, observer=Silent())), where
                if cut_s == end_s:
                    seen["first tokens"] += int((run.first_token_s == cut_s).sum())
                    seen["last tokens"] += int((run.finish_s == cut_s).sum())
    assert min(seen["first tokens"], seen["last tokens"]) > CASES // 30, seen


def test_the_log_of_splitwise_says_whose_memory_is_set_aside() -> None:
    """At each end of a step, after its results, and before KV that leaves at that instant has left."""
    rows = 0
    for seed in range(CASES // 15):
        for make in (overload_case, tied_case, steady_case):
            workload, config, model, _ = make(seed, "splitwise")
            config = dataclasses.replace(config, keep_step_log=True)
            log = simulate(workload, config, model, observer=Silent()).step_log
            naive = WatchedSplitwise(workload, config, model)
            naive.run(math.inf)
            assert log is not None
            columns = (log.replica, log.time_s, log.used_blocks)
            listed = zip(*(column.tolist() for column in columns), strict=True)
            found = {(number, end_s): blocks for number, end_s, blocks in listed}
            assert found == naive.used_at, f"seed {seed}, {make.__name__}: {config}"
            rows += len(found)
    assert rows > 50 * CASES


@pytest.mark.interpreted
def test_the_cases_take_every_way_through_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told at once, what needs the clock, prompts ahead, machines left behind: all of it occurs often."""
    seen: collections.Counter[str] = collections.Counter()

    def watch(owner: type, name: str, words: str, *, of: Any = None) -> None:
        original = getattr(owner, name)

        def call(*given: Any) -> Any:
            result = original(*given)
            seen[words] += result == of if of is not None else 1
            return result

        monkeypatch.setattr(owner, name, call)

    watch(Bridge, "_hand_over", "told at once", of=True)
    watch(Bridge, "_hand_over", "not told at once", of=False)
    watch(Bridge, "_hand_to_last", "at the end of a stretch", of=True)
    watch(Bridge, "_ask_all", "all asked")
    watch(DecodeInstance, "_swap_in", "swapped in")
    watch(DecodeInstance, "cut", "taken back")
    watch(PromptsAhead, "run", "prompts ahead")
    watch(SplitMachine, "is_stuck_behind", "one more that cannot begin", of=True)
    watch(SplitMachine, "_choose_decodes", "left out")
    watch(Splitwise, "_find", "everybody asked")
    watch(Splitwise, "_find_behind", "nobody asked")
    for seed in range(40):
        for engine in ENGINES:
            for make in (steady_case, overload_case, tied_case):
                workload, config, model, cut_s = make(seed, engine)
                simulate(workload, config, model, duration_s=cut_s)
    assert len(seen) == 11
    assert min(seen.values()) >= 20, seen
