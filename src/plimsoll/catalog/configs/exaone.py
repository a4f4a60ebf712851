"""EXAONE 4: norms after attention and feed-forward layer, norms on each head's queries and keys.

The 32B model attends in a window in three layers of four; the smaller ones have no window.
Source: modeling_exaone4.py and configuration_exaone4.py of Hugging Face transformers.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.configs._decoder import Traits, every_nth_is_full, read_decoder
from plimsoll.catalog.configs._fields import Fields

ARCHITECTURES = ("Exaone4ForCausalLM",)
_TRAITS = Traits(qk_norm=True, bias_fields=False)
_PERIOD = 4


def read(fields: Fields, _architecture: str) -> ModelSpec:
    """The model of a config of this family; a pattern is a period, or letters as in LLLG."""
    if fields.has("sliding_window"):
        letters = fields.text("sliding_window_pattern") if fields.is_text("sliding_window_pattern") else ""
        period = len(letters) or fields.size("sliding_window_pattern", default=_PERIOD)
        fields = every_nth_is_full(fields, period)
    return read_decoder(fields, _TRAITS)
