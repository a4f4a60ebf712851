"""Seconds of a step that passes through unlike GPUs, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from plimsoll.core.step import AttentionLayers, StepCost, StepModel, StepShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hop:
    """A message of activations between two GPUs: ``fixed_s + tokens · s_per_token``."""

    fixed_s: float
    s_per_token: float


class LayeredModel:
    """A step whose layers lie on GPUs of different kinds: ``Σ share · seconds of the whole model there + hops``.

    One batch is under way at a time (no pipelining), as in UELLM. The weights are shares of the layers, so that what a
    step costs once, host time and head, is their mean over the GPUs.

    NOTE: layers count as alike: a mean layer times their number, as memory counts them too.

    Args:
        parts: of each GPU, its share of the layers and the step model of the whole model on its kind; shares add to 1.
        hops: between neighbours, one fewer than `parts`.
    """

    num_stages = 1

    def __init__(self, parts: Sequence[tuple[float, StepModel]], hops: Sequence[Hop]) -> None:
        self._parts = tuple(parts)
        self._fixed_s = sum(hop.fixed_s for hop in hops)
        self._token_s = sum(hop.s_per_token for hop in hops)

    @property
    def attention_layers(self) -> AttentionLayers:
        """Of the model: the same on every GPU."""
        return self._parts[0][1].attention_layers

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        /,
    ) -> float:
        """As `StepModel.step_s`."""
        if not prefill_tokens:
            base_s, per_token_s, _ = self.decode_line(num_decode, decode_read_tokens)
            return base_s + per_token_s * decode_read_tokens
        shape = (prefill_tokens, num_prefill, prefill_pairs, prefill_read_tokens, num_prefill_done)
        seconds = sum(share * model.step_s(*shape, num_decode, decode_read_tokens) for share, model in self._parts)
        return seconds + self._hops_s(prefill_tokens + num_decode)

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> tuple[float, float, int]:
        """As `StepModel.decode_line`."""
        base_s, per_token_s, valid_below = self._hops_s(num_decode), 0.0, 1 << 62
        for share, model in self._parts:
            base, slope, valid = model.decode_line(num_decode, decode_read_tokens)
            base_s, per_token_s, valid_below = (
                base_s + share * base,
                per_token_s + share * slope,
                min(valid_below, valid),
            )
        return base_s, per_token_s, valid_below

    def step(self, shape: StepShape, /) -> StepCost:
        """As `StepModel.step`; without energy, whose idle part nobody measured for GPUs that wait for each other."""
        seconds = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
        )
        source = max(model.step(shape).source for _, model in self._parts)
        return StepCost(time_s=seconds, energy_j=None, source=source)

    def _hops_s(self, tokens: int) -> float:
        return self._fixed_s + tokens * self._token_s
