"""OLMo 2 and 3: norms after attention and feed-forward layer, and over all heads' queries and keys together.

OLMo 3 attends in a window in three layers of four.
Source: modeling_olmo2.py, modeling_olmo3.py and configuration_olmo3.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.configs._decoder import Traits, every_nth_is_full, read_decoder
from plimsoll.catalog.configs._fields import Fields

ARCHITECTURES = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
_TRAITS = Traits(wide_qk_norm=True)
_WINDOW = 4096
_PERIOD = 4


def read(fields: Fields, architecture: str) -> ModelSpec:
    """The model of a config of this family."""
    if architecture == "Olmo3ForCausalLM":
        fields = every_nth_is_full(fields.with_defaults({"sliding_window": _WINDOW}), _PERIOD)
    return read_decoder(fields, _TRAITS)
