"""Pipeline stages of the general kernel against batches in flight by name: the same bits."""

from __future__ import annotations

import dataclasses
import math

import pytest

from plimsoll.core.errors import InputError
from plimsoll.core.run import Status
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from tests.oracle.models import KinkedModel, SkewedModel
from tests.oracle.naive_general_pipeline import naive_general_pipeline
from tests.property.test_engine_general_oracle import CASES, OPTIONS, random_case

PIPELINED = ("orca", "sarathi", "sarathi-serve", "trtllm")
"""Engines of the general kernel with stages; `sglang` has an oracle of its own."""


def staged_case(policy: str, seed: int) -> tuple[Workload, EngineConfig, KinkedModel | SkewedModel]:
    workload, config, model, _ = random_case(policy, seed)
    model.num_stages = 2 + seed % 3
    open_loop = dataclasses.replace(workload, concurrency=None, think_s=0.0)
    return open_loop, dataclasses.replace(config, replicas=1), model


@pytest.mark.parametrize("policy", PIPELINED)
def test_every_token_time_equals_the_naive_pipelines(policy: str) -> None:
    finished = evicted = 0
    for seed in range(CASES // 4):
        workload, config, model = staged_case(policy, seed)
        where = f"seed {seed}, {model.num_stages} stages: {config}"
        facts = naive_general_pipeline(workload, config, model)
        run = simulate(workload, config, model)
        assert run.timeline is not None
        for row, expected in facts.items():
            at = f"{where} request {row}"
            assert run.timeline.token_times_s(row).tolist() == expected["times_s"], at
            assert (run.status[row] == Status.REJECTED) == expected["rejected"], at
            assert run.scheduled_s[row] == expected["scheduled_s"] or math.isnan(expected["scheduled_s"]), at
            finished += expected["finished"]
        evicted += int(run.preemptions.sum())
    assert finished > CASES
    assert policy in ("orca", "sarathi") or evicted > 5


@pytest.mark.parametrize("policy", sorted(set(OPTIONS) - set(PIPELINED)))
def test_other_engines_say_that_they_have_no_stages(policy: str) -> None:
    workload, config, _, _ = random_case(policy, 0)
    with pytest.raises(InputError, match=f"the engine {policy} runs on one stage only"):
        simulate(workload, config, KinkedModel(num_stages=2))
