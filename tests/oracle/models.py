"""Small step models with exact rules, for tests of the engine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from plimsoll.core.source import Source
from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, ChunkLine, StepCost, StepModel, StepShape


class KinkedModel:
    """Affine in the read tokens, with kinks every `kink` tokens, so that a stretch needs several lines."""

    def __init__(
        self,
        kink: int = 700,
        layers: AttentionLayers = FULL_ATTENTION,
        per_sequence_s: float = 1.7e-5,
        num_stages: int = 1,
    ) -> None:
        self.kink = kink
        self.num_stages = num_stages
        self.attention_layers = layers
        self.per_sequence_s = per_sequence_s

    def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
        segment = read // self.kink
        return (
            5.1e-3 + self.per_sequence_s * num_decode + 3.3e-5 * segment,
            1.1e-7 * (1 + segment % 5),
            (segment + 1) * self.kink,
        )

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        pairs: int,
        prefill_read: int,
        num_done: int,
        num_decode: int,
        read: int,
        /,
    ) -> float:
        base_s, per_token_s, _ = self.decode_line(num_decode, read)
        decode_s = base_s + per_token_s * read
        if not num_prefill:
            return decode_s
        return (
            decode_s
            + 3.7e-5 * prefill_tokens
            + 1e-4 * num_prefill
            + 1.3e-9 * pairs
            + 1.9e-9 * prefill_read
            + 2e-5 * num_done
        )

    def step(self, shape: StepShape, /) -> StepCost:
        time_s = self.step_s(
            shape.prefill_tokens, shape.num_prefill, shape.prefill_pairs, shape.prefill_read_tokens,
            shape.num_prefill_done, shape.num_decode, shape.decode_read_tokens,
        )  # fmt: skip
        return StepCost(time_s=time_s, energy_j=None, source=Source.ASSUMED)


class LinedModel(KinkedModel):
    """As `KinkedModel`, and with lines for chunk after chunk, which bend where those of decodes do."""

    def _rates(self, tokens: int, num_prefill: int, num_done: int, num_decode: int) -> tuple[float, float]:
        return 2.3e-5 * (tokens + num_decode) + 2e-5 * num_done, 1e-4 * num_prefill + 1.4e-5 * tokens

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        pairs: int,
        prefill_read: int,
        num_done: int,
        num_decode: int,
        read: int,
        /,
    ) -> float:
        base_s, per_token_s, _ = self.decode_line(num_decode, read)
        if not num_prefill:
            return base_s + per_token_s * read
        fixed_s, chunk_s = self._rates(prefill_tokens, num_prefill, num_done, num_decode)
        return fixed_s + (chunk_s + 1.3e-9 * pairs + 1.9e-9 * prefill_read) + (base_s + per_token_s * read)

    def chunk_line(self, tokens: int, num_decode: int, read: int, /) -> ChunkLine:
        fixed_s, chunk_s = self._rates(tokens, 1, 0, num_decode)
        return fixed_s, chunk_s, 1.3e-9, 1.9e-9, *self.decode_line(num_decode, read)


class SkewedModel:
    """As `KinkedModel`, but waits for the longest decode too, whose price has kinks of its own."""

    attention_layers = FULL_ATTENTION
    needs_longest = True

    def __init__(self, kink: int = 700, longest_kink: int = 37, num_stages: int = 1) -> None:
        self.kink, self.longest_kink = kink, longest_kink
        self.num_stages = num_stages
        self.even = KinkedModel(kink)

    def decode_line(self, num_decode: int, read: int, longest: int = 0, /) -> tuple[float, float, int]:
        base_s, per_token_s, below = self.even.decode_line(num_decode, read)
        if not longest:
            return base_s, per_token_s, below
        # longest = (gap + read) / num_decode, and the gap stays what it is while the same requests decode
        gap, segment = num_decode * longest - read, longest // self.longest_kink
        per_longest_s = 1.3e-6 * (1 + segment % 3)
        base_s += 2.9e-5 * segment + per_longest_s * gap / num_decode
        below = min(below, num_decode * (segment + 1) * self.longest_kink - gap)
        return base_s, per_token_s + per_longest_s / num_decode, below

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        pairs: int,
        prefill_read: int,
        num_done: int,
        num_decode: int,
        read: int,
        longest: int = 0,
        /,
    ) -> float:
        assert num_decode or not longest, "nobody decodes, so nobody is the longest"
        base_s, per_token_s, _ = self.decode_line(num_decode, read, longest)
        decode_s = base_s + per_token_s * read
        if not num_prefill:
            return decode_s
        # Prompts wait for the longest decode in their own way: a wrong one shows in mixed steps as well.
        prompts_s = self.even.step_s(prefill_tokens, num_prefill, pairs, prefill_read, num_done, 0, 0)
        return decode_s + prompts_s + 7e-7 * longest

    def step(self, shape: StepShape, /) -> StepCost:
        time_s = self.step_s(
            shape.prefill_tokens, shape.num_prefill, shape.prefill_pairs, shape.prefill_read_tokens,
            shape.num_prefill_done, shape.num_decode, shape.decode_read_tokens, shape.longest_decode,
        )  # fmt: skip
        return StepCost(time_s=time_s, energy_j=None, source=Source.ASSUMED)


def with_longest(model: StepModel, shape: tuple[int, ...], lengths: Iterable[int]) -> tuple[int, ...]:
    """The arguments of a step as `model` asks for them: the longest of the decodes' lengths where it needs that."""
    if not getattr(model, "needs_longest", False):
        return shape
    return (*shape, max(lengths, default=0))


def maybe_skewed(model: KinkedModel, rng: np.random.Generator) -> KinkedModel | SkewedModel:
    """Of the models whose layers all attend to everything, some wait for the longest decode, some have chunk lines."""
    kind = rng.random()
    if model.attention_layers != FULL_ATTENTION or kind >= 0.7:
        return model
    if kind >= 0.4:
        return LinedModel(model.kink, num_stages=model.num_stages)
    return SkewedModel(model.kink, int(rng.choice([3, 37, 1000])), model.num_stages)
