"""The later families of the catalogue: names that people type, shapes counted by hand, and configs that are refused."""

from __future__ import annotations

import pytest

from plimsoll.catalog import models
from plimsoll.catalog.architecture import Attention, DenseMlp, LatentAttention, ModelSpec, Moe, StateSpace
from plimsoll.catalog.configs import read_config
from plimsoll.catalog.counting import (
    active_params,
    attention_layers,
    kv_bytes_per_token,
    native_precision,
    num_params,
    state_bytes_per_sequence,
    weight_bytes,
)
from plimsoll.catalog.models import load_model, model_entry
from plimsoll.core.errors import InputError, UnknownNameError

# What people type, and the entry that answers: parameters in billions to three digits, as published.
TYPED = [
    ("microsoft/Phi-3.5-mini-instruct", "microsoft/Phi-3-mini-128k-instruct", 3.82),
    ("microsoft/Phi-3.5-MoE-instruct", "microsoft/Phi-3.5-MoE-instruct", 41.9),
    ("moonshotai/Kimi-K2-Thinking", "moonshotai/Kimi-K2-Thinking", 1026),
    ("moonshotai/Kimi-Linear-48B-A3B-Instruct", "moonshotai/Kimi-Linear-48B-A3B-Instruct", 49.1),
    ("MiniMaxAI/MiniMax-M2", "MiniMaxAI/MiniMax-M2.5", 229),
    ("MiniMaxAI/MiniMax-M2.7", "MiniMaxAI/MiniMax-M2.7", 229),
    ("MiniMaxAI/MiniMax-M1-80k", "MiniMaxAI/MiniMax-Text-01", 456),
    ("codellama/CodeLlama-7b-Instruct-hf", "codellama/CodeLlama-7b-Instruct-hf", 6.74),
    ("codellama/CodeLlama-13b-hf", "codellama/CodeLlama-13b-Instruct-hf", 13.0),
    ("meta-llama/CodeLlama-34b-Instruct-hf", "codellama/CodeLlama-34b-Instruct-hf", 33.7),
    ("CodeLlama-70b", "codellama/CodeLlama-70b-Instruct-hf", 69.0),
    ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen/Qwen2.5-Coder-1.5B-Instruct", 1.54),
    ("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", 7.62),
    ("Qwen/Qwen2.5-Coder-14B", "Qwen/Qwen2.5-14B-Instruct", 14.8),
    ("Qwen/Qwen2.5-Coder-32B-Instruct", "Qwen/Qwen2.5-32B-Instruct", 32.8),
    ("Qwen/QwQ-32B", "Qwen/QwQ-32B", 32.8),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "Qwen/Qwen2.5-14B", 14.8),
    ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", 8.19),
    ("CohereForAI/c4ai-command-r-plus", "CohereLabs/c4ai-command-r-plus", 104),
    ("CohereLabs/c4ai-command-a-03-2025", "CohereLabs/c4ai-command-a-03-2025", 111),
    ("CohereLabs/c4ai-command-r7b-12-2024", "CohereLabs/c4ai-command-r7b-12-2024", 8.03),
    ("CohereLabs/c4ai-command-r-v01", "CohereLabs/c4ai-command-r-v01", 35.0),
    ("mistralai/Magistral-Small-2506", "mistralai/Mistral-Small-3.2-24B-Instruct-2506", 23.6),
    ("mistralai/Devstral-Small-2505", "mistralai/Mistral-Small-3.2-24B-Instruct-2506", 23.6),
    ("mistralai/Devstral-Small-2-24B-Instruct-2512", "mistralai/Devstral-Small-2-24B-Instruct-2512", 23.6),
    ("mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2", 7.24),
    ("mistralai/Mistral-Large-3-675B-Instruct-2512", "mistralai/Mistral-Large-3-675B-Instruct-2512", 673),
    ("mistralai/Ministral-3-14B-Instruct-2512", "mistralai/Ministral-3-14B-Base-2512", 13.5),
    ("allenai/OLMo-2-0325-32B-Instruct", "allenai/OLMo-2-0325-32B-Instruct", 32.2),
    ("allenai/Olmo-3-7B-Think", "allenai/Olmo-3-7B-Instruct", 7.30),
    ("allenai/Olmo-3-32B-Think", "allenai/Olmo-3-32B-Think", 32.2),
    ("ibm-granite/granite-4.0-h-small", "ibm-granite/granite-4.0-h-small", 32.2),
    ("HuggingFaceTB/SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B", 3.08),
    ("baidu/ERNIE-4.5-21B-A3B-PT", "baidu/ERNIE-4.5-21B-A3B-PT", 21.8),
    ("baidu/ERNIE-4.5-300B-A47B-PT", "baidu/ERNIE-4.5-300B-A47B-PT", 300),
    ("tencent/Hunyuan-A13B-Instruct", "tencent/Hunyuan-A13B-Instruct", 80.0),
    ("nvidia/Llama-3_1-Nemotron-Ultra-253B-v1", "nvidia/Llama-3_1-Nemotron-Ultra-253B-v1", 253),
    ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4", "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", 550),
    ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-8B-Instruct", 8.19),
    ("Qwen/Qwen3-VL-30B-A3B-Thinking", "Qwen/Qwen3-VL-30B-A3B-Instruct", 30.5),
    ("Qwen/Qwen3-VL-235B-A22B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct", 235),
    ("google/gemma-3-270m-it", "google/gemma-3-270m-it", 0.268),
    ("xai-org/grok-2", "xai-org/grok-2", 270),
    ("LGAI-EXAONE/EXAONE-4.0-32B", "LGAI-EXAONE/EXAONE-4.0-32B", 32.0),
    ("deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", "deepseek-ai/DeepSeek-V2-Lite", 15.7),
    ("bigcode/starcoder2-15b", "bigcode/starcoder2-15b", 15.7),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.10),
    ("ByteDance-Seed/Seed-OSS-36B-Instruct", "ByteDance-Seed/Seed-OSS-36B-Instruct", 36.2),
    ("meituan-longcat/LongCat-Flash-Chat", "meituan-longcat/LongCat-Flash-Chat", 561),
    ("inclusionAI/Ling-1T", "inclusionAI/Ling-1T", 1000),
]


