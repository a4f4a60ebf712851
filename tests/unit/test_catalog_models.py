"""The model catalogue: every entry against its published figures, and every way to name a model."""

from __future__ import annotations

import csv
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from plimsoll.catalog import models
from plimsoll.catalog.architecture import Attention, LatentAttention, Moe, StateSpace
from plimsoll.catalog.configs import read_config, supported_architectures
from plimsoll.catalog.counting import active_params, native_precision, num_params
from plimsoll.catalog.models import list_models, load_model, model_entry
from plimsoll.core.errors import InputError, UnknownNameError

ALL = list_models()
REQUIRED = [
    "chatglm3-6b", "qwen2-7b", "opt-6.7b", "opt-13b", "opt-30b", "opt-66b", "opt-175b", "llama-2-7b", "llama-2-13b",
    "llama-2-70b", "llama-3-8b", "llama-3-70b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.2-1b",
    "llama-3.2-3b", "llama-3.3-70b", "llama-4-scout", "llama-4-maverick", "mistral-7b-v0.1", "mistral-7b-v0.3",
    "mistral-nemo", "mistral-small-3", "mistral-large-2", "mixtral-8x7b-v0.1", "mixtral-8x22b-v0.1", "yi-34b",
    "falcon-7b", "falcon-40b", "falcon-180b", "qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b", "qwen2.5-72b", "qwen3-0.6b",
    "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b",
    "qwen3-next-80b-a3b", "qwen3-coder-480b-a35b", "deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "deepseek-r1",
    "deepseek-v3.1", "deepseek-v3.2", "gpt-oss-20b", "gpt-oss-120b", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b",
    "gemma-3-27b", "gemma-2-9b", "gemma-2-27b", "phi-3-mini", "phi-3-medium", "phi-4", "glm-4-9b", "glm-4.5",
    "glm-4.5-air", "kimi-k2", "nemotron-h-8b-base-8k", "nemotron-h-56b-base-8k", "minimax-m2", "minimax-text-01",
]  # fmt: skip
# Every model that the validation suites' public measurements name: ML.ENERGY's, and InferenceX's as sampled by NVIDIA.
MEASURED = [
    "Qwen/Qwen3-14B", "Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B-Thinking-2507",
    "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Thinking-2507",
    "Qwen/Qwen3-32B", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
    "deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-V3.1", "google/gemma-3-12b-it", "google/gemma-3-27b-it",
    "meta-llama/Llama-3.1-405B-Instruct", "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2", "openai/gpt-oss-120b", "MiniMaxAI/MiniMax-M2.5", "Qwen/Qwen3-235B-A22B-FP8",
    "Qwen/Qwen3.5-397B-A17B", "deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.1-70B",
    "moonshotai/Kimi-K2.5", "nvidia/DeepSeek-R1-NVFP4", "nvidia/DeepSeek-V3.1-NVFP4",
    "nvidia/Llama-3.1-8B-Instruct-FP8", "nvidia/Qwen3-32B-NVFP4", "zhipuai/GLM-5",
]  # fmt: skip


def plain_config(**changes: object) -> dict[str, object]:
    """Llama-3.1-8B's shape as a Hugging Face config, with changes; None deletes a field."""
    config = {**model_entry("meta-llama/Llama-3.1-8B")["config"], **changes}
    return {name: value for name, value in config.items() if value is not None}


def read(**changes: object):
    return read_config(plain_config(**changes), model_id="test", origin="config.json")


def test_the_catalogue_is_large_enough_and_holds_what_was_promised():
    assert len(ALL) >= 45
    assert [name for name in REQUIRED if models._from_catalogue(name) is None] == []


def test_every_measured_model_is_in_the_catalogue():
    assert [name for name in MEASURED if models._from_catalogue(name) is None] == []


def test_every_model_of_the_shared_measurements_is_in_the_catalogue(shared_data):
    with (shared_data / "ml-energy" / "llm_text.csv").open(newline="") as stream:
        names = {row["model"] for row in csv.DictReader(stream)}
    assert [name for name in sorted(names) if models._from_catalogue(name) is None] == []


@pytest.mark.parametrize("model_id", ALL)
def test_computed_parameters_are_within_one_percent_of_the_published(model_id):
    spec = load_model(model_id)
    assert spec.published_params is not None
    assert num_params(spec) == pytest.approx(spec.published_params, rel=0.01)


