"""What is measured: one step's content, in equal chunks and equal decodes."""

from __future__ import annotations

import dataclasses
from typing import Any

from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, StepShape
from plimsoll.perf.profiles.own_grids import pairs_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A step of `num_prefill` equal prompt chunks and `num_decode` equal decodes.

    Attributes:
        num_prefill: chunks.
        chunk_tokens: new tokens of each.
        context_tokens: tokens that each finds in the cache.
        num_decode: decoding sequences.
        decode_length_tokens: tokens of each, the one being written included.
    """

    num_prefill: int = 0
    chunk_tokens: int = 0
    context_tokens: int = 0
    num_decode: int = 0
    decode_length_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens in the step."""
        return self.num_prefill * self.chunk_tokens + self.num_decode

    @property
    def num_sequences(self) -> int:
        """Sequences in the step: all of them are sampled."""
        return self.num_prefill + self.num_decode

    def row(self) -> dict[str, Any]:
        """The columns of a table."""
        return dataclasses.asdict(self)

    def step_shape(self, layers: AttentionLayers = FULL_ATTENTION) -> StepShape:
        """As a step model takes it, windows folded as `layers` say; every chunk ends its prompt."""

        def seen(tokens: int) -> int:
            return sum(weight * (tokens if window is None else min(tokens, window)) for weight, window in layers)

        pairs = sum(weight * pairs_of(self.chunk_tokens, self.context_tokens, window) for weight, window in layers)
        tokens = self.num_prefill * self.chunk_tokens
        return StepShape(
            prefill_tokens=tokens,
            num_prefill=self.num_prefill,
            prefill_pairs=round(self.num_prefill * pairs),
            prefill_read_tokens=self.num_prefill * seen(self.context_tokens),
            num_prefill_done=self.num_prefill,
            num_decode=self.num_decode,
            decode_read_tokens=self.num_decode * seen(self.decode_length_tokens),
        )

    def __str__(self) -> str:
        parts = []
        if self.num_prefill:
            parts.append(f"{self.num_prefill} x {self.chunk_tokens} tokens behind {self.context_tokens}")
        if self.num_decode:
            parts.append(f"{self.num_decode} decodes at {self.decode_length_tokens}")
        return " + ".join(parts)


def decodes(number: int, length: int) -> Shape:
    """A step of decodes only."""
    return Shape(num_decode=number, decode_length_tokens=length)


def chunks(number: int, tokens: int, context: int = 0) -> Shape:
    """A step of prompt chunks only."""
    return Shape(num_prefill=number, chunk_tokens=tokens, context_tokens=context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a profile reaches: what the engine's limits are to be.

    Attributes:
        max_tokens: tokens in a step (the engine's token budget).
        max_seqs: sequences that run at once.
        max_length: longest sequence.
    """

    max_tokens: int
    max_seqs: int
    max_length: int
