"""A plan with composed step models: compatibility, memory and seconds are those of the composition."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from plimsoll.api.planning import plan_request
from plimsoll.api.scenario import PlanScenario
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.perf.compositions import build_composed
from plimsoll.planner.parts import Parts
from plimsoll.planner.space import ReplicaConfig


def parts(step_model: str, **fields: Any) -> Parts:
    asked = PlanScenario(
        model="Llama-3.1-8B", gpus="H100-SXM:2", workload="chat", ttft_ms=1000.0, step_model=step_model, **fields
    )
    return Parts(plan_request(asked))


def config(gpu: str = "H100-SXM", precision: str = "bf16") -> ReplicaConfig:
    return ReplicaConfig(
        accelerator=load_accelerator(gpu),
        parallelism=Parallelism(),
        precision=precision,
        engine="vllm-v1",
        max_num_batched_tokens=2048,
    )


def memory(step_model: str, longest: int = 8192) -> Any:
    return parts(step_model).memory(config(), longest, 1000, "bf16")


def test_the_cache_is_sized_as_composed() -> None:
    plain = memory("roofline")
    assert memory("roofline+h2o,ratio=0.25").num_blocks == pytest.approx(4 * plain.num_blocks, abs=4)
    smaller = memory("roofline+awq")
    assert smaller.weight_bytes < 0.4 * plain.weight_bytes
    assert smaller.num_blocks > plain.num_blocks
    bound = memory("roofline+kv_offload,share=0.9,capacity_gib=20")
    assert bound.num_blocks < plain.num_blocks
    assert "20 GiB of cpu" in bound.notes[-1]


def test_a_cache_below_the_longest_sequence_is_refused() -> None:
    with pytest.raises(InfeasibleError, match=r"hold 64 blocks.*a sequence of 8,192 tokens needs more"):
        memory("roofline+kv_offload,capacity_gib=0.125")


def test_steps_are_those_of_the_composition() -> None:
    planned = parts("roofline+h2o,ratio=0.2+nanoflow")
    model = planned.step_model(config(), "bf16")
    alone = build_composed(planned.request.step_model, planned._wanted(config(), "bf16"))
    for step in ((0, 0, 0, 0, 0, 8, 8000), (512, 1, 512 * 513 // 2, 0, 1, 30, 60_000)):
        assert model.step_s(*step) == alone.step_s(*step)
    slower = parts("roofline").step_model(config(), "bf16")
    assert model.step_s(0, 0, 0, 0, 0, 30, 900_000) < 0.5 * slower.step_s(0, 0, 0, 0, 0, 30, 900_000)
    assert "h2o, nanoflow" in planned.notes["compositions"]


def test_workers_get_the_compositions() -> None:
    sent = pickle.loads(pickle.dumps(parts("roofline+h2o,ratio=0.2")))
    model = sent.step_model(config(), "bf16")
    assert [entry["name"] for entry in model.describe()["compositions"]] == ["h2o"]


def test_what_the_engine_cannot_run_is_refused_and_the_rest_noted() -> None:
    with pytest.raises(InfeasibleError, match="no precision int8 on B200"):
        parts("roofline+smoothquant").compatibility(config("B200"))
    with pytest.raises(InfeasibleError, match="these are fp8"):
        parts("roofline+awq").compatibility(config(precision="fp8"))
    fits = parts("roofline+awq").compatibility(config())
    assert any("AWQ" in note for note in fits.notes)
    assert parts("roofline+h2o").compatibility(config()) == parts("roofline").compatibility(config())


def test_bad_names_are_refused_before_the_search() -> None:
    for step_model in ("roofline+", "roofline+hh2o", "roofline+h2o+h2o"):
        with pytest.raises(InputError):
            parts(step_model)
    with pytest.raises(InputError, match="simulate or study"):
        parts("roofline", engines="vllm-v1,flexgen")