def test_most_entries_match_an_exact_published_count_to_the_last_parameter():
    exact = [model_id for model_id in ALL if num_params(load_model(model_id)) == load_model(model_id).published_params]
    assert len(exact) >= 80


@pytest.mark.parametrize("model_id", [m for m in ALL if model_entry(m)["published_active_params"]])
def test_active_parameters_are_within_five_percent_of_the_published(model_id):
    spec = load_model(model_id)
    excluded = model_entry(model_id).get("published_active_excludes", [])
    active = active_params(spec, with_embedding="embedding" not in excluded, with_head="head" not in excluded)
    assert active == pytest.approx(spec.published_active_params, rel=0.05)
    assert active < num_params(spec)


@pytest.mark.parametrize("model_id", ALL)
def test_an_entry_names_its_sources(model_id):
    entry = model_entry(model_id)
    assert set(entry) - {"published_active_excludes", "note"} == {
        "id", "aliases", "source", "date", "published_params", "published_active_params", "published_counts",
        "published_source", "config",
    }  # fmt: skip
    assert entry["source"].startswith("https://")
    assert entry["published_source"].startswith("https://")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry["date"])
    assert entry["published_counts"]
    assert isinstance(entry["published_params"], int)
    assert entry["published_active_params"] is None or isinstance(entry["published_active_params"], int)
    assert set(entry.get("published_active_excludes", [])) <= {"embedding", "head"}
    spec = load_model(model_id)
    assert (spec.id, spec.source, spec.date) == (model_id, entry["source"], entry["date"])
    assert spec.architecture in entry["config"]["architectures"]


def test_ids_and_aliases_are_unique_after_normalising():
    names = Counter(
        key
        for model_id in ALL
        for key in {
            form
            for name in (model_id, *model_entry(model_id)["aliases"])
            for form in (models._plain(name), models._plain(name.rpartition("/")[2]))
        }
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_each_file_is_named_after_its_model():
    for file in models.DATA.glob("*.json"):
        name = json.loads(file.read_text())["id"].rpartition("/")[2].lower()
        assert file.stem == re.sub(r"[^a-z0-9.]+", "-", name)


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("LLAMA 3.1 8B", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
        ("Llama-2-7B", "meta-llama/Llama-2-7b-hf"),
        ("google/gemma-3-27b-pt", "google/gemma-3-27b-it"),
        ("Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1"),
        ("unsloth/phi-4", "microsoft/phi-4"),
        ("Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("zai-org/chatglm3-6b", "THUDM/chatglm3-6b"),
    ],
)
def test_a_model_goes_by_many_names(name, model_id):
    assert load_model(name).id == model_id


@pytest.mark.parametrize(
    ("name", "model_id", "precision"),
    [
        ("Qwen/Qwen3-32B-FP8", "Qwen/Qwen3-32B-FP8", "fp8"),
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", "Qwen/Qwen2.5-72B-Instruct-AWQ", "int4"),
        ("Qwen2.5-72B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-72B-Instruct-INT8", "int8"),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-ai/DeepSeek-R1-NVFP4", "fp4"),
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w4a16", "meta-llama/Llama-3.1-70B-W4A16", "int4"),
        ("openai/gpt-oss-20b-BF16", "openai/gpt-oss-20b-BF16", "bf16"),
    ],
)
def test_a_word_in_the_name_derives_a_quantised_copy_and_says_so(name, model_id, precision):
    spec = load_model(name)
    assert (spec.id, native_precision(spec)) == (model_id, precision)
    assert "derived from the name" in spec.source


def test_a_checkpoint_that_is_quantised_already_keeps_its_own_quantisation():
    assert load_model("deepseek-ai/DeepSeek-V3-FP8") == load_model("deepseek-ai/DeepSeek-V3")
    assert load_model("gpt-oss-120b-mxfp4").quantisation.applies_to == "experts"


def test_loading_from_cold_is_quick():
    def cold_s() -> float:
        for cached in (models._entries, models._index, models._spec_of):
            cached.cache_clear()
        start_s = time.perf_counter()
        load_model("qwen3-32b")
        return time.perf_counter() - start_s

    assert min(cold_s() for _ in range(5)) < 0.02


def test_an_unknown_name_lists_the_closest():
    with pytest.raises(UnknownNameError, match=r"Llama-3\.1-8B"):
        load_model("lama-3.1-8b")


@pytest.mark.parametrize("typed", ["Qwen3-VL", "qwen3 vl", "Qwen/Qwen3-VL", "3-VL"])
def test_names_that_hold_what_was_typed_come_before_those_spelt_like_it(typed):
    with pytest.raises(UnknownNameError) as caught:
        load_model(typed)
    found = str(caught.value).partition("did you mean ")[2].partition("?")[0].split(", ")
    assert len(found) == 4
    assert all("Qwen3-VL-" in name for name in found)


def test_names_that_begin_with_what_was_typed_come_first():
    with pytest.raises(UnknownNameError) as caught:
        load_model("Llama-3.")
    found = str(caught.value).partition("did you mean ")[2].partition("?")[0].split(", ")
    assert all(name.startswith("Llama-3.") for name in found)


def test_a_local_file_or_its_folder_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(plain_config()))
    from_file, from_folder = load_model(str(tmp_path / "config.json")), load_model(str(tmp_path))
    assert num_params(from_file) == num_params(from_folder) == 8_030_261_248
    assert from_file.source == str(tmp_path / "config.json")
    assert from_file.published_params is None


