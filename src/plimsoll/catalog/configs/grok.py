"""Grok 1 and 2: four norms a layer, and in Grok 2 a dense feed-forward layer beside the experts.

Source: python/sglang/srt/models/grok.py of SGLang, which the model's card names for serving it.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ModelSpec, Moe
from plimsoll.catalog.configs._decoder import Traits, read_decoder
from plimsoll.catalog.configs._experts import check_top_k
from plimsoll.catalog.configs._fields import Fields

ARCHITECTURES = ("Grok1ForCausalLM", "Grok1ModelForCausalLM")


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family; the dense layer counts as an expert that every token uses."""
    dense = fields.size("intermediate_size")
    residual = fields.flag("residual_moe", False)
    moe = Moe(
        num_experts=fields.size("num_local_experts", "num_experts"),
        top_k=fields.size("num_experts_per_tok"),
        intermediate_size=fields.size("moe_intermediate_size", default=dense),
        shared_intermediate_size=dense if residual else 0,
    )
    check_top_k(fields, moe)
    return read_decoder(fields, Traits(norms=4), lambda _layer: moe)
