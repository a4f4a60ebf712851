"""The port between the engine, which knows batches, and `perf`, which knows GPUs.

The engine asks for the cost of a step in one of two ways: `StepModel.step_s` for one step with any content, and
`StepModel.decode_line` for a whole run of decode-only steps. Both take and return plain numbers, because they are asked
millions of times. `StepModel.step` is the same figure with its energy and its source, for reports.

Attention windows. A layer with a sliding window reads at most `window` tokens of a sequence. The engine folds the
layer groups into one number, so that the hot loop stays one multiplication: with `attention_layers` =
``((weight, window or None), …)`` a decode at length L counts ``sum(weight × min(L, window))`` *read tokens*, and a
prefill chunk likewise. A model whose layers all attend to everything has ``((1, None),)``, where read tokens are
simply KV tokens. Layers without a KV cache (Mamba, linear attention) have no entry: their cost is per sequence. Where
prefills see more than decodes (a cache that evicts what a prompt still attends to), a model says so in an optional
`prefill_attention_layers`.

The longest decode. Kernels that give each sequence a fixed share of the GPU wait for the longest one. A model that
wants to know it has an optional `needs_longest` that is true, and is then asked as a `LongestStepModel`; the others
are asked as ever, and cost nothing more. So a wrapper that does not pass `needs_longest` on makes all decodes of a step
equally long.

Ranks in lockstep. Data-parallel ranks share a step evenly as far as `StepModel.step_s` knows. A model that can tell
what unequal shares cost is a `LockstepStepModel` as well.

Chunk after chunk. Where every layer attends to everything, a model may give a line for steps with a chunk of a prompt
too, and is a `ChunkStepModel` then.

Of a wrapper that passes attributes on, only the methods that its own class has count as such extras (`lockstep_of`,
`chunk_line_of`), because it may change what they would have said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from plimsoll.core.source import Source

AttentionLayers = tuple[tuple[int, int | None], ...]
FULL_ATTENTION: AttentionLayers = ((1, None),)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """What one replica works on in one step.

    Attributes:
        prefill_tokens: new prompt tokens (the sum of all chunks).
        num_prefill: prefill chunks.
        prefill_pairs: attention pairs of the chunks, ``Σ c·(ctx + (c+1)/2)``, weighted by `attention_layers`.
        prefill_read_tokens: context already in the cache that the chunks read, weighted likewise.
        num_prefill_done: chunks that complete their prompt, and so need logits and a sample.
        num_decode: sequences that decode one token.
        decode_read_tokens: KV tokens that the decodes read, each including the token being written.
        longest_decode: the longest decoding sequence, for models that need it, else 0.
    """

    prefill_tokens: int = 0
    num_prefill: int = 0
    prefill_pairs: int = 0
    prefill_read_tokens: int = 0
    num_prefill_done: int = 0
    num_decode: int = 0
    decode_read_tokens: int = 0
    longest_decode: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """Seconds of one step, its joules where a power model exists, and how far both can be trusted."""

    time_s: float
    energy_j: float | None
    source: Source


Line = tuple[float, float, int]
"""``(base_s, per_read_token_s, valid_below)``, see `StepModel.decode_line`."""


ChunkLine = tuple[float, float, float, float, float, float, int]
"""``(fixed_s, chunk_s, per_pair_s, per_context_token_s, base_s, per_read_token_s, valid_below)``: `ChunkStepModel`."""


class StepModel(Protocol):
    """Seconds of one step on one replica. Deterministic, and without state that a caller could see."""

    @property
    def attention_layers(self) -> AttentionLayers:
        """How the engine folds attention windows into read tokens (see the module's text)."""
        ...

    @property
    def num_stages(self) -> int:
        """Pipeline stages. All times are those of one stage where this is above 1."""
        ...

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
        """Seconds of one step (of one pipeline stage). Arguments as in `StepShape`, positional for speed."""
        ...

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """The straight line on which decode-only steps lie: ``(base_s, per_read_token_s, valid_below)``.

        For every ``r`` from `decode_read_tokens` to below `valid_below`, a step that decodes `num_decode` sequences
        with ``r`` read tokens takes exactly ``base_s + per_read_token_s * r``, to the last bit what
        ``step_s(0, 0, 0, 0, 0, num_decode, r)`` returns. So a run of steps costs one call, and is bit-equal to its
        single steps.
        """
        ...

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`, with energy and source."""
        ...


class LongestStepModel(Protocol):
    """What a `StepModel` with a true `needs_longest` has besides; its `attention_layers` are `FULL_ATTENTION`."""

    @property
    def needs_longest(self) -> bool:
        """Whether seconds depend on the longest decode."""
        ...

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        longest_decode: int = 0,
        /,
    ) -> float:
        """As `StepModel.step_s`. `longest_decode`: KV tokens of the longest, the token being written included.

        0 where it is not known, which stands for equal lengths.
        """
        ...

    def decode_line(self, num_decode: int, decode_read_tokens: int, longest_decode: int = 0, /) -> Line:
        """As `StepModel.decode_line`, along the steps of one and the same decode set.

        There the longest grows with the read tokens: after k steps they are ``decode_read_tokens + k * num_decode`` and
        ``longest_decode + k``. At every such ``r`` below `valid_below` the line is to the last bit what `step_s`
        returns for ``r`` and the longest decode of then.
        """
        ...


class LockstepStepModel(Protocol):
    """What a `StepModel` has besides that knows ranks of unequal shares."""

    def lockstep_s(self, ranks: Sequence[StepShape], /) -> float:
        """Seconds of a step that data-parallel ranks take together, each with a shape of its own."""
        ...


class ChunkStepModel(Protocol):
    """What a `StepModel` has besides that knows steps with one chunk as straight lines."""

    def chunk_line(self, chunk_tokens: int, num_decode: int, decode_read_tokens: int, /) -> ChunkLine:
        """Steps with `chunk_tokens` of one prompt, not its last, beside `num_decode` decodes.

        For ``r`` read tokens from `decode_read_tokens` to below `valid_below`, ``c`` tokens of context and ``p``
        attention pairs of the chunk, ``step_s(chunk_tokens, 1, p, c, 0, num_decode, r)`` is to the last bit
        ``fixed_s + (chunk_s + per_pair_s * p + per_context_token_s * c) + (base_s + per_read_token_s * r)``.
        """
        ...


def lockstep_of(model: StepModel) -> Callable[[Sequence[StepShape]], float] | None:
    """The `LockstepStepModel.lockstep_s` of a model, None where its class has none."""
    if getattr(type(model), "lockstep_s", None) is None:
        return None
    return cast(LockstepStepModel, model).lockstep_s


def chunk_line_of(model: StepModel) -> Callable[[int, int, int], ChunkLine] | None:
    """The `ChunkStepModel.chunk_line` of a model, None where its class has none."""
    if getattr(type(model), "chunk_line", None) is None:
        return None
    return cast(ChunkStepModel, model).chunk_line
