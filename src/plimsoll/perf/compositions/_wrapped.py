"""A step model around another one: the port's promises, kept once for all compositions.

Bit equality. `step_s` of a decode-only step evaluates the very line that `decode_line` returns. The pieces of a decode
count are built from read token 0 upwards and kept, so that every question inside a piece gets the same tuple.

Read tokens. A composition may fold them in another unit than its inner model: `unit` of ours are one of the inner's.
Where it keeps fewer tokens of a decode than of a prefill, `prefill_attention_layers` says how chunks fold; an engine
that does not ask for it folds chunks like decodes, and so leaves out the attention of a prompt beyond the window.

The longest decode. An inner model that asks for it (`core.step.LongestStepModel`) is told, where the composition's
decodes are the inner model's: as many, each as long. Elsewhere they count as equally long.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

from plimsoll.core.source import Source, weakest
from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, StepCost, StepShape
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._split import Split, split_of
from plimsoll.perf.tabulated import UNBOUNDED, Line

Args = tuple[int, int, int, int, int, int, int]
"""The arguments of `core.step.StepModel.step_s`, in order."""


class Told:
    """An inner model that asks for the longest decode, told that of the step that is asked about.

    Attributes:
        longest: KV tokens of the longest decode.
    """

    def __init__(self, inner: DescribedStepModel) -> None:
        self._inner: Any = inner
        self.longest = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is unpickled
            raise AttributeError(name)
        return getattr(self._inner, name)

    def step_s(self, *args: int) -> float:
        """Seconds of one step; arguments as of `core.step.StepModel.step_s`."""
        seconds: float = self._inner.step_s(*args, self.longest if args[5] else 0)
        return seconds

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """The line of the same decodes from now on."""
        line: Line = self._inner.decode_line(num_decode, decode_read_tokens, self.longest if num_decode else 0)
        return line


class Composed:
    """A `core.step.StepModel` that changes nothing; compositions override what they change.

    Args:
        name: of the composition.
        inner: the step model inside.
        options: for reports.
        source: how far the composition's own figures can be trusted.
        layers: how decodes fold, in our unit; the inner model's where None.
        unit: our read tokens for one of the inner model.
        read_share: share of the folded tokens that a decode really reads.
    """

    def __init__(
        self,
        name: str,
        inner: DescribedStepModel,
        options: Mapping[str, object],
        *,
        source: Source = Source.MODELLED,
        layers: AttentionLayers | None = None,
        unit: int = 1,
        read_share: Fraction = Fraction(1),
    ) -> None:
        self.name, self.inner, self.options = name, inner, dict(options)
        self._own_source = source
        self._unit = unit
        self._read = Fraction(read_share) / unit
        scaled = tuple((weight * unit, window) for weight, window in inner.attention_layers)
        self._layers = scaled if layers is None else layers
        self._prefill_layers = tuple(
            (weight * unit, window)
            for weight, window in getattr(inner, "prefill_attention_layers", inner.attention_layers)
        )
        self._pieces: dict[int, list[Line]] = {}
        self._split: Split | None = None
        self._told: Told | None = None
        same = self.same_decodes and self._read == 1 and self._layers == FULL_ATTENTION
        if same and getattr(inner, "needs_longest", False):
            self._told = Told(inner)
            self.inner = cast(DescribedStepModel, self._told)

    same_decodes = True
    """Whether the inner model is asked about as many decodes as there are."""

    # What a composition overrides --------------------------------------------------------------------------------

    def _decode_piece(self, num_decode: int, line: Line, begin: int) -> Line:  # noqa: ARG002 - for those who override
        """Our piece from `begin` on, given the inner model's `line` in our read tokens."""
        return line

    def _step_s(self, args: Args) -> float:
        """Seconds of a step with prompt chunks; `args` in our read tokens."""
        return self.inner.step_s(*self._inner_args(args))

    def matrix_s(self, tokens: float, rows: float) -> float:
        """Seconds of the matrix products of a step; compositions inside may change them."""
        return self._inner_split().matrix_s(tokens, rows)

    def network_s(self, tokens: float, rows: float) -> float:
        """Seconds of the collectives of a step."""
        return self._inner_split().network_s(tokens, rows)

    # The port ----------------------------------------------------------------------------------------------------

    @property
    def attention_layers(self) -> AttentionLayers:
        """How the engine folds attention windows of decodes into read tokens."""
        return self._layers

    @property
    def prefill_attention_layers(self) -> AttentionLayers:
        """How prompt chunks fold, in the same unit (see the module's text)."""
        return self._prefill_layers

    @property
    def num_stages(self) -> int:
        """Pipeline stages; all times are those of one stage."""
        return self.inner.num_stages

    @property
    def needs_longest(self) -> bool:
        """Whether the engine is to tell the longest decode; see `core.step.LongestStepModel`."""
        return self._told is not None

    @property
    def draw_bursts(self) -> Any:
        """What tokens that come together are drawn from, if the model inside speculates; else None."""
        return getattr(self.inner, "draw_bursts", None)

    @property
    def verified(self) -> tuple[int, float]:
        """Rows that a decode is run as, and the tokens that it hands out over which its seconds are shared."""
        rows, tokens = getattr(self.inner, "verified", (1, 1.0))
        return rows, tokens

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
        """Seconds of one step of one stage; see `core.step.StepModel`."""
        if not prefill_tokens and not num_prefill:
            line = self.decode_line(num_decode, decode_read_tokens, longest_decode)
            return line[0] + line[1] * decode_read_tokens
        if self._told is not None:
            self._told.longest = longest_decode
        return self._step_s(
            (
                prefill_tokens,
                num_prefill,
                prefill_pairs,
                prefill_read_tokens,
                num_prefill_done,
                num_decode,
                decode_read_tokens,
            )
        )

    def decode_line(self, num_decode: int, decode_read_tokens: int, longest_decode: int = 0, /) -> Line:
        """The straight line of decode-only steps around `decode_read_tokens`; see `core.step.StepModel`."""
        if self._told is not None:
            self._told.longest = longest_decode
            return self._next_piece(num_decode, decode_read_tokens)
        pieces = self._pieces.get(num_decode)
        if pieces is None:
            pieces = self._pieces[num_decode] = [self._next_piece(num_decode, 0)]
        if decode_read_tokens < pieces[0][2]:
            return pieces[0]
        while decode_read_tokens >= pieces[-1][2]:
            pieces.append(self._next_piece(num_decode, pieces[-1][2]))
        return next(line for line in pieces if decode_read_tokens < line[2])

    def _next_piece(self, num_decode: int, begin: int) -> Line:
        inner_read = self._inner_read(begin)
        base, slope, below = self.inner.decode_line(num_decode, inner_read)
        ours = UNBOUNDED if below >= UNBOUNDED else -((-below * self._read.denominator) // self._read.numerator)
        return self._decode_piece(num_decode, (base, slope * float(self._read), ours), begin)

    def _inner_read(self, read_tokens: int) -> int:
        return read_tokens * self._read.numerator // self._read.denominator

    def _inner_args(self, args: Args) -> Args:
        """The arguments in the inner model's unit: prompts in full, decodes as far as they read."""
        tokens, chunks, pairs, context, done, decodes, read = args
        unit = self._unit
        return tokens, chunks, pairs // unit, context // unit, done, decodes, self._inner_read(read)

    def _inner_split(self) -> Split:
        if self._split is None:
            self._split = split_of(self.inner)
        return self._split

    # Reports -----------------------------------------------------------------------------------------------------

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`, with energy and source."""
        time_s = self.step_s(*shape_args(shape), shape.longest_decode)
        return StepCost(time_s=time_s, energy_j=self.energy_j(shape, time_s), source=self.source)

    def energy_j(self, shape: StepShape, time_s: float) -> float | None:
        """Joules of the inner model's work within our time; what a composition moves beside it is not counted."""
        energy = getattr(self.inner, "energy_j", None)
        if energy is None:
            return None
        tokens, chunks, pairs, context, done, decodes, read = self._inner_args(shape_args(shape))
        inner = StepShape(
            prefill_tokens=tokens,
            num_prefill=chunks,
            prefill_pairs=pairs,
            prefill_read_tokens=context,
            num_prefill_done=done,
            num_decode=decodes,
            decode_read_tokens=read,
            longest_decode=shape.longest_decode,
        )
        joules: float | None = energy(inner, time_s)
        return joules

    @property
    def source(self) -> Source:
        """The weaker of the inner model's and the composition's own."""
        return weakest((getattr(self.inner, "source", Source.MODELLED), self._own_source))

    def describe(self) -> dict[str, Any]:
        """The inner model's description with this composition added to ``compositions``."""
        described = dict(self.inner.describe())
        entry = {"name": self.name, **self.options}
        described["compositions"] = [*described.get("compositions", []), entry]
        described["source"] = str(self.source)
        return described


def shape_args(shape: StepShape) -> Args:
    """A shape as the positional arguments of `step_s`."""
    return (
        shape.prefill_tokens,
        shape.num_prefill,
        shape.prefill_pairs,
        shape.prefill_read_tokens,
        shape.num_prefill_done,
        shape.num_decode,
        shape.decode_read_tokens,
    )
