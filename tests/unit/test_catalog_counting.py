"""Weights and cache bytes against arithmetic done by hand."""

from __future__ import annotations

import dataclasses

import pytest

from plimsoll.catalog.counting import (
    active_params,
    attention_layers,
    elements_per_read_token,
    kv_bytes_per_token,
    kv_layers,
    layer_params,
    native_precision,
    num_params,
    state_bytes_per_sequence,
    weight_bytes,
    weight_bytes_breakdown,
)
from plimsoll.catalog.models import list_models, load_model
from plimsoll.core.deployment import PRECISIONS
from plimsoll.core.errors import InputError


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-2-7b", 32 * 2 * 32 * 128 * 2),  # MHA: 524,288
        ("opt-6.7b", 32 * 2 * 32 * 128 * 2),  # MHA with learned positions
        ("llama-3.1-8b", 131_072),  # GQA: 32 layers, keys and values, 8 heads of 128, 2 bytes
        ("qwen3-30b-a3b", 48 * 2 * 4 * 128 * 2),  # GQA in a mixture of experts
        ("falcon-7b", 32 * 2 * 1 * 64 * 2),  # MQA: 71 query heads of 64, one key-value head
        ("chatglm3-6b", 28 * 2 * 2 * 128 * 2),  # two groups
        ("deepseek-v3", 70_272),  # MLA: 61 layers, latent 512 + rotary 64, once, 2 bytes
        ("deepseek-v2-lite", 27 * 576 * 2),
        ("deepseek-v3.2", 61 * (576 * 2 + 128 + 4)),  # MLA and one fp8 indexer key with its scale
        ("glm-5", 78 * (576 * 2 + 132)),
        ("glm-5.2", 78 * 576 * 2 + 21 * 132),  # an indexer in layers 0, 1, 2 and every fourth after them
        ("gpt-oss-20b", 24 * 2 * 8 * 64 * 2),  # windows count as if they did not forget
        ("gemma-3-27b", 62 * 2 * 16 * 128 * 2),
        ("llama-4-scout", 48 * 2 * 8 * 128 * 2),
        ("qwen3-next-80b-a3b", 12 * 2 * 2 * 256 * 2),  # 12 of 48 layers cache anything
        ("nemotron-h-8b-base-8k", 4 * 2 * 8 * 128 * 2),  # 4 attention layers of 52
        ("minimax-text-01", 10 * 2 * 8 * 128 * 2),
        ("mistral-7b-v0.1", 32 * 2 * 8 * 128 * 2),  # a window in every layer
        ("jamba-v0.1", 4 * 2 * 8 * 128 * 2),  # one attention layer in eight of 32, the others Mamba-1
        ("nemotron-nano-12b-v2", 6 * 2 * 8 * 128 * 2),  # 6 attention layers of 62
        ("qwen3.5-397b-a17b", 15 * 2 * 2 * 256 * 2),  # one full-attention layer in four of 60
        ("kimi-k2-instruct", 70_272),  # DeepSeek-V3's latent attention and depth
        ("phi-3-mini-4k-instruct", 32 * 2 * 32 * 96 * 2),  # MHA with heads of 96
    ],
)
def test_kv_bytes_per_token_by_hand(name, bytes_per_token):
    assert kv_bytes_per_token(load_model(name), 2) == bytes_per_token


def test_an_fp8_cache_halves_all_but_the_indexer_keys():
    assert kv_bytes_per_token(load_model("llama-3.1-8b"), 1) == 65_536
    assert kv_bytes_per_token(load_model("deepseek-v3.2"), 1) == 61 * (576 + 132)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("llama-3.1-8b", [(32, 2048, None, 8)]),
        ("gpt-oss-120b", [(18, 1024, 128, 8), (18, 1024, None, 8)]),
        ("gemma-3-1b", [(22, 512, 512, 1), (4, 512, None, 1)]),
        ("deepseek-v3", [(61, 576, None, 1)]),
    ],
)
def test_kv_layers_keep_windows_apart_and_mla_whole(name, entries):
    found = [(e.count, e.elements_per_token, e.window, e.num_kv_heads) for e in kv_layers(load_model(name))]
    assert found == entries


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("llama-3.1-8b", ((1, None),)),
        ("deepseek-r1", ((1, None),)),
        ("mistral-7b-v0.1", ((1, 4096),)),
        ("gpt-oss-20b", ((1, None), (1, 128))),
        ("gemma-3-27b", ((5, None), (26, 1024))),
        ("llama-4-maverick", ((1, None), (3, 8192))),
        ("qwen3-next-80b-a3b", ((1, None),)),
        # 576 latent elements in the selection, 132 bytes = 66 elements of 16 bit of every key: 96 to 11.
        ("deepseek-v3.2", ((11, None), (96, 2048))),
        ("glm-5.2", ((21 * 66 // 18, None), (78 * 576 // 18, 2048))),
    ],
)
def test_attention_layers_fold_windows(name, layers):
    assert attention_layers(load_model(name)) == layers


@pytest.mark.parametrize("name", list_models())
def test_read_tokens_times_elements_are_the_cache(name):
    spec = load_model(name)
    weights = sum(weight for weight, _ in attention_layers(spec))
    read_bytes = weights * elements_per_read_token(spec) * 2
    assert read_bytes == pytest.approx(kv_bytes_per_token(spec, 2), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "state_bytes"),
    [
        ("llama-3.1-8b", 0),
        # 36 gated delta nets: 32 value heads of 128×128, and 3 columns of 2·2048 + 4096 convolution channels.
        ("qwen3-next-80b-a3b", 36 * 2 * (32 * 128 * 128 + 3 * 8192)),
        # 24 Mamba-2 layers: 128 heads of 64 with a state of 128, and 3 columns of 8192 + 2·8·128 channels.
        ("nemotron-h-8b-base-8k", 24 * 2 * (128 * 64 * 128 + 3 * 10_240)),
        # The config asks for a float32 state.
        ("nemotron-3-nano-30b-a3b", 23 * (4 * 64 * 64 * 128 + 2 * 3 * (4096 + 2 * 8 * 128))),
        # 28 Mamba layers: 8192 channels with a state of 16, and 3 columns of them.
        ("jamba-v0.1", 28 * 2 * (8192 * 16 + 3 * 8192)),
        ("minimax-text-01", 70 * 2 * 64 * 128 * 128),
    ],
)
def test_state_bytes_per_sequence_by_hand(name, state_bytes):
    assert state_bytes_per_sequence(load_model(name)) == state_bytes


