"""The candidates: how many, which, and how their GPUs add up."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from plimsoll.catalog.accelerators import list_accelerators, load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.planner.context import Context
from plimsoll.planner.prune import counts_within
from plimsoll.planner.space import (
    Candidate,
    GpuLimit,
    ReplicaConfig,
    SpaceOptions,
    enumerate_configs,
    pipeline_ways,
    replica_counts,
    tensor_ways,
)
from plimsoll.planner.stages import enumerate_space
from tests.unit.planner_fakes import FAST, FakeParts, plan_request


def config(tp: int, pp: int = 1, ep: int = 1) -> ReplicaConfig:
    return ReplicaConfig(
        accelerator=FAST,
        parallelism=Parallelism(tp=tp, pp=pp, ep=ep),
        precision="bf16",
        engine="vllm-v1",
        max_num_batched_tokens=2048,
    )


@pytest.mark.parametrize(
    ("cut", "replicas", "text"),
    [
        (config(4), 2, "8 GPUs = 2 replicas × TP 4"),
        (config(1), 1, "1 GPU = 1 replica × TP 1"),
        (config(2, 2), 3, "12 GPUs = 3 replicas × TP 2 × PP 2"),
        (config(8, ep=8), 1, "8 GPUs = 1 replica × TP 8 (experts over EP 8)"),
    ],
)
def test_arithmetic(cut: ReplicaConfig, replicas: int, text: str) -> None:
    candidate = Candidate(config=cut, replicas=replicas)
    assert candidate.arithmetic == text
    assert candidate.num_gpus == int(text.split(maxsplit=1)[0])


def test_names_tell_configurations_apart() -> None:
    names = {config(tp, pp, ep).name for tp, pp, ep in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2)]}
    assert len(names) == 5
    assert config(4, 2).stem == "FAST TP4 PP2 bf16 vllm-v1"


def test_every_number_of_replicas_then_ever_fewer() -> None:
    limit = GpuLimit(accelerator=FAST, max_gpus=10)
    assert replica_counts(config(4), limit) == (1, 2)
    assert replica_counts(config(16), limit) == ()
    assert replica_counts(config(1), limit) == tuple(range(1, 11))
    assert replica_counts(config(2), dataclasses.replace(limit, min_gpus=5)) == (3, 4, 5)
    many = replica_counts(config(1), GpuLimit(accelerator=FAST, max_gpus=1000))
    assert many[:32] == tuple(range(1, 33))
    assert many[-1] == 1000
    assert all(b / a <= 1.13 for a, b in itertools.pairwise(many[31:]))


def test_tensor_ways_are_powers_of_two_and_divisors_within_a_machine() -> None:
    limit = GpuLimit(accelerator=FAST, max_gpus=16)
    assert tensor_ways(load_model("meta-llama/Llama-2-70b-hf"), limit) == (1, 2, 4, 8)
    assert 16 in tensor_ways(load_model("meta-llama/Llama-2-70b-hf"), limit, across_nodes=True)
    assert 7 in tensor_ways(load_model("Qwen/Qwen2-7B"), limit)  # 28 heads
    assert pipeline_ways(load_model("meta-llama/Llama-2-70b-hf"), limit) == (1, 2, 4, 8, 16)


def test_experts_add_expert_parallel_cuts() -> None:
    options = SpaceOptions(precisions=("bf16",), engines=("vllm-v1",), token_budgets=(None,), pp=(1,))
    limits = [GpuLimit(accelerator=FAST, max_gpus=4)]
    dense = enumerate_configs(load_model("meta-llama/Llama-3.1-8B"), limits, options)
    mixture = enumerate_configs(load_model("mistralai/Mixtral-8x7B-v0.1"), limits, options)
    assert {c.parallelism.ep for c in dense} == {1}
    alone = {(c.parallelism.tp, c.parallelism.ep) for c in mixture if c.parallelism.dp == 1}
    assert alone == {(1, 1), (2, 1), (2, 2), (4, 1), (4, 4)}
    ranks = {(c.parallelism.tp, c.parallelism.dp, c.parallelism.ep) for c in mixture if c.parallelism.dp > 1}
    assert ranks == {(1, 2, 2), (1, 4, 4), (2, 2, 4)}
    assert {c.parallelism.dp for c in dense} == {1}


def test_llama_2_70b_on_all_data_centre_gpus_makes_more_than_a_thousand_candidates() -> None:
    model = load_model("meta-llama/Llama-2-70b-hf")
    gpus = [load_accelerator(name) for name in list_accelerators()]
    gpus = [one for one in gpus if one.vendor == "nvidia" and one.segment == "datacenter"]
    limits = tuple(GpuLimit(accelerator=one, max_gpus=16) for one in gpus)
    request = plan_request(
        model=model, gpus=limits, precisions=("bf16", "fp8"), token_budgets=(512, 2048, 8192), pp=None
    )
    configs = enumerate_space(Context(request, FakeParts(request)))
    assert len({c.name for c in configs}) == len(configs)
    assert sum(len(counts_within(c, limits)) for c in configs) >= 1000
