"""SGLang's scheduler and radix cache against the naive ones, to the last bit of every token time.

`PLIMSOLL_ORACLE_CASES=2000 pytest tests/property/test_engine_sglang_oracle.py` runs as many workloads as you like.
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
from tests.oracle.naive_sglang_pipeline import naive_sglang
from tests.property.test_engine_prefix_oracle import content, crowded

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
LAYERS = [((1, None),), ((1, None),), ((1, None),), ((3, None), (5, 40))]
Case = tuple[Workload, EngineConfig, KinkedModel | SkewedModel, float | None]


def random_workload(rng: np.random.Generator, page: int) -> Workload:
    n = int(rng.integers(1, 26))
    longest = int(rng.choice([12, 60, 110]))
    prompt = rng.integers(1, longest + 1, n)
    if rng.random() < 0.4:  # whole pages, so that whole prompts are cached
        prompt = np.maximum(prompt // (2 * page), 1) * 2 * page
    if rng.random() < 0.3:
        prompt = rng.choice(prompt[:4], n)
    output = rng.integers(1, int(rng.choice([2, 20, 60])) + 1, n)
    gaps = rng.exponential(float(rng.choice([1e-3, 2e-2, 0.1])), n)
    closed = bool(rng.random() < 0.25)
    workload = Workload(
        arrival_s=floats(np.zeros(n) if closed or rng.random() < 0.2 else np.cumsum(gaps) - gaps[0]),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        max_output_tokens=ints(output + rng.integers(0, 100, n)) if rng.random() < 0.5 else None,
        concurrency=int(rng.integers(1, 9)) if closed else None,
        think_s=float(rng.choice([0.0, 0.05])) if closed else 0.0,
    )
    if rng.random() < 0.3:
        return workload
    id_tokens = int(page * rng.choice([1, 2, 4]) if rng.random() < 0.7 or page < 4 else page // 2)
    ids, offsets = content(rng, prompt, id_tokens)
    return dataclasses.replace(
        workload, block_tokens=id_tokens, prompt_block_ids=ints(ids), prompt_block_offsets=ints(offsets)
    )


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    page = int(rng.choice([1, 1, 1, 2, 4, 16]))
    workload = random_workload(rng, page)
    longest = workload.prompt_tokens + workload.output_tokens
    peak = int(longest.max() // page) + 3
    chunk = int(rng.choice([0, 0, -1, 1, 2, 8, 32])) * page
    config = EngineConfig(
        num_blocks=max(2, int(peak * rng.choice([0.8, 1.0, 1.2, 1.5, 2.5, 6.0]))),
        block_size=page,
        max_num_seqs=int(rng.choice([1, 3, 8, 64])),
        max_num_batched_tokens=int(rng.choice([7, 32, 64, 512])),
        max_model_len=int(rng.choice([1 << 20, 1 << 20, int(np.median(longest)) + 1])),
        policy="sglang",
        options={
            "schedule_policy": str(rng.choice(["fcfs", "fcfs", "lpm", "lpm", "dfs-weight", "lof", "random"])),
            "chunked_prefill_size": -1 if chunk < 0 else chunk,
            "max_prefill_tokens": int(rng.choice([1, 40, 200, 16384])),
            "enable_mixed_chunk": bool(rng.random() < 0.4),
            "schedule_conservativeness": float(rng.choice([0.0, 0.1, 0.3, 1.0, 2.0])),
            "clip_max_new_tokens": int(rng.choice([10, 4096, 4096])),
            "disable_radix_cache": bool(rng.random() < 0.15),
            "cache_own_blocks": bool(rng.random() < 0.7),
            "random_seed": 3,
        },
    )
    model = KinkedModel(kink=int(rng.choice([13, 200, 5000])), layers=LAYERS[int(rng.integers(len(LAYERS)))])
    duration_s = float(rng.uniform(0.01, 1.0)) if rng.random() < 0.2 else None
    return workload, config, maybe_skewed(model, rng), duration_s


def crowded_case(seed: int) -> Case:
    """Evictions, retractions, sorted queues."""
    rng = np.random.default_rng([seed, 7])
    _, config, model, duration_s = random_case(seed)
    workload, config = crowded(rng, config, rng.integers(1, 60, int(rng.integers(8, 30))))
    options = {"schedule_conservativeness": float(rng.choice([0.0, 0.1, 0.3]))}
    config = dataclasses.replace(config, options={**config.options, **options})
    return workload, config, model, duration_s


def cramped_case(seed: int) -> Case:
    """A prompt that takes nearly all memory in small chunks, beside answers that go on growing: it waits, they go."""
    rng = np.random.default_rng([seed, 11])
    workload, config, model, duration_s = random_case(seed)
    page = config.block_size
    n = int(rng.integers(3, 12))
    prompt = np.where(rng.random(n) < 0.4, rng.integers(100, 140, n), rng.integers(1, 10, n))
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(0.01, n))),
        prompt_tokens=ints(prompt),
        output_tokens=ints(rng.integers(2, 80, n)),
    )
    options = {
        **config.options,
        "chunked_prefill_size": int(rng.choice([4, 8])) * page,
        "enable_mixed_chunk": True,
        "schedule_conservativeness": 0.0,
        "clip_max_new_tokens": 1,
    }
    blocks = -(-(int((prompt + workload.output_tokens).max()) + 2) // page) + 1 + int(rng.integers(0, 3))
    config = dataclasses.replace(config, num_blocks=blocks, max_num_seqs=32, max_model_len=1 << 20, options=options)
    return workload, config, model, duration_s


CASE_KINDS = [random_case, crowded_case, cramped_case]


@pytest.mark.parametrize("make_case", CASE_KINDS)
@pytest.mark.parametrize("part", range(2))
def test_every_token_time_equals_the_naive_schedulers(part: int, make_case: Callable[[int], Case]) -> None:
    finished = 0
    for seed in range(part, CASES // 3, 2):
        workload, config, model, duration_s = make_case(seed)
        cut_s = math.inf if duration_s is None else duration_s
        expected, _ = naive_sglang(workload, config, model, cut_s)
        run = simulate(workload, config, model, duration_s=duration_s)
        assert run.timeline is not None
        if duration_s is None:
            assert len(run) == len(expected)
        sent = [req for req, at in zip(expected, workload.arrival_s, strict=True) if in_run(req, float(at), cut_s)]
        assert len(run) == len(sent), f"seed {seed}: {config}"
        for row, req in enumerate(sent):
            where = f"seed {seed} row {row}: {config}"
            assert (run.status[row] == Status.REJECTED) == (req is None), where
            if req is None:
                continue
            assert run.timeline.token_times_s(row).tolist() == [t for t in req.times_s if t <= cut_s], where
            assert run.arrival_s[row] == req.arrival_s, where
            assert run.scheduled_s[row] == req.scheduled_s or math.isnan(req.scheduled_s), where
            assert run.cached_tokens[row] == (req.first_hit or 0), where
            if duration_s is None:
                assert run.preemptions[row] == req.preemptions, where
                assert run.status[row] == Status.FINISHED, where
            finished += len(req.times_s) == req.output
    assert finished > CASES // 2


def in_run(req: object, at_s: float, cut_s: float) -> bool:
    """Whether a request was sent before the cut."""
    return (at_s if req is None else req.arrival_s) < cut_s  # type: ignore[attr-defined]


def test_the_cases_reach_the_rare_regimes() -> None:
    seen: Counter[str] = Counter()
    for make_case, num in ((random_case, 20), (crowded_case, 20), (cramped_case, 150)):
        for seed in range(num):
            workload, config, model, _ = make_case(seed)
            rows, events = naive_sglang(workload, config, model)
            seen += events
            seen["hits"] += sum(bool(req.first_hit) for req in rows if req is not None)
    wanted = {"tree evictions", "computed twice", "retracted", "all retracted", "no token", "chunk waits", "sorted"}
    wanted |= {"deprioritised", "mixed", "alone", "part", "hits", "chunk beyond its means"}
    assert wanted == set(seen), wanted ^ set(seen)
    assert min(seen.values()) >= 3, seen


@pytest.mark.parametrize("make_case", CASE_KINDS)
def test_with_pipeline_stages_too(make_case: Callable[[int], Case]) -> None:
    together = evicted = 0
    for seed in range(CASES // 5):
        workload, config, model, _ = make_case(seed)
        workload = dataclasses.replace(workload, concurrency=None, think_s=0.0)
        model.num_stages = 2 + seed % 3
        expected, events = naive_sglang(workload, config, model)
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for row, req in enumerate(expected):
            where = f"seed {seed} row {row}, {model.num_stages} stages: {config}"
            times_s = [] if req is None else req.times_s
            assert run.timeline.token_times_s(row).tolist() == times_s, where
            assert run.cached_tokens[row] == (0 if req is None else req.first_hit or 0), where
        together += events["in flight together"]
        evicted += int(run.preemptions.sum())
    assert together > CASES
    assert evicted > 5