def small(**changes: object) -> dict[str, object]:
    """A small config with the fields that every family reads, with changes; None deletes a field."""
    config: dict[str, object] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "max_position_embeddings": 8192,
        **changes,
    }  # fmt: skip
    return {name: value for name, value in config.items() if value is not None}


def read(architecture: str, **changes: object) -> ModelSpec:
    return read_config(small(architectures=[architecture], **changes), model_id="test", origin="config.json")


def mixers(spec: ModelSpec) -> dict[object, int]:
    """Layers by what they are: the window of attention, or the class of another mixer."""
    found: dict[object, int] = {}
    for group in spec.groups:
        kind = group.mixer.window if isinstance(group.mixer, Attention) else type(group.mixer)
        found[kind] = found.get(kind, 0) + group.count
    return found


@pytest.mark.parametrize(("typed", "model_id", "billions"), TYPED)
def test_a_name_that_people_type_has_the_published_parameters(typed, model_id, billions):
    spec = models._from_catalogue(typed)
    assert spec is not None
    assert spec.id.removesuffix("-NVFP4") == model_id
    assert num_params(spec) == pytest.approx(billions * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("codellama-34b", 48 * 2 * 8 * 128 * 2),  # grouped heads, unlike 7B and 13B
        ("command-r-v01", 40 * 2 * 64 * 128 * 2),  # every head has its own keys and values: 1.25 MiB a token
        ("command-r-plus", 64 * 2 * 8 * 128 * 2),
        ("olmo-3-7b-instruct", 32 * 2 * 32 * 128 * 2),
        ("granite-4.0-h-small", 4 * 2 * 8 * 128 * 2),  # 4 attention layers of 40
        ("kimi-linear-48b-a3b-instruct", 7 * (512 + 64) * 2),  # 7 layers of latent attention of 27
        ("longcat-flash-chat", 56 * (512 + 64) * 2),  # two layers of latent attention in each of 28
        ("llama-3_1-nemotron-ultra-253b-v1", 64 * 2 * 8 * 128 * 2),  # 64 of 162 layers attend
        ("starcoder2-15b", 40 * 2 * 4 * 128 * 2),
        ("grok-2", 64 * 2 * 8 * 128 * 2),
        ("smollm3-3b", 36 * 2 * 4 * 128 * 2),
    ],
)
def test_kv_bytes_per_token_by_hand(name, bytes_per_token):
    assert kv_bytes_per_token(load_model(name), 2) == bytes_per_token


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("command-r-v01", {None: 40}),
        ("command-r7b", {4096: 24, None: 8}),
        ("c4ai-command-a-03-2025", {4096: 48, None: 16}),
        ("olmo-3-32b-think", {4096: 48, None: 16}),
        ("olmo-2-0325-32b-instruct", {None: 64}),
        ("exaone-4.0-32b", {4096: 48, None: 16}),
        ("gemma-3-270m", {512: 15, None: 3}),
        ("smollm3-3b", {None: 36}),
        ("granite-4.0-h-small", {StateSpace: 36, None: 4}),
        ("kimi-linear-48b-a3b-instruct", {StateSpace: 20, LatentAttention: 7}),
        ("mistral-7b-instruct-v0.2", {None: 32}),
        ("llama-3_1-nemotron-ultra-253b-v1", {None: 64, type(None): 98}),
    ],
)
def test_which_layers_see_how_far(name, kinds):
    assert mixers(load_model(name)) == kinds


