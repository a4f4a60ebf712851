"""Ling and Ring 2 (Bailing): norms on each head's queries and keys, DeepSeek's experts after a few dense layers.

Source: modeling_bailing_moe_v2.py beside the checkpoints (huggingface.co/inclusionAI/Ling-1T).
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ModelSpec, Moe
from plimsoll.catalog.configs._decoder import Traits, dense_mlp, read_decoder
from plimsoll.catalog.configs._experts import check_top_k
from plimsoll.catalog.configs._fields import Fields

ARCHITECTURES = ("BailingMoeV2ForCausalLM",)


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    traits = Traits(
        qkv_bias=fields.flag("use_qkv_bias", False),
        output_bias=fields.flag("use_bias", False),
        qk_norm=fields.flag("use_qk_norm", False),
        bias_fields=False,
    )
    dense, experts = dense_mlp(fields, traits), _experts(fields)
    num_dense = fields.size("first_k_dense_replace", default=0, least=0)
    return read_decoder(fields, traits, lambda layer: dense if layer < num_dense else experts)


def _experts(fields: Fields) -> Moe:
    num_experts, width = fields.size("num_experts"), fields.size("moe_intermediate_size")
    shared = fields.size("num_shared_experts", default=0, least=0, most=1024)
    moe = Moe(
        num_experts=num_experts,
        top_k=fields.size("num_experts_per_tok"),
        intermediate_size=width,
        shared_intermediate_size=shared * fields.size("moe_shared_expert_intermediate_size", default=width),
        router_bias=num_experts if fields.flag("moe_router_enable_expert_bias", False) else 0,
    )
    check_top_k(fields, moe)
    return moe
