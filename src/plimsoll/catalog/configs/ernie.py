"""ERNIE 4.5, dense and mixtures of experts: Llama's layers; the router has a score-correction bias per expert.

Multi-token-prediction layers (`num_nextn_predict_layers`) are not counted.
Source: modeling_ernie4_5_moe.py and configuration_ernie4_5_moe.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ChannelMixer, ModelSpec, Moe
from plimsoll.catalog.configs._decoder import Traits, dense_mlp, read_decoder
from plimsoll.catalog.configs._experts import check_top_k
from plimsoll.catalog.configs._fields import LARGEST_LAYERS, Fields

_MOE = "Ernie4_5_MoeForCausalLM"
ARCHITECTURES = ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM", _MOE)


def read(fields: Fields, architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    bias = fields.flag("use_bias", False)
    traits = Traits(qkv_bias=bias, mlp_bias=bias, tied=True, bias_fields=False)
    if architecture != _MOE:
        return read_decoder(fields, traits)
    dense, experts = dense_mlp(fields, traits), _experts(fields)
    first = fields.size("moe_layer_start_index", default=1, least=0, most=LARGEST_LAYERS)
    last = fields.size("moe_layer_end_index", default=-1, least=-1, most=LARGEST_LAYERS)
    last = fields.layers() - 1 if last == -1 else last
    step = fields.size("moe_layer_interval", default=1)

    def mlp_of_layer(layer: int) -> ChannelMixer:
        return experts if first <= layer <= last and (layer + 1) % step == 0 else dense

    return read_decoder(fields, traits, mlp_of_layer)


def _experts(fields: Fields) -> Moe:
    width, num_experts = fields.size("moe_intermediate_size"), fields.size("moe_num_experts", "num_experts")
    moe = Moe(
        num_experts=num_experts,
        top_k=fields.size("moe_k", "num_experts_per_tok"),
        intermediate_size=width,
        shared_intermediate_size=fields.size("moe_num_shared_experts", default=0, least=0, most=1024) * width,
        router_bias=num_experts,
    )
    check_top_k(fields, moe)
    return moe