def test_windows_fold_into_read_tokens():
    assert attention_layers(load_model("command-r7b")) == ((1, None), (3, 4096))
    assert attention_layers(load_model("kimi-linear-48b-a3b-instruct")) == ((1, None),)


@pytest.mark.parametrize(
    ("name", "state_bytes"),
    [
        # 20 layers, 32 heads of 128 × 128 in float32, and 3 columns of queries, keys and values in 16 bit.
        ("kimi-linear-48b-a3b-instruct", 20 * (4 * 32 * 128 * 128 + 2 * 3 * 3 * 4096)),
        # 36 layers, 128 heads of 64 with a state of 128, and 3 columns of 8192 + 2 · 128 channels.
        ("granite-4.0-h-small", 36 * 2 * (128 * 64 * 128 + 3 * (8192 + 256))),
    ],
)
def test_state_bytes_per_sequence_by_hand(name, state_bytes):
    assert state_bytes_per_sequence(load_model(name)) == state_bytes


@pytest.mark.parametrize(
    ("name", "moe_layers", "dense_layers", "experts", "top_k", "shared"),
    [
        ("phi-3.5-moe-instruct", 32, 0, 16, 2, 0),
        ("ernie-4.5-21b-a3b-pt", 27, 1, 64, 6, 3072),
        ("ernie-4.5-300b-a47b-pt", 51, 3, 64, 8, 0),
        ("hunyuan-a13b-instruct", 32, 0, 64, 8, 3072),
        ("granite-4.0-h-small", 40, 0, 72, 10, 1536),
        ("kimi-linear-48b-a3b-instruct", 26, 1, 256, 8, 1024),
        ("ling-1t", 76, 4, 256, 8, 2048),
        ("mistral-large-3", 58, 3, 128, 4, 4096),
        ("grok-2", 64, 0, 8, 2, 32_768),
        ("longcat-flash-chat", 28, 28, 512, 8, 12_288),
    ],
)
def test_experts_and_dense_layers(name, moe_layers, dense_layers, experts, top_k, shared):
    spec = load_model(name)
    moes = [group for group in spec.groups if isinstance(group.mlp, Moe)]
    assert sum(group.count for group in moes) == moe_layers
    assert sum(group.count for group in spec.groups if isinstance(group.mlp, DenseMlp)) == dense_layers
    found = {(group.mlp.num_experts, group.mlp.top_k, group.mlp.shared_intermediate_size) for group in moes}
    assert found == {(experts, top_k, shared)}


