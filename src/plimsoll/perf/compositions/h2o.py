"""``h2o``: the cache keeps heavy hitters and the latest tokens only (Zhang et al., NeurIPS 2023, arXiv 2306.14048).

Per head a sequence keeps ``ratio`` of its tokens, half of them the latest, half those that got most attention; a
decode reads what is kept. Prompts attend to everything before entries are dropped. With ``max_tokens`` the share is one
of that length and fixed, as the authors' implementation does it; without, it is one of the current length.
"""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType

from plimsoll.core.errors import InputError
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.compositions._work import plain_attention_of, share
from plimsoll.perf.compositions._wrapped import Composed
from plimsoll.perf.request import StepModelRequest

SUMMARY = "heavy-hitter and recent tokens only (H2O, NeurIPS 2023, arXiv 2306.14048)"
OPTIONS = MappingProxyType(
    {
        "ratio": Option(default=0.2, meaning="share of the tokens that is kept, half heavy hitters, half recent"),
        "max_tokens": Option(default=0, meaning="length of which `ratio` is taken; 0 takes the current length"),
    }
)


def budget(options: Options) -> tuple[Fraction, int | None]:
    """``(share of the current length, most tokens kept)``: one of both holds, the other is 1 or None.

    Raises:
        InputError: an option out of range.
    """
    ratio, longest = share("composition h2o, ratio", float(options["ratio"])), int(options["max_tokens"])
    if longest < 0:
        raise InputError("composition h2o, max_tokens", longest, "write a number of tokens, or 0")
    if not longest:
        return ratio, None
    return Fraction(1), max(1, round(ratio * longest))


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> Composed:
    """Decodes that read what is kept.

    Raises:
        InputError: a share outside ]0, 1], or a model without keys and values by head.
    """
    plain_attention_of("h2o", request)
    ratio, most = budget(options)
    if most is None:
        return Composed("h2o", inner, options, read_share=ratio)
    layers = tuple((weight, most if window is None else min(window, most)) for weight, window in inner.attention_layers)
    return Composed("h2o", inner, options, layers=layers)


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:  # noqa: ARG001
    """The kept tokens."""
    ratio, most = budget(options)
    note = "the prompt's full cache of one layer at a time is not counted"
    return MemoryEffect(kept=((float(ratio), most),), notes=(f"h2o: {note}",))
