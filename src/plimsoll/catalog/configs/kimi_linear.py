"""Kimi Linear: three layers of Kimi delta attention to each of latent attention; DeepSeek's experts.

Source: modeling_kimi_linear.py and configuration_kimi_linear.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import DenseMlp, LatentAttention, Mixer, ModelSpec, Moe
from plimsoll.catalog.configs._decoder import Layer, frame, group_layers
from plimsoll.catalog.configs._experts import check_top_k
from plimsoll.catalog.configs._fields import LARGEST_LAYERS, Fields
from plimsoll.catalog.configs._states import delta_attention

ARCHITECTURES = ("KimiLinearForCausalLM",)


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    if fields.has("routed_expert_hidden_size") or fields.flag("mla_use_output_gate", False):
        raise fields.fail("model_type", "kimi_linear", "the latent experts and gated attention of Kimi K3 are not read")
    full = _full_layers(fields)
    norms = 2 * fields.size("hidden_size")
    latent: Mixer = LatentAttention(
        num_heads=fields.size("num_attention_heads"),
        q_lora_rank=fields.optional_size("q_lora_rank"),
        kv_lora_rank=fields.size("kv_lora_rank"),
        qk_nope_head_dim=fields.size("qk_nope_head_dim"),
        qk_rope_head_dim=fields.size("qk_rope_head_dim"),
        v_head_dim=fields.size("v_head_dim"),
    )
    delta = delta_attention(fields, _linear_part(fields))
    dense, experts = DenseMlp(intermediate_size=fields.size("intermediate_size")), _experts(fields)
    num_dense = fields.size("first_k_dense_replace", default=1, least=0)
    layers: list[Layer] = [
        (latent if layer in full else delta, dense if layer < num_dense else experts, norms)
        for layer in range(fields.layers())
    ]
    return frame(fields, group_layers(layers), tied=False)


def _linear_part(fields: Fields) -> Fields:
    part = fields.part("linear_attn_config")
    if part is None:
        raise fields.fail("linear_attn_config", None, "the config must hold this field")
    return part


def _full_layers(fields: Fields) -> frozenset[int]:
    """Layers of latent attention, counted from 0; the config counts from 1."""
    listed = _linear_part(fields).sizes("full_attn_layers", least=1, most=LARGEST_LAYERS)
    if listed is None:
        raise fields.fail("linear_attn_config", None, "full_attn_layers must list the layers of latent attention")
    return frozenset(layer - 1 for layer in listed)


def _experts(fields: Fields) -> Moe:
    width, num_experts = fields.size("moe_intermediate_size"), fields.size("num_experts", "num_local_experts")
    moe = Moe(
        num_experts=num_experts,
        top_k=fields.size("num_experts_per_token", "num_experts_per_tok"),
        intermediate_size=width,
        shared_intermediate_size=width
        * fields.size("num_shared_experts", "n_shared_experts", default=0, least=0, most=1024),
        router_bias=num_experts,
    )
    check_top_k(fields, moe)
    return moe