def test_parameters_of_phi_35_moe_by_hand():
    attention = 4096 * (4096 + 1024 + 1024 + 4096) + (4096 + 1024 + 1024 + 4096)  # matrices and biases
    experts = 16 * 3 * 4096 * 6400 + 4096 * 16
    norms = 2 * 2 * 4096
    head = 32_064 * 4096 + 32_064
    expected = 32 * (attention + experts + norms) + 32_064 * 4096 + head + 2 * 4096
    assert num_params(load_model("phi-3.5-moe-instruct")) == expected


def test_parameters_of_command_r7b_by_hand():
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14_336 + 4096  # one norm for both halves, no bias
    assert num_params(load_model("command-r7b")) == 32 * layer + 256_000 * 4096 + 4096


def test_parameters_of_grok_2_by_hand():
    attention = 8192 * (8192 + 1024 + 1024 + 8192)
    mlps = 3 * 8192 * 32_768 + 8 * 3 * 8192 * 16_384 + 8192 * 8
    assert num_params(load_model("grok-2")) == 64 * (attention + mlps + 4 * 8192) + 2 * 131_072 * 8192 + 8192


def test_norms_over_all_heads_have_a_weight_for_each_channel():
    olmo, plain = load_model("olmo-3-32b-think"), load_model("qwen2.5-32b")
    assert {group.mixer.qk_norm for group in olmo.groups} == {(40 + 8) * 128}
    assert {group.mixer.qk_norm for group in plain.groups} == {0}
    assert read("CohereForCausalLM", use_qk_norm=True).groups[0].mixer.qk_norm == (4 + 2) * 16
    assert read("CohereForCausalLM").groups[0].mixer.qk_norm == 0
    assert read("Exaone4ForCausalLM").groups[0].mixer.qk_norm == 2 * 16


def test_biases_where_the_config_says_so():
    def biases(spec: ModelSpec) -> tuple[bool, bool, bool]:
        group = spec.groups[0]
        return group.mixer.bias, group.mixer.output_bias, group.mlp.bias

    assert biases(read("SeedOssForCausalLM")) == (True, False, False)
    assert biases(read("SeedOssForCausalLM", attention_out_bias=True)) == (True, True, False)
    assert biases(read("InternLM3ForCausalLM")) == (False, False, False)
    assert biases(read("InternLM3ForCausalLM", qkv_bias=True, bias=True)) == (True, True, True)
    assert biases(read("Starcoder2ForCausalLM")) == (True, True, True)
    assert biases(read("Starcoder2ForCausalLM", use_bias=False)) == (False, False, False)
    assert biases(read("Ernie4_5ForCausalLM", use_bias=True)) == (True, True, True)


def test_internlm3_at_the_defaults_of_transformers():
    spec = read(
        "InternLM3ForCausalLM", hidden_size=4096, intermediate_size=10_240, num_hidden_layers=48,
        num_attention_heads=32, num_key_value_heads=2, head_dim=128, vocab_size=128_512,
    )  # fmt: skip
    layer = 4096 * (4096 + 256 + 256 + 4096) + 3 * 4096 * 10_240 + 2 * 4096
    assert num_params(spec) == 48 * layer + 2 * 128_512 * 4096 + 4096


