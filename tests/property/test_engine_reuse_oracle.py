"""TensorRT-LLM's block reuse against single blocks with real tokens, to the last bit of every token time.

`PLIMSOLL_ORACLE_CASES=2000 pytest tests/property/test_engine_reuse_oracle.py` runs as many workloads as you like.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from tests.oracle.models import KinkedModel, SkewedModel, maybe_skewed
from tests.oracle.naive_general import naive_general
from tests.oracle.naive_general_pipeline import naive_general_pipeline
from tests.oracle.naive_reuse import NaiveReusePipeline, NaiveReuseReplica
from tests.property.test_engine_prefix_oracle import content, crowded

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
LAYERS = [((1, None),), ((1, None),), ((1, None),), ((3, None), (5, 40))]
Case = tuple[Workload, EngineConfig, KinkedModel | SkewedModel, float | None]


def random_case(seed: int) -> Case:
    rng = np.random.default_rng([seed, 3])
    block = int(rng.choice([1, 2, 4, 4, 16]))
    n = int(rng.integers(1, 26))
    prompt = rng.integers(1, int(rng.choice([12, 60, 110])) + 1, n)
    if rng.random() < 0.5:  # whole blocks, so that the last one is found but for a token
        prompt = np.maximum(prompt // (2 * block), 1) * 2 * block
    if rng.random() < 0.4:
        prompt = rng.choice(prompt[:4], n)
    output = rng.integers(1, int(rng.choice([2, 20, 60])) + 1, n)
    gaps = rng.exponential(float(rng.choice([1e-3, 2e-2, 0.1])), n)
    closed = bool(rng.random() < 0.25)
    workload = Workload(
        arrival_s=floats(np.zeros(n) if closed or rng.random() < 0.2 else np.cumsum(gaps) - gaps[0]),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        max_output_tokens=ints(output + rng.integers(0, 40, n)) if rng.random() < 0.3 else None,
        concurrency=int(rng.integers(1, 9)) if closed else None,
        think_s=float(rng.choice([0.0, 0.05])) if closed else 0.0,
    )
    own = rng.random() < 0.2
    if not own:
        id_tokens = int(block * rng.choice([1, 2, 4]) if rng.random() < 0.7 or block < 4 else block // 2)
        ids, offsets = content(rng, prompt, id_tokens)
        workload = dataclasses.replace(
            workload, block_tokens=id_tokens, prompt_block_ids=ints(ids), prompt_block_offsets=ints(offsets)
        )
    longest = prompt + output
    config = EngineConfig(
        num_blocks=max(2, int((longest.max() // block + 2) * rng.choice([0.8, 1.0, 1.2, 1.5, 2.5, 6.0]))),
        block_size=block,
        max_num_seqs=int(rng.choice([1, 3, 8, 64])),
        max_num_batched_tokens=int(rng.choice([8, 32, 64, 512])),
        max_model_len=int(rng.choice([1 << 20, 1 << 20, int(np.median(longest)) + 1])),
        replicas=1 if closed else int(rng.choice([1, 1, 2])),
        policy="trtllm",
        options={
            "capacity_scheduler_policy": str(rng.choice(["guaranteed-no-evict", "max-utilization"])),
            "enable_chunked_context": bool(rng.random() < 0.6),
            "enable_partial_reuse": bool(rng.random() < 0.7),
            "cache_own_blocks": own,
        },
    )
    model = KinkedModel(kink=int(rng.choice([13, 200, 5000])), layers=LAYERS[int(rng.integers(len(LAYERS)))])
    duration_s = float(rng.uniform(0.01, 1.0)) if rng.random() < 0.2 else None
    return workload, config, maybe_skewed(model, rng), duration_s


def crowded_case(seed: int) -> Case:
    """Pauses, and blocks that are forgotten."""
    rng = np.random.default_rng([seed, 7])
    _, config, model, duration_s = random_case(seed)
    prompt = rng.integers(1, 60, int(rng.integers(8, 30)))
    if rng.random() < 0.5:
        prompt = np.maximum(prompt // config.block_size, 1) * config.block_size
    workload, config = crowded(rng, config, prompt)
    options = {"capacity_scheduler_policy": "max-utilization", "cache_own_blocks": False}
    config = dataclasses.replace(config, options={**config.options, **options})
    return workload, config, model, duration_s


@pytest.mark.parametrize("make", [random_case, crowded_case])
def test_every_token_time_equals_single_blocks(make: Callable[[int], Case]) -> None:
    finished = 0
    for seed in range(CASES):
        workload, config, model, duration_s = make(seed)
        where = f"seed {seed}: {config}"
        run = simulate(workload, config, model, duration_s=duration_s)
        cut_s = math.inf if duration_s is None else duration_s
        facts, _ = naive_general(workload, config, model, cut_s, NaiveReuseReplica)
        assert run.timeline is not None
        assert len(run) == len(facts), where
        for row, (i, expected) in enumerate(facts.items()):
            at = f"{where} request {i}"
            assert (run.status[row] == Status.REJECTED) == expected["rejected"], at
            assert run.timeline.token_times_s(row).tolist() == expected["times_s"], at
            assert run.cached_tokens[row] == expected["hit"], at
            assert (run.status[row] == Status.FINISHED) == expected["finished"], at
            assert run.scheduled_s[row] == expected["scheduled_s"] or math.isnan(expected["scheduled_s"]), at
            finished += expected["finished"]
    assert finished > CASES


@pytest.mark.parametrize("make", [random_case, crowded_case])
def test_every_token_time_with_stages_equals_single_blocks(make: Callable[[int], Case]) -> None:
    found = evicted = 0
    for seed in range(CASES // 2):
        workload, config, model, _ = make(seed)
        model.num_stages = 2 + seed % 3
        workload, config = (
            dataclasses.replace(workload, concurrency=None, think_s=0.0),
            dataclasses.replace(config, replicas=1),
        )
        where = f"seed {seed}, {model.num_stages} stages: {config}"
        facts = naive_general_pipeline(workload, config, model, NaiveReusePipeline)
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for row, expected in facts.items():
            at = f"{where} request {row}"
            assert run.timeline.token_times_s(row).tolist() == expected["times_s"], at
            assert run.cached_tokens[row] == expected["hit"], at
            assert (run.status[row] == Status.REJECTED) == expected["rejected"], at
            found += expected["hit"] > 0
        evicted += int(run.preemptions.sum())
    assert found > CASES // 2
    assert make is random_case or evicted > CASES // 4


def test_the_cases_reach_the_rare_regimes() -> None:
    seen: Counter[str] = Counter()
    for seed in range(120):
        for make in (random_case, crowded_case):
            workload, config, model, _ = make(seed)
            seen.update(naive_general(workload, config, model, kind=NaiveReuseReplica)[1])
    wanted = (
        "found", "found again", "shared", "partial", "forgotten", "computed twice", "overtaken", "recompute", "part",
        "chunks",
    )  # fmt: skip
    assert all(seen[regime] >= 5 for regime in wanted), seen
