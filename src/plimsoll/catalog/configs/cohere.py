"""Command R, R+, R7B and A of Cohere: attention beside the feed-forward layer under one norm, tied embeddings.

Command R has full attention everywhere; Command R7B and A (Cohere 2) attend in a window in three layers of four.
The norm is a LayerNorm without a bias. Configs name the context that the model was made for `model_max_length`.
Source: modeling_cohere.py, modeling_cohere2.py and configuration_cohere2.py of Hugging Face transformers.
"""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.configs._decoder import Traits, every_nth_is_full, read_decoder
from plimsoll.catalog.configs._fields import LARGEST_POSITION, Fields

_COHERE = Traits(tied=True, norms=1)
ARCHITECTURES = ("CohereForCausalLM", "Cohere2ForCausalLM", "Cohere2VisionForConditionalGeneration")
_WINDOW = 4096
_PERIOD = 4


def read(fields: Fields, architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    if architecture == "CohereForCausalLM":
        traits = dataclasses.replace(_COHERE, wide_qk_norm=fields.flag("use_qk_norm", False))
    else:
        traits = _COHERE
        fields = every_nth_is_full(
            fields.with_defaults({"sliding_window": _WINDOW}), fields.size("sliding_window_pattern", default=_PERIOD)
        )
    spec = read_decoder(fields, traits)
    longest = fields.optional_size("model_max_length", most=LARGEST_POSITION)
    return spec if longest is None else dataclasses.replace(spec, max_position=longest)
