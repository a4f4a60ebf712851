"""Engine facts: defaults, versions, and which deployments would start."""

from __future__ import annotations

import dataclasses

import pytest

from plimsoll.catalog.accelerators import Accelerator, load_accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.device_memory import visible_memory_bytes
from plimsoll.catalog.engines import (
    Compatibility,
    check_compatibility,
    default_settings,
    list_engines,
    load_engine,
)
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, UnknownNameError
from plimsoll.core.units import GIB


@pytest.fixture(scope="module")
def llama() -> ModelSpec:
    return load_model("meta-llama/Llama-3.1-8B")


def check(engine: str, model: ModelSpec, gpu: str, precision: str, kv: str = "auto", **cut: int) -> Compatibility:
    return check_compatibility(load_engine(engine), model, load_accelerator(gpu), Parallelism(**cut), precision, kv)


def test_every_engine_file_loads_and_cites_its_sources() -> None:
    assert list_engines() == ("sglang", "trtllm", "vllm-v1")
    for name in list_engines():
        engine = load_engine(name)
        facts = [engine.memory.fact, engine.parallelism.fact, *engine.facts.values()]
        facts += [row.fact for row in (*engine.precisions, *engine.kv_precisions, *engine.vendors)]
        facts += [row.fact for row in engine.default_classes]
        facts += engine.model_notes.values()
        for fact in facts:
            assert fact.source.startswith("https://"), fact
            assert len(fact.date) == 10, fact
        assert "LlamaForCausalLM" in engine.architectures


def test_names_are_found_by_alias_and_version() -> None:
    assert load_engine("vLLM").id == "vllm-v1"
    assert load_engine("TensorRT-LLM").id == "trtllm"
    assert load_engine("vllm-v1@v0.19.0").version == "0.19.0"
    with pytest.raises(UnknownNameError, match="sglang"):
        load_engine("sglangg")
    with pytest.raises(InputError, match="version"):
        load_engine("vllm-v1@latest")


def test_figures_follow_the_version() -> None:
    old, new = load_engine("vllm-v1", "0.19.0"), load_engine("vllm-v1", "0.32.0")
    assert (old.gpu_memory_utilization, new.gpu_memory_utilization) == (0.90, 0.92)
    assert (old.memory.graphs_in_budget, new.memory.graphs_in_budget) == (False, True)
    v100 = load_accelerator("V100-SXM2-32GB")
    opt = load_model("facebook/opt-6.7b")
    assert check_compatibility(old, opt, v100, Parallelism(), "fp16").compute_precision == "fp16"
    with pytest.raises(InfeasibleError, match=r"compute capability 7\.5") as refusal:
        check_compatibility(new, opt, v100, Parallelism(), "fp16")
    assert refusal.value.constraint == "engine"


@pytest.mark.parametrize(
    ("gpu", "seats", "budget"),
    [("H100-SXM", 1024, 8192), ("H200", 1024, 8192), ("MI300X", 1024, 8192), ("A100-SXM-80GB", 256, 2048),
     ("A100-SXM-40GB", 256, 2048), ("L40S", 256, 2048), ("RTX-4090", 256, 2048)],
)  # fmt: skip
def test_vllm_defaults_by_gpu_class(gpu: str, seats: int, budget: int) -> None:
    resolved = default_settings(load_engine("vllm-v1"), load_accelerator(gpu), EngineSettings())
    assert (resolved.settings.max_num_seqs, resolved.settings.max_num_batched_tokens) == (seats, budget)
    assert resolved.settings.gpu_memory_utilization == 0.92
    assert resolved.settings.max_model_len is None
    assert "vllm" in resolved.origins["max_num_seqs"]


def test_given_settings_stay_and_their_origin_says_so(llama: ModelSpec) -> None:
    given = EngineSettings(max_num_seqs=64, gpu_memory_utilization=0.8, max_model_len=4096)
    resolved = default_settings(load_engine("vllm-v1"), load_accelerator("H100-SXM"), given, llama)
    assert resolved.settings.max_num_seqs == 64
    assert resolved.origins["max_num_seqs"] == resolved.origins["max_model_len"] == "given"
    assert resolved.settings.max_num_batched_tokens == 8192
    unbounded = default_settings(load_engine("vllm-v1"), load_accelerator("H100-SXM"), EngineSettings(), llama)
    assert unbounded.settings.max_model_len == llama.max_position == 131072


