"""Llama and its kin: grouped-query attention, SwiGLU, two RMSNorms, biases only where the config says so.

SmolLM3 leaves out the rotation of queries and keys in every fourth layer, which changes no size.
Source: modeling_llama.py, modeling_mistral.py, modeling_ministral3.py, modeling_smollm3.py, modeling_seed_oss.py and
modular_internlm3.py of Hugging Face transformers.
"""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.configs._decoder import Traits, read_decoder
from plimsoll.catalog.configs._fields import Fields

_LLAMA = Traits()
_MISTRAL = Traits(windows=True)
_TRAITS = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,
    "GraniteForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _MISTRAL,
    "MistralForCausalLM": _MISTRAL,
    "Mistral3ForConditionalGeneration": _MISTRAL,
    "Ministral3ForCausalLM": _MISTRAL,
    "SmolLM3ForCausalLM": Traits(tied=True),
    "SeedOssForCausalLM": Traits(qkv_bias=True, output_bias=False),
    "InternLM3ForCausalLM": _LLAMA,
}
ARCHITECTURES = tuple(_TRAITS)


def read(fields: Fields, architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    traits = _TRAITS[architecture]
    if architecture == "InternLM3ForCausalLM":
        biases = {"attention_bias": fields.flag("qkv_bias", False), "mlp_bias": fields.flag("bias", False)}
        fields = fields.with_defaults(biases)
    elif architecture == "SeedOssForCausalLM":
        traits = dataclasses.replace(traits, output_bias=fields.flag("attention_out_bias", False))
    return read_decoder(fields, traits)
