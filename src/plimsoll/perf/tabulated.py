"""The hot loop shared by the step models: lazily filled tables in front of whatever computes the seconds.

A subclass supplies functions of plain numbers (`_token_s`, `_sampled_s`, `_decode_pieces`, `_mixed_pieces`,
`_prefill_rates`), each called once per distinct argument; `step_s` and `decode_line` are dictionary look-ups and a few
multiplications. Pieces may be a generator: no more of them are made than read tokens ask for.

Bit equality. A decode-only step evaluates ``base + slope·r`` of the very tuple that `decode_line` returns.

Monotonicity. Every table has to be non-decreasing in its argument and every rate non-negative; then the sum is
non-decreasing in every argument of `step_s`. A prompt chunk in the step can only add: the decode's slope in a mixed
step is at least that of a pure decode step.
"""

from __future__ import annotations

import abc
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from plimsoll.core.source import Source
from plimsoll.core.step import AttentionLayers, ChunkLine, StepCost, StepShape

UNBOUNDED = 2**62
"""`valid_below` of a line that never bends."""

Line = tuple[float, float, int]
_MixedRow = tuple[float, float, int, float, float, float, float, float]


class PrefillRates(NamedTuple):
    """Seconds that prompt chunks add to a step, beside the work on tokens.

    Attributes:
        fixed_s: where there is any chunk.
        per_chunk_s, per_token_s, per_pair_s, per_read_token_s: as in `StepShape`.
    """

    fixed_s: float
    per_chunk_s: float
    per_token_s: float
    per_pair_s: float
    per_read_token_s: float


class Pieces:
    """Straight lines side by side, by rising `valid_below`; those behind the last one asked for are not made yet.

    Args:
        lines: all of them, in order; there is at least one.
        fixed_s: added to the base of each.
    """

    __slots__ = ("_ends", "_fixed_s", "_lines", "_rest")

    def __init__(self, lines: Iterable[Line], fixed_s: float = 0.0) -> None:
        self._rest: Iterator[Line] = iter(lines)
        self._fixed_s = fixed_s
        self._lines: list[Line] = []
        self._ends: list[int] = []
        self._extend()

    def _extend(self) -> bool:
        """Make one more line; False where there is none."""
        for base_s, slope_s, below in self._rest:
            self._lines.append((self._fixed_s + base_s, slope_s, below))
            self._ends.append(below)
            return True
        return False

    @property
    def first(self) -> Line:
        """The line of the fewest read tokens."""
        return self._lines[0]

    def find(self, read_tokens: int) -> Line | None:
        """The line that holds `read_tokens`; None behind the last one."""
        place = bisect_right(self._ends, read_tokens)
        while place == len(self._ends):
            if not self._extend():
                return None
            place += read_tokens >= self._ends[-1]
        return self._lines[place]