def test_a_default_budget_is_raised_to_the_seats_and_a_given_one_is_not() -> None:
    engine, gpu = load_engine("vllm-v1"), load_accelerator("L4")
    assert default_settings(engine, gpu, EngineSettings(max_num_seqs=4000)).settings.max_num_batched_tokens == 4000
    assert default_settings(engine, gpu, EngineSettings(max_num_batched_tokens=64)).settings.max_num_seqs == 64
    few = EngineSettings(max_num_seqs=2, max_model_len=100)
    assert default_settings(engine, gpu, few).settings.max_num_batched_tokens == 200
    both = EngineSettings(max_num_seqs=4000, max_num_batched_tokens=512)
    assert default_settings(engine, gpu, both).settings.max_num_batched_tokens == 512


def test_sglang_reserve_by_hand() -> None:
    # 512 + 8192 × 1.5 + 256 × 2 + 128 MiB = 13440 MiB on an H100 (above the floor of 10240).
    gpu = load_accelerator("H100-SXM")
    resolved = default_settings(load_engine("sglang"), gpu, EngineSettings())
    memory_mib = visible_memory_bytes(gpu) / 2**20
    assert resolved.settings.gpu_memory_utilization == round((memory_mib - 13440) / memory_mib, 3)
    assert resolved.settings.block_size == 1
    wide = default_settings(load_engine("sglang"), gpu, EngineSettings(), parallelism=Parallelism(tp=4))
    assert wide.settings.gpu_memory_utilization == round((memory_mib - 512 - 12288 - 1024 - 512) / memory_mib, 3)


