"""Ranks of SGLang's and TensorRT-LLM's in lockstep, against so many naive schedulers on one clock."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from plimsoll.core.columns import floats
from plimsoll.core.errors import InputError
from plimsoll.core.run import Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from tests.oracle.models import KinkedModel, SkewedModel
from tests.oracle.naive_general import NaiveReplica
from tests.oracle.naive_general_ranks import naive_sglang_ranks, naive_trtllm_ranks
from tests.oracle.naive_reuse import NaiveReuseReplica
from tests.property import test_engine_reuse_oracle as trtllm
from tests.property import test_engine_sglang_oracle as sglang

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
Model = KinkedModel | SkewedModel


def sglang_case(seed: int) -> tuple[Workload, EngineConfig, Model]:
    rng = np.random.default_rng([seed, 23])
    make = [sglang.random_case, sglang.crowded_case, sglang.cramped_case][seed % 3]
    workload, config, model, _ = make(seed)
    ranks = int(rng.integers(2, 5))
    options = dict(config.options)
    if int(options["chunked_prefill_size"]) > 0:
        options["chunked_prefill_size"] = int(options["chunked_prefill_size"]) * ranks
    if rng.random() < 0.5:
        options["schedule_conservativeness"] = float(rng.choice([0.5, 2.0, 5.0]))
    blocks = max(config.num_blocks // int(rng.choice([1, 1, 2])), 3)
    arrival_s = workload.arrival_s.copy()
    if rng.random() < 0.5:  # everybody goes idle in between, and the ratios start again
        arrival_s[len(arrival_s) // 2 :] += 100.0
    workload = dataclasses.replace(workload, arrival_s=floats(arrival_s), concurrency=None, think_s=0.0)
    return workload, dataclasses.replace(config, ranks=ranks, num_blocks=blocks, options=options), model


def trtllm_case(seed: int) -> tuple[Workload, EngineConfig, Model]:
    rng = np.random.default_rng([seed, 29])
    workload, config, model, _ = (trtllm.random_case if seed % 2 else trtllm.crowded_case)(seed)
    options = {**config.options, "enable_block_reuse": bool(rng.random() < 0.6)}
    config = dataclasses.replace(
        config, replicas=1, ranks=int(rng.integers(2, 5)), max_num_seqs=int(rng.choice([1, 2, 8, 64])), options=options
    )
    return dataclasses.replace(workload, concurrency=None, think_s=0.0), config, model


@pytest.mark.parametrize("chunk", range(2))
def test_every_token_time_equals_that_of_naive_sglang_servers_on_one_clock(chunk: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk, CASES, 2):
        workload, config, model = sglang_case(seed)
        rows, events = naive_sglang_ranks(workload, config, model)
        seen.update(events)
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for row, expected in enumerate(rows):
            at = f"seed {seed}: {config} request {row}"
            assert (run.status[row] == Status.REJECTED) == (expected is None), at
            if expected is not None:
                assert run.timeline.token_times_s(row).tolist() == expected.times_s, at
                assert run.scheduled_s[row] == expected.scheduled_s, at
                assert run.preemptions[row] == expected.preemptions, at
    wanted = ("prompts beside decodes", "one waits", "one has nothing", "a round without work", "retracted", "mixed")
    assert all(seen[event] >= 5 for event in wanted), seen


@pytest.mark.parametrize("chunk", range(2))
def test_every_token_time_equals_that_of_naive_trtllm_servers_on_one_clock(chunk: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk, CASES, 2):
        workload, config, model = trtllm_case(seed)
        kind = NaiveReuseReplica if config.options["enable_block_reuse"] else NaiveReplica
        facts, events = naive_trtllm_ranks(workload, config, model, kind)
        seen.update(events)
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for row, expected in facts.items():
            at = f"seed {seed}: {config} request {row}"
            assert (run.status[row] == Status.REJECTED) == expected["rejected"], at
            assert run.timeline.token_times_s(row).tolist() == expected["times_s"], at
            assert run.cached_tokens[row] == expected["hit"], at
            assert run.scheduled_s[row] == expected["scheduled_s"] or math.isnan(expected["scheduled_s"]), at
    wanted = ("before all ranks", "one has nothing", "recompute", "found", "chunks", "part")
    assert all(seen[event] >= 5 for event in wanted), seen


@pytest.mark.parametrize("make", [sglang_case, trtllm_case])
def test_who_watches_changes_nothing(make: Callable[[int], tuple[Workload, EngineConfig, Model]]) -> None:
    class Diary:
        def __init__(self) -> None:
            self.ends_s: dict[int, list[float]] = {}

        def scheduled(self, replica: object, plan: object, begin_s: float) -> None:
            pass

        def stepped(self, replica: object, finished: list[int], end_s: float) -> None:
            self.ends_s.setdefault(id(replica), []).append(end_s)

    for seed in range(12):
        workload, config, model = make(seed)
        diary = Diary()
        run = simulate(workload, dataclasses.replace(config, keep_step_log=True), model, observer=diary)  # type: ignore[arg-type]
        alone = simulate(workload, config, model)
        assert np.array_equal(run.finish_s, alone.finish_s, equal_nan=True)
        assert np.array_equal(run.first_token_s, alone.first_token_s, equal_nan=True)
        assert all(times == sorted(times) for times in diary.ends_s.values())
        assert run.step_log is not None
        if len(run.step_log.num_running):
            assert run.step_log.num_running[-1] == run.step_log.num_waiting[-1] == 0


def test_engines_without_ranks_say_so() -> None:
    workload, config, model = trtllm_case(1)
    with pytest.raises(InputError, match="vllm-v1, sglang or trtllm"):
        simulate(workload, dataclasses.replace(config, policy="orca", options={}), model)
