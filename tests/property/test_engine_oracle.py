"""The fast engine against the naive one: the same steps, evictions and token times, to the last bit.

`PLIMSOLL_ORACLE_CASES=2000 pytest tests/property/test_engine_oracle.py` runs as many random workloads as you like.
"""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from tests.oracle.models import KinkedModel, SkewedModel, maybe_skewed
from tests.oracle.naive_pipeline import naive_pipeline
from tests.oracle.naive_vllm import naive_simulate

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
LAYERS = [((1, None),), ((1, None),), ((3, None), (5, 40)), ((2, 16), (1, 90)), ((1, 33),)]


def random_case(seed: int) -> tuple[Workload, EngineConfig, KinkedModel | SkewedModel, float | None]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    block = int(rng.choice([1, 2, 4, 16, 32]))
    longest = int(rng.choice([12, 60, 300]))
    prompt = rng.integers(1, longest + 1, n)
    output = rng.integers(1, int(rng.choice([2, 30, 120])) + 1, n)
    peak = int(-(-(prompt + output).max() // block))
    num_blocks = max(1, int(peak * rng.choice([0.8, 1.0, 1.3, 2.5, 40.0])))
    budget = int(rng.choice([1, 7, 32, 64, 512]))
    chunked = bool(rng.random() < 0.85)
    max_model_len = int(rng.choice([1 << 20, 1 << 20, longest]))
    if not chunked:
        max_model_len = min(max_model_len, 2 * longest + 130)
        budget = max(budget, max_model_len)
    gaps = rng.exponential(float(rng.choice([1e-3, 2e-2, 0.3])), n)
    closed = bool(rng.random() < 0.3)
    workload = Workload(
        arrival_s=floats(np.zeros(n) if closed or rng.random() < 0.2 else np.cumsum(gaps) - gaps[0]),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        concurrency=int(rng.integers(1, 9)) if closed else None,
        think_s=float(rng.choice([0.0, 0.05])) if closed else 0.0,
    )
    config = EngineConfig(
        num_blocks=num_blocks,
        block_size=block,
        max_num_seqs=int(rng.choice([1, 3, 8, 64])),
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        replicas=int(rng.choice([1, 1, 2, 3])),
        router=str(rng.choice(["round-robin", "least-loaded"])),
        options={
            "enable_chunked_prefill": chunked,
            "long_prefill_token_threshold": int(rng.choice([0, 0, 0, 5, 24])),
            "long_prefill_token_threshold_adaptive": bool(rng.random() < 0.3),
            "reserve_full_isl": bool(rng.random() < 0.7),
            "watermark": float(rng.choice([0.0, 0.0, 0.1])),
        },
    )
    model = KinkedModel(kink=int(rng.choice([13, 200, 5000])), layers=LAYERS[int(rng.integers(len(LAYERS)))])
    duration_s = float(rng.uniform(0.01, 2.0)) if rng.random() < 0.25 else None
    return workload, config, maybe_skewed(model, rng), duration_s


@pytest.mark.parametrize("chunk", range(4))
def test_every_token_time_equals_the_naive_engines(chunk: int) -> None:
    for seed in range(chunk, CASES, 4):
        workload, config, model, duration_s = random_case(seed)
        expected = naive_simulate(workload, config, model, math.inf if duration_s is None else duration_s)
        run = simulate(workload, config, model, duration_s=duration_s)
        where = f"seed {seed}: {config}"
        assert len(run) == len(expected), where
        for i, facts in enumerate(expected):
            if run.status[i] == Status.REJECTED:
                assert not facts["token_times_s"], where
                continue
            assert run.timeline is not None
            assert run.timeline.token_times_s(i).tolist() == facts["token_times_s"], f"{where} request {i}"
            assert run.arrival_s[i] == facts["arrival_s"], where
            assert run.replica[i] == facts["replica"], where
            assert (run.status[i] == Status.FINISHED) == facts["finished"], where
            assert run.output_tokens[i] == len(facts["token_times_s"])
            if duration_s is None:
                assert run.preemptions[i] == facts["preemptions"], where
            assert run.scheduled_s[i] == facts["scheduled_s"] or math.isnan(run.scheduled_s[i])
            if facts["token_times_s"]:
                assert run.first_token_s[i] == facts["token_times_s"][0]
                if facts["finished"]:
                    assert run.finish_s[i] == facts["token_times_s"][-1]


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_pipelined_token_times_equal_the_naive_pipelines(stages: int) -> None:
    preemptions = 0
    for seed in range(CASES // 3):
        workload, config, _, _ = random_case(seed)
        workload = dataclasses.replace(workload, concurrency=None, think_s=0.0)
        config = dataclasses.replace(config, replicas=1)
        kinked, skewed = KinkedModel(kink=200, num_stages=stages), SkewedModel(200, 11, num_stages=stages)
        model = skewed if seed % 3 == 0 else kinked
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for i, facts in enumerate(naive_pipeline(workload, config, model)):
            where = f"seed {seed}, request {i}: {config}"
            assert run.timeline.token_times_s(i).tolist() == facts["token_times_s"], where
            assert run.preemptions[i] == facts["preemptions"], where
        preemptions += int(run.preemptions.sum())
    assert preemptions > 10, "the cases must reach block shortage"


def test_the_cases_cover_the_rare_regimes() -> None:
    """A property test is worth what it reaches: evictions, pauses, cuts and closed loops must all occur."""
    seen = {"preempted": 0, "budget below seats": 0, "closed": 0, "cut": 0, "rejected": 0, "windows": 0}
    for seed in range(120):
        workload, config, model, duration_s = random_case(seed)
        run = simulate(workload, config, model, duration_s=duration_s)
        seen["preempted"] += bool(run.preemptions.sum())
        seen["budget below seats"] += config.max_num_batched_tokens < config.max_num_seqs
        seen["closed"] += workload.concurrency is not None
        seen["cut"] += bool((run.status == Status.UNFINISHED).any())
        seen["rejected"] += bool((run.status == Status.REJECTED).any())
        seen["windows"] += model.attention_layers != ((1, None),)
    assert min(seen.values()) >= 5, seen
