"""Seats, tokens of a step and memory that an engine has by itself, in a simulation, a plan and the catalogue."""

from __future__ import annotations

import dataclasses

import pytest

from plimsoll.api.catalogue import entry
from plimsoll.api.simulation import simulate
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError
from plimsoll.planner.own_defaults import own_defaults_note, sized_with_own_defaults, with_own_defaults
from plimsoll.planner.parts import Parts
from plimsoll.planner.space import GpuLimit, ReplicaConfig
from tests.unit.planner_fakes import plan_request

CASE = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "prompt_tokens": 64, "output_tokens": 4, "rate_per_s": 4.0}
LOAD = {"num_requests": 4}


def settings_of(engine: str, **fields: object) -> EngineSettings:
    return simulate(**{**CASE, **LOAD, **fields}, engine=engine).resolved.deployment.settings


def test_an_engine_runs_with_the_defaults_of_its_own_code() -> None:
    first = settings_of("vllm-v0")
    assert (first.max_num_seqs, first.max_num_batched_tokens, first.max_model_len) == (256, 131072, 131072)
    assert first.gpu_memory_utilization == 0.9
    short = settings_of("vllm-v0", max_model_len=1000)
    assert (short.max_num_seqs, short.max_num_batched_tokens) == (256, 2048)
    assert settings_of("andes") == dataclasses.replace(first, options=settings_of("andes").options)
    chunked = settings_of("sarathi-serve")
    assert (chunked.max_num_seqs, chunked.max_num_batched_tokens) == (128, 512)
    assert settings_of("sarathi-serve,chunk_size=1024").max_num_batched_tokens == 1024


def test_the_engine_is_told_them_too() -> None:
    config = simulate(**CASE, **LOAD, engine="sarathi-serve").resolved.config
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (128, 512)


def test_what_is_given_holds() -> None:
    given = settings_of("vllm-v0", max_num_seqs=7, max_num_batched_tokens=4096, gpu_memory_utilization=0.8)
    assert (given.max_num_seqs, given.max_num_batched_tokens, given.gpu_memory_utilization) == (7, 4096, 0.8)
    assert settings_of("sarathi-serve", max_num_seqs=300).max_num_seqs == 300


def test_an_engine_without_any_has_those_of_the_gpu() -> None:
    assert settings_of("orca").max_num_seqs == settings_of("vllm-v1").max_num_seqs == 1024


def test_the_answer_says_so() -> None:
    notes = simulate(**CASE, **LOAD, engine="vllm-v0", max_model_len=4000, max_num_seqs=64).notes
    said = "vllm-v0 runs with defaults of its own: max_num_batched_tokens 4,000, gpu_memory_utilization 0.9"
    assert said in notes
    assert not any("defaults of its own" in note for note in simulate(**CASE, **LOAD, engine="vllm-v1").notes)
    everything = EngineSettings(max_num_seqs=1, max_num_batched_tokens=1, gpu_memory_utilization=0.5)
    assert own_defaults_note(everything, "vllm-v0", everything) == []


def test_step_and_longest_sequence_shrink_together_where_memory_is_short() -> None:
    found = settings_of("vllm-v0", gpu="RTX-4090")
    assert found.max_model_len is not None
    assert found.max_num_batched_tokens == found.max_model_len < 131072
    with pytest.raises(InfeasibleError):
        settings_of("vllm-v0", gpu="RTX-4090", max_model_len=found.max_model_len + 16)
    assert settings_of("vllm-v0", gpu="RTX-4090", max_model_len=found.max_model_len - 16)


@pytest.mark.parametrize(("memory", "longest"), [(4_572, 500), (6_121, 2_048), (100_001, 39_600), (1_000_000, 50_000)])
def test_the_longest_that_fits_is_found(memory: int, longest: int) -> None:
    """A made-up engine: a step takes 3 bytes for two tokens, the cache one for each, the model 50,000 at most.

    500 more than a step of 2,048 tokens takes; a step and a sequence of 2,048; 5/2 n + 1,000 = 100,000; no end.
    """

    def size(asked: EngineSettings) -> EngineSettings:
        assert asked.max_num_batched_tokens is not None
        room = memory - 1_000 - asked.max_num_batched_tokens * 3 // 2
        wanted = asked.max_model_len or min(50_000, room)
        if wanted > room or wanted < 1:
            raise InfeasibleError("no room", "memory")
        return dataclasses.replace(asked, max_model_len=wanted)

    found = sized_with_own_defaults(EngineSettings(), "vllm-v0", 50_000, size)  # type: ignore[arg-type, type-var]
    assert found.max_model_len == longest
    assert found.max_num_batched_tokens == max(longest, 2_048)  # type: ignore[attr-defined]
    memory = 4_000
    with pytest.raises(InfeasibleError):
        sized_with_own_defaults(EngineSettings(), "vllm-v0", 50_000, size)  # type: ignore[arg-type, type-var]


def test_a_plan_has_the_same_defaults() -> None:
    gpu = load_accelerator("H100-SXM")
    request = plan_request(gpus=(GpuLimit(accelerator=gpu, max_gpus=1),), engines=("vllm-v0",))
    config = ReplicaConfig(
        accelerator=gpu, parallelism=Parallelism(), precision="bf16", engine="vllm-v0", max_num_batched_tokens=None
    )
    settings = Parts(request).memory(config, 4096, 500, "bf16").settings
    assert (settings.max_num_seqs, settings.max_num_batched_tokens) == (256, 4096)
    budget = dataclasses.replace(config, max_num_batched_tokens=8192)
    assert Parts(request).memory(budget, 4096, 500, "bf16").settings.max_num_batched_tokens == 8192


def test_a_plan_leaves_stages_out_for_an_engine_of_one_stage() -> None:
    gpu = load_accelerator("H100-SXM")
    request = plan_request(gpus=(GpuLimit(accelerator=gpu, max_gpus=2),), engines=("vllm-v0", "orca"))
    config = ReplicaConfig(
        accelerator=gpu, parallelism=Parallelism(pp=2), precision="bf16", engine="vllm-v0", max_num_batched_tokens=None
    )
    parts = Parts(request)
    with pytest.raises(InfeasibleError, match="vllm-v0 is simulated on one pipeline stage only"):
        parts.compatibility(config)
    assert parts.compatibility(dataclasses.replace(config, engine="orca"))


def test_the_catalogue_prints_what_holds() -> None:
    said = entry("engines", "vllm-v0")["settings"]
    assert said == {
        "max_num_seqs": 256, "max_num_batched_tokens": "max(max_model_len, 2048)", "gpu_memory_utilization": 0.9,
    }  # fmt: skip
    assert entry("engines", "sarathi-serve")["settings"] == {
        "max_num_seqs": 128,
        "max_num_batched_tokens": "chunk_size",
    }
    untouched = EngineSettings(max_num_seqs=3)
    assert with_own_defaults(untouched, "orca", 100) is untouched
    assert with_own_defaults(untouched, "splitwise", 100) is untouched