class Tabulated(abc.ABC):
    """A `core.step.StepModel` over lazily filled tables."""

    def __init__(self, attention_layers: AttentionLayers, num_stages: int) -> None:
        self._attention_layers = attention_layers
        self._num_stages = num_stages
        # Plain dictionaries, filled where a look-up fails: Python reads those faster than any that fill themselves.
        self._tokens: dict[int, float] = {}
        self._sampled: dict[int, float] = {}
        self._lines: dict[int, Pieces] = {}
        self._first: dict[int, Line] = {}
        self._mixed: dict[int, Pieces] = {}
        self._mixed_rows: dict[int, _MixedRow] = {}
        self._rates: PrefillRates | None = None

    # What a subclass supplies ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _token_s(self, tokens: int) -> float:
        """Seconds of all work on `tokens` tokens, with the host time of a step; non-decreasing."""

    @abc.abstractmethod
    def _sampled_s(self, rows: int) -> float:
        """Seconds of head and sampler on `rows` sequences; non-decreasing."""

    @abc.abstractmethod
    def _decode_pieces(self, num_decode: int) -> Iterable[Line]:
        """Attention of a decode-only step as lines in read tokens, by rising `valid_below`."""

    @abc.abstractmethod
    def _mixed_pieces(self, num_decode: int) -> Iterable[Line]:
        """The same for decodes that share a step with prompt chunks, whose launches the chunks already pay."""

    def _beyond(self, num_decode: int, read_tokens: int) -> Exception:
        """What to raise where `read_tokens` lie behind the last piece."""
        return AssertionError(f"the last piece of {num_decode} decodes ends before {read_tokens} read tokens")

    @abc.abstractmethod
    def _prefill_rates(self) -> PrefillRates:
        """What prompt chunks add."""

    @property
    @abc.abstractmethod
    def source(self) -> Source:
        """How far the seconds can be trusted."""

    @abc.abstractmethod
    def energy_j(self, shape: StepShape, time_s: float) -> float | None:
        """Joules of a step of `time_s` on all GPUs that work on it; None without a power model."""

    # The port ----------------------------------------------------------------------------------------------------

    @property
    def attention_layers(self) -> AttentionLayers:
        """How the engine folds attention windows into read tokens."""
        return self._attention_layers

    @property
    def num_stages(self) -> int:
        """Pipeline stages; all times are those of one stage."""
        return self._num_stages

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
        """Seconds of one step of one stage; see `core.step.StepModel`."""
        if not prefill_tokens and not num_prefill:
            line = self._first.get(num_decode)
            if line is None or decode_read_tokens >= line[2]:
                line = self.decode_line(num_decode, decode_read_tokens)
            return line[0] + line[1] * decode_read_tokens
        try:
            row = self._mixed_rows[num_decode]
            token_s = self._tokens[prefill_tokens + num_decode]
            sampled_s = self._sampled[num_prefill_done + num_decode]
        except KeyError:
            row = self._mixed_rows.get(num_decode) or self._load_mixed(num_decode)
            token_s, sampled_s = self._fixed_s(prefill_tokens + num_decode, num_prefill_done + num_decode)
        base_s, slope_s, below, fixed_s, per_chunk_s, per_token_s, per_pair_s, per_read_token_s = row
        if decode_read_tokens >= below:
            base_s, slope_s, _ = self._piece(self._mixed[num_decode], num_decode, decode_read_tokens)
        return (
            token_s
            + sampled_s
            + (
                fixed_s
                + per_chunk_s * num_prefill
                + per_token_s * prefill_tokens
                + per_pair_s * prefill_pairs
                + per_read_token_s * prefill_read_tokens
            )
            + (base_s + slope_s * decode_read_tokens)
        )

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """The straight line of decode-only steps around `decode_read_tokens`; see `core.step.StepModel`."""
        line = self._first.get(num_decode)
        if line is not None and decode_read_tokens < line[2]:
            return line
        return self._piece(self._lines.get(num_decode) or self._load_lines(num_decode), num_decode, decode_read_tokens)

    def chunk_line(self, chunk_tokens: int, num_decode: int, decode_read_tokens: int, /) -> ChunkLine:
        """The line of steps with a part-way chunk; see `core.step.ChunkStepModel`. Sums as `step_s` does."""
        row = self._mixed_rows.get(num_decode) or self._load_mixed(num_decode)
        _, _, _, fixed_s, per_chunk_s, per_token_s, per_pair_s, per_read_token_s = row
        token_s, sampled_s = self._fixed_s(chunk_tokens + num_decode, num_decode)
        chunk_s = fixed_s + per_chunk_s + per_token_s * chunk_tokens
        line = self._piece(self._mixed[num_decode], num_decode, decode_read_tokens)
        return token_s + sampled_s, chunk_s, per_pair_s, per_read_token_s, *line

    def _piece(self, pieces: Pieces, num_decode: int, read_tokens: int) -> Line:
        """The piece that holds `read_tokens`."""
        line = pieces.find(read_tokens)
        if line is None:
            raise self._beyond(num_decode, read_tokens)
        return line

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`, with energy and source."""
        time_s = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
        )
        return StepCost(time_s=time_s, energy_j=self.energy_j(shape, time_s), source=self.source)

    def _fixed_s(self, tokens: int, rows: int) -> tuple[float, float]:
        """The work on so many tokens and so many sampled rows, computed once each."""
        if tokens not in self._tokens:
            self._tokens[tokens] = self._token_s(tokens)
        if rows not in self._sampled:
            self._sampled[rows] = self._sampled_s(rows)
        return self._tokens[tokens], self._sampled[rows]

    def _load_lines(self, num_decode: int) -> Pieces:
        token_s, sampled_s = self._fixed_s(num_decode, num_decode)
        lines = self._decode_pieces(num_decode) if num_decode else ((0.0, 0.0, UNBOUNDED),)
        self._lines[num_decode] = pieces = Pieces(lines, token_s + sampled_s)
        self._first[num_decode] = pieces.first
        return pieces

    def _load_mixed(self, num_decode: int) -> _MixedRow:
        """The first piece and the prefill rates in one plain tuple: a named one unpacks several times slower."""
        pieces = Pieces(self._mixed_pieces(num_decode) if num_decode else ((0.0, 0.0, UNBOUNDED),))
        rates = self._rates = self._rates or self._prefill_rates()
        self._mixed[num_decode] = pieces
        self._mixed_rows[num_decode] = row = (
            *pieces.first,
            rates.fixed_s,
            rates.per_chunk_s,
            rates.per_token_s,
            rates.per_pair_s,
            rates.per_read_token_s,
        )
        return row
