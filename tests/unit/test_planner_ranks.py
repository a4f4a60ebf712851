"""Data-parallel attention with expert parallelism as candidates of a plan, simulated in lockstep."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from plimsoll.api.planning import plan
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from plimsoll.engine import EngineConfig
from plimsoll.planner.context import Context
from plimsoll.planner.estimate import LengthMeans, Limits, ReplicaEstimator
from plimsoll.planner.evaluate import COARSE, Evaluator, Job
from plimsoll.planner.parts import Parts
from plimsoll.planner.prune import Screened, screen_one
from plimsoll.planner.request import PlanRequest
from plimsoll.planner.space import Candidate, GpuLimit, ReplicaConfig, rank_ways
from plimsoll.planner.stages import enumerate_space
from plimsoll.workload.spec import WorkloadSpec
from tests.unit.planner_fakes import FAST, LineModel, plan_request

MIXTURE, DENSE = "Qwen/Qwen3-30B-A3B", "meta-llama/Llama-3.1-8B"


def request(**fields: Any) -> PlanRequest:
    return plan_request(
        **{
            "model": load_model(MIXTURE),
            "gpus": (GpuLimit(accelerator=load_accelerator("H100-SXM"), max_gpus=4),),
            "workload": WorkloadSpec(prompt_tokens=400, output_tokens=80, rate_per_s=1.0),
            **fields,
        }
    )


def cut(tp: int, dp: int) -> ReplicaConfig:
    return ReplicaConfig(
        accelerator=load_accelerator("H100-SXM"),
        parallelism=Parallelism(tp=tp, dp=dp, ep=tp * dp),
        precision="bf16",
        engine="vllm-v1",
        max_num_batched_tokens=2048,
    )


def test_only_mixtures_have_ranks_and_they_stay_in_one_machine() -> None:
    limit = GpuLimit(accelerator=FAST, max_gpus=64)
    assert rank_ways(load_model(DENSE), limit, 1) == (1,)
    assert rank_ways(load_model(MIXTURE), limit, 1) == (1, 2, 4, 8)
    assert rank_ways(load_model(MIXTURE), limit, 4) == (1, 2)
    assert rank_ways(load_model(MIXTURE), limit, 16) == (1,)
    assert 16 in rank_ways(load_model(MIXTURE), limit, 1, across_nodes=True)


def test_every_cut_of_tp_and_dp_spreads_its_experts_over_all_ranks() -> None:
    asked = request(pp=None)
    cuts = {one.parallelism for one in enumerate_space(Context(asked)) if one.parallelism.dp > 1}
    assert {(one.tp, one.dp) for one in cuts} == {(1, 2), (1, 4), (2, 2)}
    assert all(one.ep == one.tp * one.dp and one.pp == 1 for one in cuts)


def test_dp_can_be_asked_for_and_only_of_mixtures() -> None:
    asked = request(dp=(4,))
    assert {one.parallelism.dp for one in enumerate_space(Context(asked))} == {4}
    with pytest.raises(InputError, match="use replicas instead"):
        request(model=load_model(DENSE), dp=(2,))


def test_arithmetic_counts_ranks_and_not_experts() -> None:
    candidate = Candidate(config=cut(2, 4), replicas=2)
    assert candidate.arithmetic == "16 GPUs = 2 replicas × TP 2 × DP 4 (experts over EP 8)"
    assert candidate.config.stem == "H100-SXM TP2 DP4 EP8 bf16 vllm-v1"


class Watching(Parts):
    """Remembers what the engine was told."""

    def __init__(self, asked: PlanRequest) -> None:
        super().__init__(asked)
        self.told: list[EngineConfig] = []

    def simulate(self, workload: Any, config: EngineConfig, model: Any) -> Any:
        self.told.append(config)
        return super().simulate(workload, config, model)


def screened(tp: int, dp: int) -> tuple[Context, Watching, Screened]:
    asked = request()
    parts = Watching(asked)
    context = Context(asked, parts)
    return context, parts, screen_one(context, cut(tp, dp))


def test_ranks_are_simulated_in_lockstep_with_pools_of_their_own() -> None:
    context, parts, one = screened(1, 4)
    Evaluator(context).simulate(one, 5.0, 1, 0, COARSE.length())
    (told,) = parts.told
    assert told.ranks == 4
    assert told.num_blocks == one.memory.usable_blocks
    assert (told.max_num_seqs, told.max_num_batched_tokens) == (one.settings.max_num_seqs, 2048)


@pytest.mark.parametrize("ways", [(1, 2), (1, 4), (2, 2)])
def test_the_bound_is_never_below_what_lockstep_carries(ways: tuple[int, int]) -> None:
    context, _, one = screened(*ways)
    job = Job(config=one.config, effort=COARSE, guess=one.estimate.predicted_per_s, replicas=(1,))
    found = Evaluator(context).run(job)
    assert 0.2 * one.estimate.bound_per_s < found.capacity.max_load < 1.1 * one.estimate.bound_per_s
    (seen,) = found.observations
    assert seen.e2e_s > one.estimate.unloaded_e2e_s / 1.05


MEANS = LengthMeans(
    prompt_tokens=100.0, output_tokens=11.0, prefill_pairs=5050.0, prefill_read_tokens=0.0, num_chunks=1.0,
    decode_read_tokens=105.0, kv_tokens=105.0, tail_prompt_tokens=100, chunk_spread=1.0,
    decode_steps=np.full(64, 10.0), tail_frac=0.99,
)  # fmt: skip


def test_a_lone_request_costs_as_much_as_one_on_every_rank() -> None:
    model = LineModel(1e-3, 1e-5, 1e-4, 0.0)
    limits = Limits(kv_tokens=1e5, max_num_seqs=64, max_num_batched_tokens=512)
    alone = ReplicaEstimator(model, MEANS, limits)
    ranks = ReplicaEstimator(model, MEANS, dataclasses.replace(limits, ranks=4))
    assert alone.unloaded_ttft_s(100) == pytest.approx(1e-3 + 100e-5)
    assert ranks.unloaded_ttft_s(100) == pytest.approx(1e-3 + 400e-5)
    assert ranks.decode_step_s(1.0) == alone.decode_step_s(4.0)
    assert ranks.decode_step_s(40.0) == alone.decode_step_s(40.0)
    # Prompts on all ranks at once share the step's cost; one alone pays for all of it.
    assert ranks.prefill_s(4.0, packed=False) == pytest.approx(400e-5)
    assert ranks.prefill_s(4.0, packed=True) == pytest.approx(100e-5, rel=0.05)
    # With ten steps to a request, 40 sequences bring four prompts to each step: one for every rank.
    assert ranks.prefill_s(40.0, packed=False) == pytest.approx(100e-5, rel=0.05)


def test_a_plan_of_a_mixture_launches_its_ranks() -> None:
    answer = plan(
        model=MIXTURE, gpus="H100-SXM:4", workload="chat", ttft_ms=2000.0, tpot_ms=50.0, tp="1", pp="1", dp="2,4",
        token_budgets="1024", top=1,
    )  # fmt: skip
    (best,) = answer.result.plans
    dp = best.deployment.parallelism.dp
    assert best.deployment.parallelism == Parallelism(tp=1, dp=dp, ep=dp)
    assert f"× DP {dp} (experts over EP {dp})" in best.arithmetic
    commands = answer.commands(best)
    assert f"--data-parallel-size {dp}" in commands["vllm"]
    assert "--enable-expert-parallel" in commands["vllm"]
    assert f"--dp-size {dp}" in commands["sglang"]
    assert "--enable-dp-attention" in commands["sglang"]
    assert "enable_attention_dp: true" in commands["trtllm"]