def test_every_nth_layer_is_full_where_the_config_lists_none():
    assert mixers(read("Cohere2ForCausalLM", sliding_window=512)) == {512: 3, None: 1}
    assert mixers(read("Cohere2ForCausalLM", sliding_window=512, sliding_window_pattern=2)) == {512: 2, None: 2}
    assert mixers(read("Olmo3ForCausalLM")) == {4096: 3, None: 1}
    assert mixers(read("Exaone4ForCausalLM", sliding_window=512, sliding_window_pattern="LG")) == {512: 2, None: 2}
    assert mixers(read("Exaone4ForCausalLM", sliding_window=512, sliding_window_pattern=4)) == {512: 3, None: 1}
    assert mixers(read("Exaone4ForCausalLM")) == {None: 4}
    listed = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert mixers(read("Olmo3ForCausalLM", layer_types=listed)) == {4096: 1, None: 3}


def test_a_config_may_name_its_context_length_apart():
    assert read("CohereForCausalLM").max_position == 8192
    assert read("CohereForCausalLM", model_max_length=131_072).max_position == 131_072
    assert load_model("c4ai-command-a-03-2025").max_position == 262_144


def test_ernie_has_experts_from_one_layer_to_another():
    fields = {
        "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1,
    }  # fmt: skip

    def sparse(**changes: object) -> int:
        spec = read("Ernie4_5_MoeForCausalLM", **{**fields, **changes})
        return sum(group.count for group in spec.groups if isinstance(group.mlp, Moe))

    assert sparse() == 3
    assert sparse(moe_layer_end_index=2) == 2
    assert sparse(moe_layer_interval=2) == 2  # layers 1 and 3 of 0 … 3
    assert sparse(moe_layer_start_index=9) == 0


def test_lists_of_equal_values_are_one_value():
    fields = {"num_experts": 8, "moe_topk": [2] * 4, "moe_intermediate_size": [32] * 4}
    moe = read("HunYuanMoEV1ForCausalLM", **fields).groups[0].mlp
    assert (moe.top_k, moe.intermediate_size, moe.shared_intermediate_size) == (2, 32, 32)
    two = read("HunYuanMoEV1ForCausalLM", **{**fields, "num_shared_expert": [2] * 4}).groups[0].mlp
    assert two.shared_intermediate_size == 64


def test_granite_without_experts_is_dense():
    layers = ["mamba", "attention"] * 2
    fields = {"layer_types": layers, "mamba_n_heads": 8, "mamba_d_state": 16, "shared_intermediate_size": 256}
    spec = read("GraniteMoeHybridForCausalLM", num_local_experts=0, **fields)
    assert {group.mlp for group in spec.groups} == {DenseMlp(intermediate_size=256)}
    assert mixers(spec) == {StateSpace: 2, None: 2}
    assert mixers(read("GraniteMoeHybridForCausalLM", num_local_experts=0, **{**fields, "layer_types": None})) == {
        StateSpace: 4
    }


def test_grok_without_a_residual_layer_has_experts_alone():
    moe = read("Grok1ForCausalLM", num_local_experts=4, num_experts_per_tok=2).groups[0].mlp
    assert (moe.intermediate_size, moe.shared_intermediate_size) == (128, 0)


LONGCAT = {
    "ffn_hidden_size": 256, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_routed_experts": 8, "moe_topk": 3, "expert_ffn_hidden_size": 32,
}  # fmt: skip


def test_experts_that_do_nothing_lower_the_number_that_a_token_uses():
    assert read("LongcatFlashForCausalLM", **LONGCAT).groups[0].mlp.top_k == 3
    with_zeros = read("LongcatFlashForCausalLM", **LONGCAT, zero_expert_num=4)
    assert with_zeros.groups[0].mlp.top_k == 2
    # Their rows in the router, and their correction biases, in each of 4 layers.
    more = num_params(with_zeros) - num_params(read("LongcatFlashForCausalLM", **LONGCAT))
    assert more == 4 * (4 * 64 + 4)
    assert sum(group.count for group in with_zeros.groups) == 8


