"""Data-parallel attention ranks as users meet them: which engines step together, and what the answer says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from plimsoll.api.simulation import simulate
from plimsoll.core.errors import InputError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine import simulate as run_engine
from tests.unit.test_engine_policies import OneSecond, workload

CASE: dict[str, Any] = {
    "model": "Qwen3-30B-A3B", "gpu": "H100-SXM", "dp": 4, "ep": 4, "prompt_tokens": 300, "output_tokens": 20,
    "rate_per_s": 4.0, "num_requests": 60,
}  # fmt: skip
POOLED = "simulated as one pool"


def said(engine: str, **fields: Any) -> str:
    return " ".join(simulate(**{**CASE, **fields}, engine=engine).notes)


@pytest.mark.parametrize("engine", ["vllm-v1", "sglang", "trtllm,enable_chunked_context=true"])
def test_ranks_of_these_engines_step_together(engine: str) -> None:
    assert POOLED not in said(engine)


@pytest.mark.parametrize("engine", ["orca", "sarathi-serve"])
def test_ranks_of_others_are_one_pool_and_the_answer_says_so(engine: str) -> None:
    assert POOLED in said(engine)


def test_a_router_that_counts_tokens_counts_those_who_wait_before_all_ranks() -> None:
    # Both replicas' two seats are taken, and a long prompt waits before the ranks of one: the next goes to the other.
    rows = [(0.0, 4, 40), (0.0, 4, 40), (0.1, 4, 40), (0.1, 4, 40), (0.2, 400, 10), (1.5, 4, 2)]
    config = EngineConfig(num_blocks=1000, max_num_seqs=1, policy="trtllm", ranks=2, replicas=2)
    config = dataclasses.replace(config, router="least-pending-tokens")
    run = run_engine(workload(*rows), config, OneSecond())
    assert run.replica[4] != run.replica[5]


def test_stages_and_ranks_do_not_go_together() -> None:
    model = OneSecond()
    model.num_stages = 2
    with pytest.raises(InputError, match="on one stage"):
        run_engine(load(), EngineConfig(num_blocks=100, policy="sglang", ranks=2), model)


def load() -> Workload:
    return workload((0.0, 4, 2))