def test_the_quantisation_file_of_modelopt_is_read_beside_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(plain_config()))
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert load_model(str(tmp_path)).quantisation.name == "nvfp4"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not json", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "one JSON object"),
        (b"{}", "architectures"),
        (b'{"architectures": ["LlamaForCausalLM"]}', "num_hidden_layers"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (models.LARGEST_CONFIG_BYTES + 1), "at most"),
    ],
)
def test_a_broken_config_is_refused_in_one_line(tmp_path, content, says):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        load_model(str(file))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize(
    "name", ["", "./nowhere", "/dev/null", "~nobody-here/x.json", "a\0b", "./a\0b.json", "x" * 5000]
)
def test_names_and_paths_that_lead_nowhere_are_refused(name):
    with pytest.raises(InputError):
        load_model(name)


def test_a_hub_id_is_fetched_and_failures_are_one_line(monkeypatch, tmp_path):
    import huggingface_hub

    file = tmp_path / "config.json"
    file.write_text(json.dumps(plain_config()))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_a, **_k: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_a, **_k: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_a, **_k: str(file))
    spec = load_model("somebody/some-new-model")
    assert (spec.id, num_params(spec)) == ("somebody/some-new-model", 8_030_261_248)

    def no_network(*_a: object, **_k: object) -> str:
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_network)
    with pytest.raises(UnknownNameError, match="cannot be reached: ConnectionError") as caught:
        load_model("meta-lama/Llama-3.1-9B")
    assert "\n" not in str(caught.value)
    assert "meta-llama/Llama-3.1-8B" in str(caught.value)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_a, **_k: str(file))
    assert load_model("somebody/in-the-cache").hidden_size == 4096


def test_an_architecture_that_is_not_understood_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="MegatronForCausalLM") as caught:
        read(architectures=["MegatronForCausalLM"])
    for architecture in supported_architectures():
        assert architecture in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", -1),
        ("hidden_size", float("nan")),
        ("hidden_size", 10**12),
        ("hidden_size", "4096"),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**6),
        ("num_attention_heads", True),
        ("num_key_value_heads", 5),
        ("vocab_size", None),
        ("vocab_size", 1.5),
        ("intermediate_size", [14336]),
        ("tie_word_embeddings", "yes"),
        ("quantization_config", "fp8"),
        ("quantization_config", {"quant_method": "magic"}),
        ("text_config", 3),
        ("architectures", "LlamaForCausalLM"),
    ],
)
def test_an_absurd_field_is_named_with_its_file(field, value):
    with pytest.raises(InputError) as caught:
        read(**{field: value})
    assert "config.json" in str(caught.value)
    assert (field if field != "quantization_config" or value == "fp8" else "quant_method") in str(caught.value)


def test_a_whole_number_written_as_a_float_is_fine():
    assert read(head_dim=128.0).groups[0].mixer.head_dim == 128


