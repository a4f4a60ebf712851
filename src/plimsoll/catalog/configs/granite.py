"""Granite 4.0: Mamba-2 with attention in a few layers; a shared feed-forward layer beside the experts, or alone.

Source: modeling_granitemoehybrid.py and configuration_granitemoehybrid.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ChannelMixer, DenseMlp, Mixer, ModelSpec, Moe
from plimsoll.catalog.configs._decoder import Layer, Traits, attention, frame, group_layers, norm_params
from plimsoll.catalog.configs._experts import check_top_k
from plimsoll.catalog.configs._fields import Fields
from plimsoll.catalog.configs._states import mamba2

ARCHITECTURES = ("GraniteMoeHybridForCausalLM",)
_TRAITS = Traits()
_ATTENTION = frozenset(("attention", "full_attention"))
_MAMBA = frozenset(("mamba", "linear_attention"))


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    num_layers = fields.layers()
    types = fields.texts("layer_types", num_layers) or fields.texts("layers_block_type", num_layers)
    types = types or ("mamba",) * num_layers
    unknown = set(types) - _ATTENTION - _MAMBA
    if unknown:
        raise fields.fail("layer_types", sorted(unknown)[0], "write mamba or attention for each layer")
    mixers: dict[str, Mixer] = {
        kind: attention(fields, _TRAITS) if kind in _ATTENTION else _mamba(fields) for kind in set(types)
    }
    mlp, norms = _mlp(fields), norm_params(fields, _TRAITS)
    layers: list[Layer] = [(mixers[kind], mlp, norms) for kind in types]
    return frame(fields, group_layers(layers), tied=False)


def _mamba(fields: Fields) -> Mixer:
    inner = fields.size("mamba_expand", default=2, most=1024) * fields.size("hidden_size")
    heads = fields.size("mamba_n_heads", default=128)
    if inner % heads:
        raise fields.fail("mamba_n_heads", heads, f"it must divide the inner width of {inner}")
    return mamba2(
        fields.with_defaults({"use_conv_bias": fields.flag("mamba_conv_bias", True)}),
        heads=heads,
        head_dim=inner // heads,
        groups=fields.size("mamba_n_groups", default=1),
        state=fields.size("mamba_d_state", default=256),
        kernel=fields.size("mamba_d_conv", default=4, most=64),
    )


def _mlp(fields: Fields) -> ChannelMixer:
    shared = fields.size("shared_intermediate_size", default=1024)
    num_experts = fields.size("num_local_experts", default=8, least=0)
    if num_experts == 0:
        return DenseMlp(intermediate_size=shared)
    moe = Moe(
        num_experts=num_experts,
        top_k=fields.size("num_experts_per_tok", default=2),
        intermediate_size=fields.size("intermediate_size"),
        shared_intermediate_size=shared,
    )
    check_top_k(fields, moe)
    return moe
