"""StarCoder2: grouped-query attention with biases everywhere, a feed-forward layer of two matrices, LayerNorm.

Source: modeling_starcoder2.py and configuration_starcoder2.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.configs._decoder import Traits, read_decoder
from plimsoll.catalog.configs._fields import Fields

ARCHITECTURES = ("Starcoder2ForCausalLM",)


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    bias = fields.flag("use_bias", True)
    traits = Traits(
        qkv_bias=bias, mlp_bias=bias, gated=False, norm_vectors=2, tied=True, bias_fields=False, windows=True
    )
    return read_decoder(fields, traits)