@pytest.mark.parametrize(
    ("config", "method", "bits", "applies_to"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8 + 32 / 128**2, "linear"),
        ({"quant_method": "fbgemm_fp8"}, "fp8", 8, "linear"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", 4 + 20 / 128, "linear"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8", 8, "linear"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, "fp4", 4.25, "experts"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, "fp4", 4.5, "linear"),
        ({"quant_algo": "FP8", "exclude_modules": ["lm_head"]}, "fp8", 8, "linear"),
        (
            {"quant_algo": "NVFP4", "exclude_modules": [f"model.layers.{n}.self_attn.q_a_proj" for n in range(61)]},
            "fp4", 4.5, "mlp",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
                "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
            },
            "int4", 4 + 20 / 32, "experts",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8", 8, "linear",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", 4.5, "linear"),
    ],
)  # fmt: skip
def test_every_dialect_of_quantisation(config, method, bits, applies_to):
    stored = read(quantization_config=config).quantisation
    assert (stored.method, stored.bits_per_weight, stored.applies_to) == (method, pytest.approx(bits), applies_to)


def test_layer_kinds_of_mixed_models():
    def kinds(name: str) -> dict[object, int]:
        found: dict[object, int] = {}
        for group in load_model(name).groups:
            mixer = group.mixer
            kind = mixer.window if isinstance(mixer, Attention) else type(mixer)
            found[kind] = found.get(kind, 0) + group.count
        return found

    assert kinds("gpt-oss-20b") == {128: 12, None: 12}
    assert kinds("gemma-3-27b") == {1024: 52, None: 10}
    assert kinds("gemma-2-9b") == {4096: 21, None: 21}
    assert kinds("llama-4-scout") == {8192: 36, None: 12}
    assert kinds("mistral-7b-v0.1") == {4096: 32}
    assert kinds("mistral-7b-v0.3") == {None: 32}
    assert kinds("qwen3-next-80b-a3b") == {StateSpace: 36, None: 12}
    assert kinds("nemotron-h-8b-base-8k") == {StateSpace: 24, type(None): 24, None: 4}
    assert kinds("jamba-v0.1") == {StateSpace: 28, None: 4}
    assert kinds("deepseek-v3") == {LatentAttention: 61}


@pytest.mark.parametrize(
    ("name", "num_moe_layers", "num_experts", "top_k"),
    [
        ("mixtral-8x7b-v0.1", 32, 8, 2),
        ("deepseek-v3", 58, 256, 8),
        ("deepseek-v2-lite", 26, 64, 6),
        ("llama-4-maverick", 24, 128, 1),
        ("llama-4-scout", 48, 16, 1),
        ("glm-4.5", 89, 160, 8),
        ("kimi-k2", 60, 384, 8),
        ("jamba-v0.1", 16, 16, 2),
    ],
)
def test_dense_layers_among_experts(name, num_moe_layers, num_experts, top_k):
    groups = [group for group in load_model(name).groups if isinstance(group.mlp, Moe)]
    assert sum(group.count for group in groups) == num_moe_layers
    assert {(group.mlp.num_experts, group.mlp.top_k) for group in groups} == {(num_experts, top_k)}


def test_windows_that_never_bind_are_none():
    assert read(architectures=["MistralForCausalLM"], sliding_window=131_072).groups[0].mixer.window is None
    assert read(architectures=["Qwen2ForCausalLM"], sliding_window=4096).groups[0].mixer.window is None
    upper = read(architectures=["Qwen2ForCausalLM"], sliding_window=4096, use_sliding_window=True, max_window_layers=8)
    assert [(group.count, group.mixer.window) for group in upper.groups] == [(8, None), (24, 4096)]


def test_a_multimodal_config_gives_its_language_model():
    nested = {"architectures": ["Mistral3ForConditionalGeneration"], "vision_config": {"hidden_size": 1}}
    inner = {name: value for name, value in plain_config().items() if name != "architectures"}
    spec = read_config({**nested, "text_config": inner}, model_id="test", origin="config.json")
    assert num_params(spec) == 8_030_261_248


def test_no_file_of_the_catalogue_names_a_path_of_a_machine():
    for file in Path(models.DATA).glob("*.json"):
        assert "/home/" not in file.read_text()
        assert "/tmp/" not in file.read_text()