@pytest.mark.parametrize(
    "settings",
    [
        EngineSettings(max_num_seqs=0),
        EngineSettings(max_num_batched_tokens=-1),
        EngineSettings(block_size=0),
        EngineSettings(gpu_memory_utilization=1.2),
        EngineSettings(gpu_memory_utilization=float("nan")),
        EngineSettings(num_kv_blocks=0),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: EngineSettings) -> None:
    with pytest.raises(InputError):
        default_settings(load_engine("vllm-v1"), load_accelerator("L4"), settings)


@pytest.mark.parametrize(
    ("engine", "gpu", "precision", "compute"),
    [
        ("vllm-v1", "H100-SXM", "fp8", "fp8"),
        ("vllm-v1", "L40S", "fp8", "fp8"),
        ("vllm-v1", "A100-SXM-80GB", "fp8", "bf16"),
        ("vllm-v1", "A100-SXM-80GB", "int8", "int8"),
        ("vllm-v1", "A100-SXM-80GB", "int4", "bf16"),
        ("vllm-v1", "T4", "int4", "fp16"),
        ("vllm-v1", "B200", "fp4", "fp4"),
        ("vllm-v1", "H100-SXM", "fp4", "bf16"),
        ("vllm-v1", "MI300X", "fp8", "fp8"),
        ("trtllm", "H100-SXM", "fp8", "fp8"),
        ("sglang", "A100-SXM-80GB", "fp8", "bf16"),
    ],
)
def test_compute_precision(llama: ModelSpec, engine: str, gpu: str, precision: str, compute: str) -> None:
    found = check(engine, llama, gpu, precision)
    assert found.compute_precision == compute
    assert bool([note for note in found.notes if "no compute gain" in note]) == (compute != precision)


@pytest.mark.parametrize(
    ("engine", "gpu", "precision", "kv", "constraint", "words"),
    [
        ("vllm-v1", "T4", "bf16", "auto", "precision", "use fp16"),
        ("vllm-v1", "T4", "fp16", "fp8", "precision", "fp8 KV cache"),
        ("vllm-v1", "B200", "int8", "auto", "precision", "use fp8"),
        ("vllm-v1", "MI300X", "int4", "auto", "precision", "possible there: bf16"),
        ("trtllm", "MI300X", "bf16", "auto", "engine", "it runs on nvidia"),
        ("trtllm", "T4", "fp16", "auto", "engine", "8.0 or higher"),
        ("trtllm", "A100-SXM-80GB", "fp8", "auto", "precision", "8.9"),
        ("sglang", "MI250X", "bf16", "auto", "engine", "cdna3"),
    ],
)
def test_refusals_say_what_to_do(
    llama: ModelSpec, engine: str, gpu: str, precision: str, kv: str, constraint: str, words: str
) -> None:
    with pytest.raises(InfeasibleError) as refusal:
        check(engine, llama, gpu, precision, kv)
    assert refusal.value.constraint == constraint
    assert words in str(refusal.value)


def test_the_cache_precision_is_resolved(llama: ModelSpec) -> None:
    assert check("vllm-v1", llama, "H100-SXM", "fp8").kv_precision == "bf16"
    assert check("vllm-v1", llama, "H100-SXM", "fp16").kv_precision == "fp16"
    assert check("vllm-v1", llama, "T4", "int4").kv_precision == "fp16"
    on_ampere = check("vllm-v1", llama, "A100-SXM-80GB", "bf16", "fp8")
    assert any("e5m2" in note for note in on_ampere.notes)


def test_divisibility(llama: ModelSpec) -> None:
    with pytest.raises(InfeasibleError, match=r"32 query heads.*use TP 1, 2, 4, 8, 16, 32"):
        check("vllm-v1", llama, "H100-SXM", "bf16", tp=3)
    with pytest.raises(InfeasibleError, match="PP 33 is above the 32 layers"):
        check("vllm-v1", llama, "H100-SXM", "bf16", pp=33)
    with pytest.raises(InfeasibleError, match="has no experts"):
        check("vllm-v1", llama, "H100-SXM", "bf16", tp=2, ep=2)
    replicated = check("vllm-v1", llama, "GB200", "bf16", tp=16)
    assert any("8 key-value heads: each is held by 2 GPUs" in note for note in replicated.notes)
    with pytest.raises(InputError, match="tp"):
        check("vllm-v1", llama, "H100-SXM", "bf16", tp=0)


def test_key_value_heads_divide_or_are_divided() -> None:
    qwen = load_model("Qwen/Qwen2.5-7B")  # 28 query heads, 4 key-value heads
    assert check("vllm-v1", qwen, "H100-SXM", "bf16", tp=4).notes == ()
    with pytest.raises(InfeasibleError, match="do not divide each other"):
        check("vllm-v1", qwen, "H100-SXM", "bf16", tp=7)


def test_int4_shards_hold_whole_groups() -> None:
    llama2 = load_model("meta-llama/Llama-2-7b-hf")  # 11008 / 4 = 2752 = 21.5 groups of 128
    assert check("vllm-v1", llama2, "H100-SXM", "int4", tp=2).checkpoint.startswith("an AWQ")
    with pytest.raises(InfeasibleError, match="quantisation group"):
        check("vllm-v1", llama2, "H100-SXM", "int4", tp=4)


def test_experts_are_spread_over_all_ranks_or_none_in_vllm() -> None:
    qwen = load_model("Qwen/Qwen3-30B-A3B")
    assert check("vllm-v1", qwen, "H100-SXM", "bf16", tp=2, dp=2, ep=4)
    with pytest.raises(InfeasibleError, match="use EP 1 or 4"):
        check("vllm-v1", qwen, "H100-SXM", "bf16", tp=4, ep=2)
    assert check("sglang", qwen, "H100-SXM", "bf16", tp=4, ep=2)
    with pytest.raises(InfeasibleError, match="does not divide"):
        check("sglang", qwen, "H100-SXM", "bf16", tp=4, ep=3)


def test_a_latent_cache_is_held_whole_and_machines_are_named() -> None:
    deepseek = load_model("deepseek-ai/DeepSeek-R1")
    found = check("vllm-v1", deepseek, "H100-SXM", "fp8", tp=8, pp=2)
    assert any("held whole by each of the 8" in note for note in found.notes)
    assert any("spans 2 machines of 8" in note for note in found.notes)
    assert found.checkpoint == ""
    assert any("another checkpoint" in note for note in check("vllm-v1", deepseek, "H200", "int4", tp=8).notes)


def test_unknown_models_are_refused_by_name(llama: ModelSpec) -> None:
    strange = dataclasses.replace(llama, architecture="StrangeForCausalLM", id="me/strange")
    with pytest.raises(InfeasibleError, match="StrangeForCausalLM"):
        check("vllm-v1", strange, "H100-SXM", "bf16")
    with pytest.raises(InputError, match="precision"):
        check("vllm-v1", llama, "H100-SXM", "fp7")
    with pytest.raises(InputError, match="kv_precision"):
        check("vllm-v1", llama, "H100-SXM", "bf16", "int4")


@pytest.mark.parametrize(
    ("engine", "model", "gpu"),
    [
        ("sglang", "Qwen/Qwen3-VL-30B-A3B-Instruct", "H100-SXM"),
        ("trtllm", "Qwen/Qwen3-VL-4B-Instruct", "H100-SXM"),
        ("trtllm", "Qwen/Qwen3.5-35B-A3B", "H200"),
        ("trtllm", "Qwen/Qwen2-57B-A14B", "H200"),
        ("trtllm", "moonshotai/Kimi-Linear-48B-A3B-Instruct", "H200"),
        ("trtllm", "mistralai/Mistral-Large-3-675B-Instruct-2512", "B200"),
        ("trtllm", "bigcode/starcoder2-15b", "H100-SXM"),
    ],
)
def test_models_that_an_engine_registers_are_served(engine: str, model: str, gpu: str) -> None:
    check(engine, load_model(model), gpu, "bf16")


def test_models_of_another_back_end_are_served_with_a_note() -> None:
    smol = load_model("HuggingFaceTB/SmolLM3-3B")
    assert any("_autodeploy" in note for note in check("trtllm", smol, "H100-SXM", "bf16").notes)
    starcoder = load_model("bigcode/starcoder2-15b")
    assert not any("_autodeploy" in note for note in check("trtllm", starcoder, "H100-SXM", "bf16").notes)
    with pytest.raises(InfeasibleError, match="SmolLM3ForCausalLM"):  # SGLang has no file for it
        check("sglang", smol, "H100-SXM", "bf16")


def test_notes_are_of_models_that_are_listed() -> None:
    for name in list_engines():
        assert set(load_engine(name).model_notes) <= load_engine(name).architectures


def test_catalogued_models_all_have_an_engine() -> None:
    from plimsoll.catalog.models import list_models

    known = frozenset().union(*(load_engine(name).architectures for name in list_engines()))
    assert not {name: load_model(name).architecture for name in list_models()
                if load_model(name).architecture not in known}  # fmt: skip


def test_visible_memory() -> None:
    assert visible_memory_bytes(load_accelerator("RTX-4090")) == pytest.approx(25_250_627_584, rel=1e-4)
    assert visible_memory_bytes(load_accelerator("A100-SXM-80GB")) == 79.25 * GIB
    nvl = load_accelerator("H100-NVL")  # a prefix of H100, but another size
    assert visible_memory_bytes(nvl) == pytest.approx(0.985 * nvl.memory_bytes)
    renamed: Accelerator = dataclasses.replace(nvl, id="X1")
    assert visible_memory_bytes(renamed) == pytest.approx(0.985 * nvl.memory_bytes)


@pytest.mark.parametrize(("engine", "default"), [("trtllm", 32), ("sglang", 1), ("vllm-v1", 16)])
def test_a_block_size_that_was_given_is_taken_also_where_it_is_anothers_default(engine: str, default: int) -> None:
    facts, gpu = load_engine(engine), load_accelerator("H100-SXM")
    own = default_settings(facts, gpu, EngineSettings())
    assert own.settings.block_size == default
    assert own.origins["block_size"] != "given"
    asked = default_settings(facts, gpu, EngineSettings(block_size=16))
    assert (asked.settings.block_size, asked.origins["block_size"]) == (16, "given")