@pytest.mark.parametrize(
    ("architecture", "changes", "field"),
    [
        ("HunYuanMoEV1ForCausalLM", {"num_experts": 8, "moe_topk": [2, 4, 2, 2]}, "moe_topk"),
        ("HunYuanMoEV1ForCausalLM", {"num_experts": 8, "moe_topk": []}, "moe_topk"),
        ("HunYuanMoEV1ForCausalLM", {"num_experts": 8, "moe_topk": [2.5] * 4}, "moe_topk"),
        ("HunYuanDenseV1ForCausalLM", {"use_cla": True}, "use_cla"),
        ("KimiLinearForCausalLM", {"routed_expert_hidden_size": 32}, "model_type"),
        ("KimiLinearForCausalLM", {"mla_use_output_gate": True}, "model_type"),
        ("KimiLinearForCausalLM", {}, "linear_attn_config"),
        ("KimiLinearForCausalLM", {"linear_attn_config": {"num_heads": 4}}, "linear_attn_config"),
        ("GraniteMoeHybridForCausalLM", {"layer_types": ["mamba", "conv", "mamba", "mamba"]}, "layer_types"),
        ("GraniteMoeHybridForCausalLM", {"mamba_n_heads": 7}, "mamba_n_heads"),
        ("GraniteMoeHybridForCausalLM", {"mamba_n_heads": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("LongcatFlashForCausalLM", {**LONGCAT, "moe_topk": 9}, "moe_topk"),
        ("Grok1ForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok"),
        ("BailingMoeV2ForCausalLM", {"num_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 8},
         "num_experts_per_tok"),
        ("Ernie4_5_MoeForCausalLM", {"moe_num_experts": 2, "moe_k": 3, "moe_intermediate_size": 8},
         "num_experts_per_tok"),
        ("Exaone4ForCausalLM", {"sliding_window": 512, "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("Cohere2ForCausalLM", {"sliding_window_pattern": -1}, "sliding_window_pattern"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_its_field(architecture, changes, field):
    with pytest.raises(InputError, match=rf"field {field}"):
        read(architecture, **changes)


def test_checkpoints_that_are_stored_quantised():
    thinking, large, devstral = (
        load_model(name) for name in ("kimi-k2-thinking", "mistral-large-3", "devstral-small-2-24b-instruct-2512")
    )
    assert (native_precision(thinking), thinking.quantisation.applies_to) == ("int4", "experts")
    assert (native_precision(large), large.quantisation.applies_to) == ("fp8", "linear")
    assert native_precision(devstral) == "fp8"
    # 60 layers of 384 experts of three matrices: half a byte a weight, and 20 bits of scale and zero for 32 of them.
    routed = 60 * 384 * 3 * 7168 * 2048
    expected_bytes = routed * (4 + 20 / 32) / 8 + 2 * (num_params(thinking) - routed)
    assert weight_bytes(thinking, "int4") == pytest.approx(expected_bytes, rel=1e-12)
    assert weight_bytes(large, "fp8") == pytest.approx(num_params(large) * 1.003, rel=0.01)


def test_vision_towers_are_not_counted():
    for name, language in (("Qwen3-VL-8B", "Qwen3-8B"), ("Qwen3-VL-235B-A22B", "Qwen3-235B-A22B")):
        seeing, reading = load_model(f"Qwen/{name}-Instruct"), load_model(f"Qwen/{language}")
        assert num_params(seeing) == num_params(reading)
        assert seeing.groups == reading.groups
        assert seeing.max_position == 262_144


def test_active_parameters_of_mixtures_are_far_below_the_total():
    for name, billions in (("kimi-linear-48b-a3b-instruct", 3.5), ("ernie-4.5-21b-a3b-pt", 3.4), ("ling-1t", 51)):
        assert active_params(load_model(name)) == pytest.approx(billions * 1e9, rel=0.02)


@pytest.mark.parametrize("name", ["nothing-of-the-kind", "zzzz"])
def test_an_unknown_name_with_none_near_it_names_the_command_that_lists_all(name):
    with pytest.raises(UnknownNameError, match="plimsoll catalog models") as caught:
        load_model(name)
    assert len(str(caught.value)) < 200


def test_what_is_left_out_is_not_answered_by_something_else():
    for name in ("google/gemma-3n-E4B-it", "stepfun-ai/step3", "mistralai/Codestral-22B-v0.1", "inclusionAI/Ring-1T"):
        assert models._from_catalogue(name) is None


@pytest.mark.parametrize("model_id", [m for m in models.list_models() if "note" in model_entry(m)])
def test_a_note_says_where_a_shape_was_read(model_id):
    assert len(model_entry(model_id)["note"].split()) >= 5
    assert "http://" not in model_entry(model_id)["note"]


SPARSE = {
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "index_n_heads": 4, "index_head_dim": 8, "index_topk": 64, "num_hidden_layers": 8,
}  # fmt: skip


def own_indexers(**changes: object) -> int:
    """Layers with an indexer, of eight that all see what one selected."""
    spec = read("GlmMoeDsaForCausalLM", **{**SPARSE, **changes})
    mixers = [(group.count, group.mixer) for group in spec.groups]
    assert all(isinstance(mixer, LatentAttention) and mixer.index_topk == 64 for _, mixer in mixers)
    assert sum(count for count, _ in mixers) == spec.num_layers == 8
    return sum(count for count, mixer in mixers if isinstance(mixer, LatentAttention) and mixer.index_heads)


@pytest.mark.parametrize(
    ("keys", "indexers"),
    [
        ({}, 8),
        ({"index_topk_freq": 4}, 3),  # 0, 1, 5
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, 4),  # 0, 1, 2, 6
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, 4),  # 0, 2, 4, 6
        ({"index_topk_freq": 1, "index_skip_topk_offset": 0}, 8),
        ({"index_topk_pattern": "FSSSFSSS", "index_topk_freq": 1}, 2),
        ({"index_topk_pattern": None, "index_topk_freq": 1}, 8),
        ({"indexer_types": ["full", *["shared"] * 7], "index_topk_pattern": "FFFFFFFF"}, 1),
    ],
)
def test_layers_share_an_indexer(keys, indexers):
    """As GlmMoeDsaConfig of transformers reads them: the list, else the pattern, else max(i - offset + 1, 0) % freq."""
    assert own_indexers(**keys) == indexers


def test_a_shared_indexer_has_no_weights_and_no_keys():
    alone = read("GlmMoeDsaForCausalLM", **SPARSE)
    shared = read("GlmMoeDsaForCausalLM", **SPARSE, index_topk_freq=4)
    weights = 48 * 4 * 8 + 64 * (8 + 4) + 2 * 8  # queries from their latent, keys and weights of heads, the key's norm
    assert num_params(alone) - num_params(shared) == 5 * weights
    assert kv_bytes_per_token(alone, 2) - kv_bytes_per_token(shared, 2) == 5 * (8 + 4)


@pytest.mark.parametrize(
    "keys",
    [
        {"indexer_types": ["full"] * 7},
        {"indexer_types": ["shared"] * 8},
        {"indexer_types": ["full"] * 7 + ["half"]},
        {"indexer_types": "full"},
        {"index_topk_pattern": "FS"},
        {"index_topk_pattern": "FFFFFFFX"},
        {"index_topk_pattern": 7},
        {"index_topk_freq": 0},
        {"index_skip_topk_offset": -1},
        {"index_skip_topk_offset": 0, "index_topk_freq": 2},
    ],
)
def test_an_indexer_that_cannot_be_read_is_named(keys):
    name = next(iter(keys))
    with pytest.raises(InputError, match=f"field {name}"):
        own_indexers(**keys)
