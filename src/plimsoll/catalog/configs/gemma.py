"""Gemma 1 to 3: tied embeddings, wide heads, GeGLU; Gemma 2 and 3 mix sliding and full attention and have four norms.

Multimodal configs of Gemma 3 leave out what equals the defaults of Gemma3TextConfig, so those stand here.
Source: modeling_gemma*.py and configuration_gemma*.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.configs._decoder import Traits, every_nth_is_full, read_decoder
from plimsoll.catalog.configs._fields import Fields

_TRAITS = {
    "GemmaForCausalLM": Traits(tied=True),
    "Gemma2ForCausalLM": Traits(tied=True, norms=4),
    "Gemma3ForCausalLM": Traits(tied=True, norms=4, qk_norm=True),
    "Gemma3ForConditionalGeneration": Traits(tied=True, norms=4, qk_norm=True),
}
ARCHITECTURES = tuple(_TRAITS)
_GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def read(fields: Fields, architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    if architecture == "GemmaForCausalLM":
        return read_decoder(fields.with_defaults({"head_dim": 256}), _TRAITS[architecture])
    if architecture == "Gemma2ForCausalLM":
        fields, pattern = fields.with_defaults({"head_dim": 256, "sliding_window": 4096}), 2
    else:
        fields = fields.with_defaults(_GEMMA3_DEFAULTS)
        pattern = fields.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    fields = every_nth_is_full(fields, pattern)
    return read_decoder(fields, _TRAITS[architecture])
