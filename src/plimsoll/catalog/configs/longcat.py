"""LongCat-Flash: every layer is two of latent attention and a dense feed-forward layer, with experts beside the first.

NOTE: the router also chooses among experts that do nothing (`zero_expert_num`). A token is counted as going to as many
real experts as there are among `moe_topk` on average when all are chosen alike; the real number differs from token to
token, and the weights are steered towards this average. Multi-token-prediction layers are not counted.
Source: modeling_longcat_flash.py and configuration_longcat_flash.py of Hugging Face transformers.
"""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.architecture import DenseMlp, LatentAttention, ModelSpec, Moe
from plimsoll.catalog.configs._decoder import Layer, frame, group_layers
from plimsoll.catalog.configs._fields import Fields

ARCHITECTURES = ("LongcatFlashForCausalLM", "LongcatCausalLM")


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family; the dense layer beside the experts counts as one that every token uses."""
    hidden, width = fields.size("hidden_size"), fields.size("ffn_hidden_size", "intermediate_size")
    mixer = LatentAttention(
        num_heads=fields.size("num_attention_heads"),
        q_lora_rank=fields.optional_size("q_lora_rank"),
        kv_lora_rank=fields.size("kv_lora_rank"),
        qk_nope_head_dim=fields.size("qk_nope_head_dim"),
        qk_rope_head_dim=fields.size("qk_rope_head_dim"),
        v_head_dim=fields.size("v_head_dim"),
    )
    experts = _experts(fields, hidden)
    num_layers = fields.layers("num_layers", "num_hidden_layers")
    with_experts: Layer = (mixer, dataclasses.replace(experts, shared_intermediate_size=width), 2 * hidden)
    plain: Layer = (mixer, DenseMlp(intermediate_size=width), 2 * hidden)
    return frame(fields, group_layers([with_experts, plain] * num_layers), tied=False)


def _experts(fields: Fields, hidden: int) -> Moe:
    num_experts, num_zero = fields.size("n_routed_experts"), fields.size("zero_expert_num", default=0, least=0)
    chosen = fields.size("moe_topk")
    if chosen > num_experts:
        raise fields.fail("moe_topk", chosen, f"there are {num_experts} experts")
    return Moe(
        num_experts=num_experts,
        top_k=max(1, round(chosen * num_experts / (num_experts + num_zero))),
        intermediate_size=fields.size("expert_ffn_hidden_size", "moe_intermediate_size"),
        router_bias=num_zero * hidden + num_experts + num_zero,  # the zero experts' rows, and the correction bias
    )