def test_llama_parameters_by_hand():
    spec = load_model("llama-3.1-8b")
    layer = layer_params(spec.groups[0], spec.hidden_size)
    assert layer.mixer == 4096 * (4096 + 1024 + 1024 + 4096)
    assert layer.dense_mlp == 3 * 4096 * 14_336
    assert layer.small == 2 * 4096
    assert layer.total == layer.mixer + layer.dense_mlp + layer.small
    assert num_params(spec) == 32 * layer.total + 2 * 128_256 * 4096 + 4096


def test_opt_has_biases_positions_and_one_table():
    spec = load_model("opt-125m")
    layer = 4 * 768 * 768 + 4 * 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert num_params(spec) == 12 * layer + 50_272 * 768 + (2048 + 2) * 768 + 2 * 768


def test_latent_attention_by_hand():
    layer = layer_params(load_model("deepseek-v3").groups[0], 7168)
    assert layer.mixer_replicated == 7168 * 1536 + 7168 * (512 + 64)
    assert layer.mixer == 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    assert layer.small == 1536 + 512 + 2 * 7168


def test_active_parameters_leave_out_idle_experts_and_named_tables():
    spec = load_model("mixtral-8x7b-v0.1")
    expert = 3 * 4096 * 14_336
    assert num_params(spec) - active_params(spec) == 32 * 6 * expert
    table = 32_000 * 4096
    assert active_params(spec) - active_params(spec, with_embedding=False) == table
    assert active_params(spec) - active_params(spec, with_embedding=False, with_head=False) == 2 * table
    tied = load_model("llama-3.2-1b")
    assert active_params(tied) == active_params(tied, with_embedding=False) == num_params(tied)
    assert active_params(tied, with_embedding=False, with_head=False) == num_params(tied) - 128_256 * 2048


@pytest.mark.parametrize("name", list_models())
def test_sixteen_bit_weights_are_two_bytes_a_parameter(name):
    spec = load_model(name)
    assert weight_bytes(spec, "bf16") == weight_bytes(spec, "fp16") == 2 * num_params(spec)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "gpt-oss-20b", "opt-6.7b", "nemotron-h-8b-base-8k"])
def test_parts_add_up_and_shrink_with_precision(name, precision):
    spec = load_model(name)
    parts = weight_bytes_breakdown(spec, precision)
    assert sum(dataclasses.astuple(parts)) == pytest.approx(weight_bytes(spec, precision))
    assert weight_bytes(spec, precision) <= weight_bytes(spec, "bf16")


def test_embedding_head_and_norms_stay_sixteen_bit():
    spec = load_model("llama-3.1-8b")
    parts = weight_bytes_breakdown(spec, "fp8")
    assert parts.embedding_bytes == parts.head_bytes == 2 * 128_256 * 4096
    assert parts.other_bytes == 2 * 65 * 4096
    assert parts.attention_bytes == 32 * 4096 * 10_240
    assert parts.dense_mlp_bytes == 32 * 3 * 4096 * 14_336
    assert parts.expert_bytes == 0


def test_a_tied_head_takes_no_bytes():
    parts = weight_bytes_breakdown(load_model("gemma-3-27b"), "bf16")
    assert (parts.head_bytes, parts.embedding_bytes) == (0, 2 * 262_208 * 5376)


def test_quantised_checkpoints_count_as_stored():
    gpt_oss = load_model("gpt-oss-120b")
    assert native_precision(gpt_oss) == "fp4"
    # The checkpoint on the hub is 65.2 GB: experts in mxfp4, the rest in bf16.
    assert weight_bytes(gpt_oss, "fp4") == pytest.approx(65.2e9, rel=0.01)
    parts = weight_bytes_breakdown(gpt_oss, "fp4")
    assert parts.expert_bytes == pytest.approx(36 * 128 * 3 * 2880 * 2880 * 4.25 / 8)
    assert parts.attention_bytes == weight_bytes_breakdown(gpt_oss, "bf16").attention_bytes
    deepseek = load_model("deepseek-v3")
    assert weight_bytes(deepseek, "fp8") == pytest.approx(673e9, rel=0.005)
    assert weight_bytes(deepseek, "bf16") == 2 * num_params(deepseek)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="precision"):
        weight_bytes(load_model("llama-3.1-8b"), "fp7")
