"""Prefill and decode pools on traces with content, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.commands import DEPLOYMENT, run

ENGINES = ["distserve", "splitwise"]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Conversations of four turns in Mooncake's format: each prompt is the last one and two blocks of 512 more."""
    rng = np.random.default_rng(0)
    rows = []
    for talk in range(60):
        first, base = int(rng.integers(2, 8)), 1000 * talk
        for turn in range(4):
            ids = [base + k for k in range(first + 2 * turn)]
            rows.append((300 * talk + 9000 * turn, len(ids) * 512, ids))
    lines = [
        {"timestamp": at_ms, "input_length": prompt, "output_length": 60, "hash_ids": ids}
        for at_ms, prompt, ids in sorted(rows)
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def simulated(capsys: pytest.CaptureFixture[str], engine: str, trace: str, *more: str) -> Any:
    """The answer of `plimsoll simulate --json`."""
    outcome = run(capsys, "simulate", *DEPLOYMENT, "--engine", engine, "--trace", trace, "--json", *more)
    assert outcome.code == 0, outcome.stderr
    return outcome.json()


@pytest.mark.parametrize("engine", ENGINES)
def test_later_turns_find_the_earlier_ones_and_come_sooner(
    engine: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pools = f"{engine},prefill=2,decode=2"
    caching = simulated(capsys, pools, trace)
    without = simulated(capsys, f"{pools},prefix_cache=false", trace)
    anywhere = simulated(capsys, f"{pools},prefix_aware=false", trace)
    assert without["prefix_cache"]["hit_tokens"] == 0
    assert caching["prefix_cache"]["hit_frac"] > anywhere["prefix_cache"]["hit_frac"] > 0.2
    ttft_s, whole_s = (answer["metrics"]["ttft_s"]["mean"] for answer in (caching, without))
    assert ttft_s < 0.8 * whole_s
    told = run(capsys, "simulate", *DEPLOYMENT, "--engine", pools, "--trace", trace).stdout
    assert f"prefix cache: {caching['prefix_cache']['hit_frac']:.1%}".replace("%", " %") in told


@pytest.mark.parametrize("engine", ENGINES)
def test_mooncakes_conversations_find_something(
    engine: str, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(shared_data / "traces" / "mooncake_conversation_trace.jsonl.gz")
    pools = f"{engine},prefill=2,decode=2"
    caching = simulated(capsys, pools, path, "--num-requests", "1500", "--gpu", "H200-SXM")
    without = simulated(capsys, f"{pools},prefix_cache=false", path, "--num-requests", "1500", "--gpu", "H200-SXM")
    assert 0.01 < caching["prefix_cache"]["hit_frac"] < 0.374, "no more than with memory for all of it"
    assert caching["metrics"]["ttft_s"]["mean"] < without["metrics"]["ttft_s"]["mean"]


def test_plan_tries_pools_on_a_trace_with_content(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(
        capsys, "plan", "--model", "Llama-3.1-8B", "--gpus", "H100-SXM:4", "--trace", trace, "--rate", "4",
        "--token-budgets", "2048", "--disaggregated", "auto", "--ttft-ms", "5000", "--tpot-ms", "50", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    answer = outcome.json()
    lists = ("plans", "top_throughput", "top_latency", "top_cost", "pareto")
    pooled = [one["pools"] for name in lists for one in answer[name] if one["pools"]]
    assert pooled, "no pools among the best"
    assert all(pools["prefill"] >= 1 and pools["decode"] >= 1 for pools in pooled)
