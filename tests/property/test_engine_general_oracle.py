"""Every policy of the general kernel: the fast kernel against the naive one, to the last bit of every token time.

`PLIMSOLL_ORACLE_CASES=2000 pytest tests/property/test_engine_general_oracle.py` runs as many random workloads as you
like. A policy without a case fails `test_every_policy_has_a_case`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.general.plan import GeneralPolicy
from plimsoll.engine.general.rules import longest_sequence
from plimsoll.engine.plugins import list_plugins, load_plugin, parameters_of
from tests.oracle.models import KinkedModel, SkewedModel, maybe_skewed
from tests.oracle.naive_general import naive_general

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
POLICIES = "plimsoll.engine.policies"
ELSEWHERE = {
    "vllm-v1": "tests/property/test_engine_oracle.py",
    "sglang": "tests/property/test_engine_sglang_oracle.py",
}
"""Policies of the other kernel, or with a state that a kernel that asks in every step would spoil: their oracles."""
LAYERS = [((1, None),), ((1, None),), ((3, None), (5, 40)), ((2, 16), (1, 90))]

# What each option may be in a random case. Every policy of the general kernel has a line.
SCRATCH = tempfile.TemporaryDirectory(prefix="confusion-")
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "fastertransformer": {"padding": [True, False], "pad_rows": [True, True, False], "return_together": [True, False]},
    "flexgen": {
        "machine": ["", "t4-gcp"],
        "gpu_batch": [0, 4],
        "num_gpu_batches": [0, 2],
        "compress_weights": [False, True],
        "compress_cache": [False, True],
        "cpu_attention": [False, True],
        "percent": ["", "0/100/0/100/0/100"],
    },
    "orca": {
        "reservation": ["max", "pow2", "oracle", "told"],
        "max_batch_size": [0, 2, 5],
        "buddy": [False, True],
    },
    "vllm-v0": {
        "watermark": [0.0, 0.01, 0.1],
        "preemption": ["recompute", "swap"],
        "swap_block_s": [0.0, 1e-4],
        "swap_blocks": [0, 3, 40],
        "delay_factor": [0.0, 0.0, 0.5, 20.0],
    },
    "sarathi": {"chunk_size": [1, 5, 32, 100, 512], "aligned": [True, False]},
    "sarathi-serve": {"chunk_size": [1, 5, 32, 100, 512], "watermark": [0.0, 0.01, 0.1]},
    "fastgen": {"max_ragged_batch_size": [1, 7, 64, 768], "max_ragged_sequence_count": [2, 9, 512]},
    "trtllm": {
        "capacity_scheduler_policy": ["guaranteed-no-evict", "MAX_UTILIZATION", "max-utilization"],
        "enable_chunked_context": [False, True],
        "enable_block_reuse": [True, False],
        "enable_partial_reuse": [True, False],
        "cache_own_blocks": [False],  # with blocks that are found: test_engine_reuse_oracle.py
    },
    "tgi": {
        "waiting_served_ratio": [0.0, 0.3, 1.2],
        "max_waiting_tokens": [1, 3, 20],
        "max_batch_prefill_tokens": [0, 400],
    },
    "s3": {
        "num_buckets": [1, 4, 10],
        "max_output": [0, 40, 200],
        "accuracy": [0.0, 0.6, 1.0],
        "confusion": ["", "random"],
        "predictor_seed": [0, 7],
        "swap_block_s": [0.0, 1e-4],
    },
    "uellm": {
        "threshold": [0.0, 300.0, 27200.0],
        "w_latency": [0.0, 0.5],
        "w_output": [0.5],
        "l_latency": [1.0, 20.0],
        "l_output": [1.0],
        "slo_s": [1.0, 10.0],
        "padding": [True, False],
    },
    "andes": {
        "ttft_s": [0.1, 1.0],
        "tokens_per_s": [4.8, 60.0],
        "interval_s": [0.02, 0.3],
        "preemption": ["swap", "recompute"],
        "swap_block_s": [0.0, 1e-4],
        "max_preemptions": [1, 3],
        "candidates": [2, 128],
    },
    "guide": {
        "dynamic_batch_size": [True, True, False],
        "split_size": [0, 1, 3, 8],
        "dynamic_sequence_length": [True, True, False],
        "base_split": [7, 64, 512],
        "tuning_factor": [0.5, 1.0, 1.7],
    },
    "llamacpp": {
        "parallel": [1, 2, 4],
        "batch_size": [32, 70, 2048],
        "ubatch_size": [4, 11, 32],
        "gpu_layers": [-1, 9],  # this and the host's: of memory and seconds, never of the schedule
        "host_gb_per_s": [0.0, 50.0],
        "host_tflops": [0.0, 2.0],
        "host_gib": [0.0, 64.0],
    },
}


def random_workload(rng: np.random.Generator) -> Workload:
    n = int(rng.integers(1, 50))
    longest = int(rng.choice([12, 60, 300]))
    output = rng.integers(1, int(rng.choice([2, 30, 120])) + 1, n)
    gaps = rng.exponential(float(rng.choice([1e-3, 2e-2, 0.3])), n)
    closed = bool(rng.random() < 0.3)
    noise = rng.lognormal(0.0, 0.7, n)
    targeted = bool(rng.random() < 0.5)
    return Workload(
        arrival_s=floats(np.zeros(n) if closed or rng.random() < 0.2 else np.cumsum(gaps) - gaps[0]),
        prompt_tokens=ints(rng.integers(1, longest + 1, n)),
        output_tokens=ints(output),
        max_output_tokens=ints(output + rng.integers(0, 40, n)) if rng.random() < 0.5 else None,
        predicted_output_tokens=ints(np.ceil(output * noise)) if rng.random() < 0.6 else None,
        ttft_target_s=floats(rng.uniform(0.05, 3.0, n)) if targeted else None,
        concurrency=int(rng.integers(1, 9)) if closed else None,
        think_s=float(rng.choice([0.0, 0.05])) if closed else 0.0,
    )


def possible(policy: str, options: dict[str, Any], longest: int, rng: np.random.Generator) -> dict[str, Any]:
    """Options that go together: a prefill budget with which TGI starts; a confusion matrix in the place of a share."""
    if 0 < options.get("max_batch_prefill_tokens", 0) < longest:
        return {**options, "max_batch_prefill_tokens": longest}
    if policy != "s3" or not options["confusion"]:
        return options
    size = options["num_buckets"]
    path = Path(SCRATCH.name) / f"confusion-{rng.integers(1 << 30)}.csv"
    np.savetxt(path, rng.dirichlet(np.full(size, 0.3), size), delimiter=",")
    return {**{name: value for name, value in options.items() if name != "accuracy"}, "confusion": str(path)}


def random_case(policy: str, seed: int) -> tuple[Workload, EngineConfig, KinkedModel | SkewedModel, float | None]:
    rng = np.random.default_rng([seed, *policy.encode()])
    workload = random_workload(rng)
    block = int(rng.choice([1, 2, 4, 16, 32]))
    longest = workload.prompt_tokens + workload.output_tokens
    peak = int(-(-longest.max() // block))
    config = EngineConfig(
        num_blocks=max(1, int(peak * rng.choice([0.8, 1.1, 1.5, 2.5, 40.0]))),
        block_size=block,
        max_num_seqs=int(rng.choice([1, 3, 8, 64])),
        max_num_batched_tokens=int(rng.choice([1, 32, 64, 512, 4096])),
        max_model_len=int(rng.choice([1 << 20, 2 * longest.max(), longest.max(), np.median(longest) + 1])),
        replicas=1 if workload.concurrency is not None else int(rng.choice([1, 1, 2])),
        policy=policy,
    )
    options = {name: values[int(rng.integers(len(values)))] for name, values in OPTIONS[policy].items()}
    config = dataclasses.replace(config, options=possible(policy, options, longest_sequence(config), rng))
    model = KinkedModel(kink=int(rng.choice([13, 200, 5000])), layers=LAYERS[int(rng.integers(len(LAYERS)))])
    duration_s = float(rng.uniform(0.01, 2.0)) if rng.random() < 0.25 else None
    return workload, config, maybe_skewed(model, rng), duration_s


def test_every_policy_has_a_case() -> None:
    for policy in list_plugins(POLICIES):
        if policy in ELSEWHERE:
            assert Path(ELSEWHERE[policy]).exists()
            continue
        assert issubclass(load_plugin(POLICIES, policy, "--engine"), GeneralPolicy), f"{policy}: where is its oracle?"
        assert policy in OPTIONS, f"{policy} needs a line in OPTIONS"


@pytest.mark.parametrize("policy", list(OPTIONS))
def test_every_option_is_varied(policy: str) -> None:
    parameters = parameters_of(load_plugin(POLICIES, policy, "--engine")).values()
    assert set(OPTIONS[policy]) == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("policy", list(OPTIONS))
def test_every_token_time_equals_the_naive_kernels(policy: str) -> None:
    finished = 0
    for seed in range(CASES // 3):
        workload, config, model, duration_s = random_case(policy, seed)
        where = f"seed {seed}: {config}"
        run = simulate(workload, config, model, duration_s=duration_s)
        cut_s = math.inf if duration_s is None else duration_s
        facts, _ = naive_general(workload, config, model, cut_s)
        assert run.timeline is not None
        assert len(run) == len(facts), where
        for row, (i, expected) in enumerate(facts.items()):
            at = f"{where} request {i}"
            assert (run.status[row] == Status.REJECTED) == expected["rejected"], at
            assert run.timeline.token_times_s(row).tolist() == expected["times_s"], at
            assert run.arrival_s[row] == expected["arrival_s"], at
            assert (run.status[row] == Status.FINISHED) == expected["finished"], at
            assert run.scheduled_s[row] == expected["scheduled_s"] or math.isnan(expected["scheduled_s"]), at
            finished += expected["finished"]
    assert finished > CASES


REGIMES = {
    "fastertransformer": {"chunks"},
    "flexgen": {"chunks"},
    "orca": {"chunks"},
    "vllm-v0": {"alone", "recompute", "swap", "swap in"},
    "sarathi": {"part"},
    "sarathi-serve": {"part", "chunks", "recompute"},
    "fastgen": {"part", "chunks", "pause", "recompute"},
    "trtllm": {"part", "chunks", "recompute"},
    "tgi": {"alone", "chunks"},
    "llamacpp": {"part", "chunks"},
    "guide": {"alone", "part", "chunks"},
    "s3": {"chunks", "swap", "swap in"},
    "uellm": {"chunks"},
    "andes": {"alone", "recompute", "swap", "swap in"},
}
"""What the random cases of each policy must reach: a property test is worth no more than that."""


@pytest.mark.parametrize("policy", list(OPTIONS))
def test_the_cases_reach_the_rare_regimes(policy: str) -> None:
    seen: dict[str, int] = {}
    for seed in range(80):
        workload, config, model, _ = random_case(policy, seed)
        for event, count in naive_general(workload, config, model)[1].items():
            seen[event] = seen.get(event, 0) + count
    assert all(seen.get(regime, 0) >= 5 for regime in REGIMES[policy]), seen
