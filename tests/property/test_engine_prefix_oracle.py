"""Prefix caching, priorities and asynchronous scheduling against the naive scheduler: the same bits.

`PLIMSOLL_ORACLE_CASES=2000 pytest tests/property/test_engine_prefix_oracle.py` runs as many workloads as you like.
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
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from tests.oracle.models import KinkedModel, SkewedModel, maybe_skewed
from tests.oracle.naive_clock import Seen, clocked

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
LAYERS = [((1, None),), ((1, None),), ((3, None), (5, 40)), ((1, 33),)]
Case = tuple[Workload, EngineConfig, KinkedModel | SkewedModel, float | None]


def content(rng: np.random.Generator, prompt: np.ndarray, id_tokens: int) -> tuple[list[int], list[int]]:
    """Prompts that share beginnings, as paths in a random tree: each follows an earlier one for a while."""
    paths: list[list[int]] = []
    ids: list[int] = []
    offsets = [0]
    fresh = 0
    for tokens in prompt:
        num = -(-int(tokens) // id_tokens)
        path: list[int] = []
        if paths and rng.random() < 0.8:
            other = paths[int(rng.integers(max(0, len(paths) - 8), len(paths)))]
            path = other[: int(rng.integers(0, len(other) + 1)) if rng.random() < 0.6 else num][:num]
        # A last id that covers less than `id_tokens` tokens is another prompt's only if that ends there too.
        if path and len(path) == num and int(tokens) % id_tokens:
            path = path[:-1]
        while len(path) < num:
            path.append(fresh)
            fresh += 1
        if int(tokens) % id_tokens:
            paths.append(path[:-1])
        else:
            paths.append(path)
        kept = path[: int(rng.integers(0, num + 1))] if rng.random() < 0.1 else path
        ids += kept
        offsets.append(len(ids))
    return ids, offsets


def crowded(rng: np.random.Generator, config: EngineConfig, prompt: np.ndarray) -> tuple[Workload, EngineConfig]:
    """Few beginnings, long answers that nobody foresees, and little memory."""
    ids, offsets = content(rng, prompt, config.block_size)
    output = rng.integers(2, 60, len(prompt))
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(0.01, len(prompt)))),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        block_tokens=config.block_size,
        prompt_block_ids=ints(ids),
        prompt_block_offsets=ints(offsets),
    )
    peak = int((prompt + output).max() // config.block_size) + 3
    num_blocks = peak + int(rng.integers(0, peak + 1))
    return workload, dataclasses.replace(config, num_blocks=num_blocks, max_num_seqs=32, max_model_len=1 << 20)


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 45))
    block = int(rng.choice([1, 2, 4, 16]))
    longest = int(rng.choice([12, 60, 240]))
    prompt = rng.integers(1, longest + 1, n)
    if rng.random() < 0.5:  # whole blocks, so that whole prompts are cached
        prompt = np.maximum(prompt // (2 * block), 1) * 2 * block
    if rng.random() < 0.3:
        prompt = rng.choice(prompt[:4], n)
    output = rng.integers(1, int(rng.choice([2, 30, 90])) + 1, n)
    peak = int(-(-(prompt + output).max() // block))
    budget = int(rng.choice([1, 7, 32, 64, 512]))
    chunked = bool(rng.random() < 0.85)
    max_model_len = int(rng.choice([1 << 20, 1 << 20, longest]))
    if not chunked:
        max_model_len = min(max_model_len, 2 * longest + 100)
        budget = max(budget, max_model_len)
    gaps = rng.exponential(float(rng.choice([1e-3, 2e-2, 0.1])), n)
    closed = bool(rng.random() < 0.2)
    workload = Workload(
        arrival_s=floats(np.zeros(n) if closed or rng.random() < 0.2 else np.cumsum(gaps) - gaps[0]),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        priority=ints(rng.integers(0, int(rng.choice([1, 2, 5])), n)),
        concurrency=int(rng.integers(1, 9)) if closed else None,
        think_s=float(rng.choice([0.0, 0.05])) if closed else 0.0,
    )
    if rng.random() < 0.9:
        id_tokens = int(block * rng.choice([1, 2, 4]) if rng.random() < 0.7 or block < 4 else block // 2)
        ids, offsets = content(rng, prompt, id_tokens)
        workload = dataclasses.replace(
            workload, block_tokens=id_tokens, prompt_block_ids=ints(ids), prompt_block_offsets=ints(offsets)
        )
    config = EngineConfig(
        num_blocks=max(1, int(peak * rng.choice([0.8, 1.0, 1.3, 2.5, 6.0, 40.0]))),
        block_size=block,
        max_num_seqs=int(rng.choice([1, 3, 8, 64])),
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        options={
            "enable_chunked_prefill": chunked,
            "long_prefill_token_threshold": int(rng.choice([0, 0, 0, 5, 24])),
            "long_prefill_token_threshold_adaptive": bool(rng.random() < 0.3),
            "reserve_full_isl": bool(rng.random() < 0.7),
            "watermark": float(rng.choice([0.0, 0.0, 0.1])),
            "enable_prefix_caching": bool(rng.random() < 0.8),
            "cache_own_blocks": True,
            "scheduling_policy": str(rng.choice(["fcfs", "priority"])),
            "async_scheduling": bool(rng.random() < 0.5),
        },
    )
    model = KinkedModel(kink=int(rng.choice([13, 200, 5000])), layers=LAYERS[int(rng.integers(len(LAYERS)))])
    duration_s = float(rng.uniform(0.01, 1.0)) if rng.random() < 0.2 else None
    return workload, config, maybe_skewed(model, rng), duration_s


def squeezed_case(seed: int) -> Case:
    """Short prompts, long answers, little memory, and the less urgent before the more urgent in the running list."""
    rng = np.random.default_rng(seed)
    workload, config, model, duration_s = random_case(seed)
    n = int(rng.integers(6, 30))
    block = int(rng.choice([1, 2, 4]))
    prompt = rng.integers(1, 4, n) * block
    ids, offsets = content(rng, prompt, block)
    output = rng.integers(2, 40, n)
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(0.01, n))),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
        priority=ints(rng.integers(0, 9, n)),
        block_tokens=block,
        prompt_block_ids=ints(ids),
        prompt_block_offsets=ints(offsets),
    )
    peak = int(-(-(prompt + output).max() // block))
    options = {
        **config.options,
        "enable_chunked_prefill": True,
        "reserve_full_isl": False,
        "scheduling_policy": "priority",
        "long_prefill_token_threshold": int(rng.choice([0, 0, 2])),
        "watermark": 0.0,
    }
    config = dataclasses.replace(
        config,
        num_blocks=peak + int(rng.integers(0, peak + 1)),
        block_size=block,
        max_num_seqs=8,
        max_num_batched_tokens=int(rng.integers(2, 12)),
        max_model_len=1 << 20,
        options=options,
    )
    return workload, config, model, duration_s


def check(run: Run, expected: list[Seen], duration_s: float | None, where: str) -> None:
    cut_s = math.inf if duration_s is None else duration_s
    sent = [seen for seen in expected if seen.arrival_s < cut_s or seen.rejected]
    if duration_s is None:
        assert len(run) == len(expected), where
    accepted = [i for i in range(len(run)) if run.status[i] != Status.REJECTED]
    assert len(accepted) == sum(not seen.rejected for seen in sent), where
    for i, seen in zip(accepted, (seen for seen in sent if not seen.rejected), strict=True):
        assert run.timeline is not None
        assert run.timeline.token_times_s(i).tolist() == seen.token_times_s, f"{where} request {i}"
        assert run.arrival_s[i] == seen.arrival_s, where
        np.testing.assert_equal(run.scheduled_s[i], seen.scheduled_s, err_msg=where)
        assert run.cached_tokens[i] == seen.cached, f"{where} request {i}"
        if duration_s is None:
            assert run.preemptions[i] == seen.preemptions, f"{where} request {i}"


@pytest.mark.parametrize("make_case", [random_case, squeezed_case])
@pytest.mark.parametrize("chunk", range(2))
def test_every_token_time_equals_the_naive_schedulers(chunk: int, make_case: Callable[[int], Case]) -> None:
    for seed in range(chunk, CASES, 2):
        workload, config, model, duration_s = make_case(seed)
        expected, _ = clocked(workload, config, model, math.inf if duration_s is None else duration_s)
        run = simulate(workload, config, model, duration_s=duration_s)
        check(run, expected, duration_s, f"seed {seed}: {config}")


def test_replicas_behind_a_router_are_so_many_servers() -> None:
    """Round robin in open loop: each replica sees every third request and nothing of the others."""
    for seed in range(CASES // 3):
        workload, config, model, duration_s = random_case(seed)
        workload = dataclasses.replace(workload, concurrency=None, think_s=0.0)
        together = simulate(workload, dataclasses.replace(config, replicas=3), model, duration_s=duration_s)
        finals = np.minimum(workload.output_tokens, config.max_model_len - workload.prompt_tokens)
        blocks = -(-(workload.prompt_tokens + finals - 1) // config.block_size)
        accepted = np.flatnonzero((finals >= 1) & (blocks <= config.num_blocks))
        for k in range(3):
            mine = accepted[k::3]
            mine = mine[workload.arrival_s[mine] < (math.inf if duration_s is None else duration_s)]
            if not len(mine):
                continue
            alone = simulate(part_of(workload, mine), config, model, duration_s=duration_s)
            assert together.timeline is not None
            assert alone.timeline is not None
            for i, number in enumerate(mine.tolist()):
                where = f"seed {seed} request {number}"
                times = together.timeline.token_times_s(number)
                assert times.tolist() == alone.timeline.token_times_s(i).tolist(), where
                assert together.cached_tokens[number] == alone.cached_tokens[i], where


def part_of(workload: Workload, rows: np.ndarray) -> Workload:
    """Some requests of a workload."""
    assert workload.priority is not None
    columns = {
        "arrival_s": workload.arrival_s[rows],
        "prompt_tokens": workload.prompt_tokens[rows],
        "output_tokens": workload.output_tokens[rows],
        "priority": workload.priority[rows],
    }
    if workload.prompt_block_ids is None:
        return Workload(**columns)
    ids = np.split(workload.prompt_block_ids, workload.prompt_block_offsets[1:-1])
    kept = [ids[row] for row in rows]
    offsets = ints(np.cumsum([0, *map(len, kept)]))
    return Workload(
        **columns,
        block_tokens=workload.block_tokens,
        prompt_block_ids=ints(np.concatenate(kept)),
        prompt_block_offsets=offsets,
    )


@pytest.mark.parametrize("router", ["round-robin", "least-loaded"])
def test_users_of_several_replicas_send_when_they_are_answered(router: str) -> None:
    """Closed loop: nobody sends but the users at the start, and one of them after each answer, whoever gave it."""
    for seed in range(CASES // 3):
        workload, config, model, _ = random_case(seed)
        users = 1 + seed % 5
        workload = dataclasses.replace(workload, concurrency=users, think_s=0.02, arrival_s=workload.arrival_s * 0)
        run = simulate(workload, dataclasses.replace(config, replicas=3, router=router), model)
        accepted = run.status != Status.REJECTED
        assert np.all(run.status[accepted] == Status.FINISHED)
        answers = Counter((run.finish_s[accepted] + 0.02).tolist())
        answers[0.0] += users
        assert not Counter(run.arrival_s[accepted].tolist()) - answers, f"seed {seed}"


def test_the_cases_cover_the_rare_regimes() -> None:
    """A property test is worth what it reaches."""
    seen: Counter[str] = Counter()
    for seed in range(150):
        workload, config, model, duration_s = random_case(seed)
        run = simulate(workload, config, model, duration_s=duration_s)
        options = config.options
        regimes = {
            "hits": run.cached_tokens.any(),
            "evictions": run.preemptions.any(),
            "late": options["async_scheduling"],
            "late evictions": options["async_scheduling"] and run.preemptions.any(),
            "priority evictions": options["scheduling_policy"] == "priority" and run.preemptions.any(),
            "hits and evictions": run.cached_tokens.any() and run.preemptions.any(),
            "small budget": config.max_num_batched_tokens < config.max_num_seqs,
            "closed": workload.concurrency is not None,
            "cut": (run.status == Status.UNFINISHED).any(),
            "no content": workload.prompt_block_ids is None,
        }
        seen.update(name for name, reached in regimes.items() if reached)
    assert min(seen.values()) >= 5, seen
    assert len(seen) == 10, seen
