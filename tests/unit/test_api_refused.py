"""What `simulate`, `capacity` and `plan` say where requests are refused."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import plimsoll
from plimsoll.api.refused import refused_notes
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine import simulate as run_engine
from plimsoll.metrics import Targets
from plimsoll.planner.request import PlanRequest
from plimsoll.planner.search import SearchOptions, search
from plimsoll.workload.spec import WorkloadSpec
from tests.unit.planner_fakes import FakeParts, LineModel, plan_request

DEPLOYMENT: dict[str, Any] = {"model": "Llama-3.1-8B", "gpu": "H100-SXM"}
LONG: dict[str, Any] = {**DEPLOYMENT, "prompt_tokens": 9000, "output_tokens": 60, "engine": "trtllm"}
LOAD: dict[str, Any] = {"rate_per_s": 1.0, "num_requests": 50}
STEP = "do not fit into a step of 8,192 tokens: rejected; raise --max-num-batched-tokens or use"


def said(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if "rejected" in note]


def test_a_step_that_is_too_short_is_not_a_server_that_is() -> None:
    assert said(plimsoll.simulate(**LONG, **LOAD).notes) == [
        f"trtllm: 50 of 50 prompts {STEP} enable_chunked_context=true"
    ]


@pytest.mark.parametrize("more", [{"max_num_batched_tokens": 9000}, {"engine": "trtllm,enable_chunked_context=true"}])
def test_both_remedies_work(more: dict[str, Any]) -> None:
    result = plimsoll.simulate(**{**LONG, **LOAD, **more})
    assert result.run.finished.all()
    assert said(result.notes) == []


def test_reasons_are_counted_apart() -> None:
    workload = Workload(
        arrival_s=np.arange(6.0),
        prompt_tokens=np.array([500, 1500, 2999, 3000, 9000, 100]),
        output_tokens=np.array([10, 10, 1, 1, 10, 10]),
    )
    config = EngineConfig(policy="trtllm", num_blocks=500, max_num_batched_tokens=1000, max_model_len=3000)
    run = run_engine(workload, config, LineModel(1e-3, 1e-5, 1e-5, 0.0))
    kind: Any = SimpleNamespace(config=config, memory=SimpleNamespace(max_model_len=3000))
    roomy: Any = SimpleNamespace(
        config=dataclasses.replace(config, max_model_len=8000, max_num_batched_tokens=1400),
        memory=SimpleNamespace(max_model_len=8000),
    )
    expected = [
        "2 of 6 requests are longer than the server takes (3000 tokens): rejected",
        f"trtllm: 2 of 6 prompts {STEP.replace('8,192', '1,000')} enable_chunked_context=true",
    ]
    assert refused_notes(run, workload, [kind]) == expected
    assert refused_notes(run, workload, [roomy, kind]) == expected, "the smallest of several kinds decides"


def test_a_run_that_was_cut_counts_who_was_sent() -> None:
    fields = {**DEPLOYMENT, "engine": "trtllm", "workload": "long-context", "rate_per_s": 2.0, "num_requests": 200}
    result = plimsoll.simulate(**fields, max_num_batched_tokens=4096, duration_s=60.0)
    rejected = result.run.status == 2
    assert 0 < rejected.sum() < len(result.run) < 200
    by_step = int((rejected & (result.run.prompt_tokens > 4096)).sum())
    assert f"{by_step} of {len(result.run)} prompts do not fit into a step of 4,096" in said(result.notes)[-1]
    assert by_step == rejected.sum()


def test_another_rule_is_named_as_one_of_memory() -> None:
    fields = {**DEPLOYMENT, "engine": "llamacpp,parallel=64", "prompt_tokens": 9000, "output_tokens": 60}
    (note,) = said(plimsoll.simulate(**fields, **LOAD).notes)
    assert note.startswith("llamacpp: 50 of 50 requests need more memory than its rule gives to one: rejected;")


def test_a_capacity_says_that_its_probes_were_refused() -> None:
    fields = {"ttft_ms": 5000.0, "num_seeds": 1, "num_requests": 100}
    answer = plimsoll.capacity(**LONG, **fields)
    (note,) = said(answer.notes)
    assert note == f"trtllm: 100 of 100 prompts {STEP} enable_chunked_context=true (in one of the probes)"
    assert answer.result.max_load == 0
    assert note in answer.to_json_dict()["notes"]
    chunked = plimsoll.capacity(**{**LONG, "engine": "trtllm,enable_chunked_context=true"}, **fields)
    assert chunked.result.max_load > 0
    assert said(chunked.notes) == []


def trtllm(**fields: Any) -> PlanRequest:
    defaults: dict[str, Any] = {
        "engines": ("trtllm",),
        "workload": WorkloadSpec(prompt_tokens=3000, output_tokens=60, rate_per_s=1.0),
        "targets": Targets(ttft_s=5.0),
        "token_budgets": (1024, 2048),
    }
    return plan_request(**{**defaults, **fields})


def test_a_plan_leaves_out_who_refuses_the_requests() -> None:
    request = trtllm(token_budgets=(1024, 2048, 4096))
    result = search(request, SearchOptions(parts=FakeParts(request), num_workers=1))
    assert result.top_cost
    assert all(plan.deployment.settings.max_num_batched_tokens == 4096 for plan in result.top_cost)
    refused = [rejection for rejection in result.rejected if rejection.kind == "length"]
    assert {rejection.config.rsplit(" ", 1)[1] for rejection in refused} == {"1024", "2048"}
    assert not any(rejection.simulated for rejection in refused)
    assert "prompts up to 3,000 tokens do not fit into a step of 1,024, so trtllm refuses all" in refused[0].reason


def test_a_plan_that_nobody_takes_says_what_would_do() -> None:
    request = trtllm()
    result = search(request, SearchOptions(parts=FakeParts(request), num_workers=1))
    assert not result.top_cost
    (relaxation,) = result.relaxations
    assert relaxation.text.startswith("No candidate takes these requests: prompts up to 3,000 tokens")
    assert "a step of 2,048" in relaxation.text, "the largest that was tried"
    assert "eight times the GPUs" not in relaxation.text


def test_an_engine_that_cuts_prompts_is_not_left_out() -> None:
    request = trtllm(engines=("vllm-v1",))
    result = search(request, SearchOptions(parts=FakeParts(request), num_workers=1))
    assert result.top_cost
    assert not any(rejection.kind == "length" for rejection in result.rejected)
