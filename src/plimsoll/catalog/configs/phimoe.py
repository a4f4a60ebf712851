"""Phi-3.5-MoE: Mixtral's experts, attention and output head with biases, LayerNorm.

Source: modeling_phimoe.py of Hugging Face transformers.
"""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.configs._decoder import Traits, read_decoder
from plimsoll.catalog.configs._experts import softmax_experts
from plimsoll.catalog.configs._fields import Fields

ARCHITECTURES = ("PhiMoEForCausalLM", "PhimoeForCausalLM")


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    experts = softmax_experts(fields)
    spec = read_decoder(fields, Traits(norm_vectors=2, windows=True), lambda _layer: experts)
    return dataclasses.replace(spec, other_params=spec.vocab_size if fields.flag("lm_head_bias", False) else 0)
