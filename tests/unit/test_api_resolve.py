"""Names become objects: engines with options, targets in seconds, notes on what was shortened."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

import plimsoll
from plimsoll.api.planning import _gpus, plan_request
from plimsoll.api.resolve import resolve, split_engine, targets_of, workload_spec
from plimsoll.api.scenario import PlanScenario, SimulateScenario
from plimsoll.core.errors import InfeasibleError, InputError, UnknownNameError


def asked(**changes: object) -> SimulateScenario:
    fields: dict[str, object] = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "workload": "chat", "rate_per_s": 4.0}
    return SimulateScenario(**{**fields, **changes})  # type: ignore[arg-type]


def resolved(**changes: object):  # type: ignore[no-untyped-def]
    scenario = asked(**changes)
    return resolve(scenario, workload_spec(scenario))


def test_an_engine_with_options_is_read_into_values() -> None:
    assert split_engine("vllm-v1") == ("vllm-v1", {})
    name, options = split_engine("x.py,a=1,b-c=0.5,d=true,e=word")
    assert name == "x.py"
    assert options == {"a": 1, "b_c": 0.5, "d": True, "e": "word"}
    for text in ("vllm-v1,a", "vllm-v1,=3", "vllm-v1,a="):
        with pytest.raises(InputError, match="--engine"):
            split_engine(text)


def test_targets_become_seconds() -> None:
    targets = targets_of(asked(ttft_ms=500.0, e2e_ms=2000.0, percentile=90.0))
    assert (targets.ttft_s, targets.tpot_s, targets.e2e_s, targets.percentile) == (0.5, None, 2.0, 90.0)


def test_the_memory_model_sizes_the_engine_and_kv_blocks_override_it() -> None:
    found, _, _ = resolved()
    assert found.config.num_blocks == found.memory.num_blocks - 1, "vLLM's null block holds nothing"
    assert found.deployment.settings.num_kv_blocks == found.memory.num_blocks
    given, _, _ = resolved(kv_blocks=9000, max_model_len=4096)
    assert given.config.num_blocks == 8999


def test_a_shortened_longest_sequence_is_said_and_served() -> None:
    found, workload, _ = resolved(gpu="L4", workload="long-context", rate_per_s=0.01, num_requests=200)
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    capacity_tokens = found.config.num_blocks * found.config.block_size
    assert longest <= capacity_tokens, "a preset is cut to what the server can hold"
    (note,) = [note for note in found.notes if "max length" in note]
    assert f"{found.memory.max_model_len:,}" in note
    assert "131,072" in note
    plain, _, _ = resolved()
    assert not [note for note in plain.notes if "max length" in note]


def test_a_gpu_without_bf16_runs_in_fp16_and_says_so() -> None:
    found, _, _ = resolved(gpu="T4", model="Qwen2.5-0.5B")
    assert found.deployment.precision == "fp16"
    assert any("fp16" in note for note in found.notes)


def test_the_arithmetic_is_spelt_out() -> None:
    found, _, _ = resolved(tp=2, pp=2, replicas=3)
    assert found.arithmetic == "12 GPUs = 3 replicas × TP 2 × PP 2"
    assert resolved()[0].arithmetic == "1 GPU = 1 replica × TP 1"


def test_what_would_not_start_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="TP 3 does not divide"):
        resolved(tp=3)
    with pytest.raises(InfeasibleError, match="GiB short"):
        resolved(model="Llama-3.1-405B", gpu="L4")


def test_an_engine_that_is_known_but_not_simulated_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plimsoll.api.checks.list_plugins", lambda _: ("vllm-v1",))
    with pytest.raises(InputError, match="not simulated yet; use vllm-v1"):
        resolved(engine="sglang")


def test_gpus_of_a_plan_are_types_with_limits() -> None:
    limits = _gpus("H100-SXM:4, l40s")
    assert [(limit.accelerator.id, limit.max_gpus) for limit in limits] == [("H100-SXM", 4), ("L40S", 8)]
    for text in ("H100-SXM:0", "H100-SXM:x", ":", ""):
        with pytest.raises(InputError):
            _gpus(text)
    with pytest.raises(UnknownNameError, match=r"--gpus: 'H100-SMX'.*did you mean H100-SXM"):
        _gpus("H100-SMX:8")


def test_a_plan_request_carries_every_field() -> None:
    request = plan_request(
        PlanScenario(
            model="Llama-3.1-8B", workload="chat", gpus="L4:2", users=7, think_s=3.0, budget_usd_per_hour=9.0,
            ttft_ms=800.0, percentile=95.0, precisions="bf16,fp8", token_budgets="512", tp="1,2", pp="1",
            max_num_seqs=64, prefix_hit_frac=0.3, spare=1, optimize="latency", top=2, seed=4, router="least-loaded",
        )
    )  # fmt: skip
    assert request.model.id == "meta-llama/Llama-3.1-8B"
    assert (request.users, request.think_s, request.rate_per_s) == (7, 3.0, None)
    assert (request.targets.ttft_s, request.targets.percentile) == (0.8, 95.0)  # type: ignore[union-attr]
    assert (request.precisions, request.token_budgets, request.tp, request.pp) == (
        ("bf16", "fp8"),
        (512,),
        (1, 2),
        (1,),
    )
    assert (request.settings.max_num_seqs, request.prefix_hit_frac, request.spare_replicas) == (64, 0.3, 1)
    assert (request.optimize, request.top, request.seed, request.router) == ("latency", 2, 4, "least-loaded")
    assert request.workload.seed == 4
    assert request.budget_usd_per_hour == 9.0


def test_a_start_from_command_becomes_a_deployment() -> None:
    request = plan_request(
        PlanScenario(
            model="Llama-3.1-8B", workload="chat", gpus="H100-SXM:8", ttft_ms=1000.0,
            start_from="vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 4 --max-num-batched-tokens 4096",
        )
    )  # fmt: skip
    start = request.starting_point
    assert start is not None
    assert (start.accelerator.id, start.parallelism.tp) == ("H100-SXM", 4)
    assert start.settings.max_num_batched_tokens == 4096


def test_results_are_frozen() -> None:
    result = plimsoll.simulate(
        model="Llama-3.1-8B", gpu="H100-SXM", prompt_tokens=10, output_tokens=3, rate_per_s=4, num_requests=5
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.wall_s = 0.0
    with pytest.raises(ValueError, match="read-only"):
        result.run.finish_s[0] = 0.0
    assert np.isfinite(result.run.finish_s).all()


def test_the_package_offers_what_it_names() -> None:
    assert sorted(plimsoll.__all__) == plimsoll.__all__
    for name in plimsoll.__all__:
        assert getattr(plimsoll, name)
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        plimsoll.plann  # noqa: B018
    for verb in (plimsoll.simulate, plimsoll.capacity, plimsoll.plan):
        assert "scenario" in inspect.signature(verb).parameters
