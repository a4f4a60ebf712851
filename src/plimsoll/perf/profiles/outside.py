"""How many steps of a run lie outside what a profile measured: a step model that counts while it answers."""

from __future__ import annotations

from typing import Any, Protocol

from plimsoll.core.step import AttentionLayers, StepCost, StepShape
from plimsoll.perf.tabulated import Line


class Covering(Protocol):
    """A step model that knows what it was measured at."""

    def covers(self, shape: StepShape, /) -> bool:
        """Whether the step lies inside."""
        ...


class CountedSteps:
    """A `core.step.StepModel` that asks and counts for every single step what `inner` answers for runs of steps.

    Lines end at the next read token, and lines of chunks are not offered: the bits are the same, the run is slower.

    Attributes:
        num_steps, num_outside: steps so far, and those that `inner` does not cover.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.num_steps = self.num_outside = 0

    def __getattr__(self, name: str) -> Any:
        """What else the model offers, but for what answers several steps at once."""
        if name.startswith("_") or name == "chunk_line":
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def attention_layers(self) -> AttentionLayers:
        """As inside."""
        layers: AttentionLayers = self._inner.attention_layers
        return layers

    @property
    def num_stages(self) -> int:
        """As inside."""
        return int(self._inner.num_stages)

    @property
    def outside_frac(self) -> float:
        """Share of the steps that were not covered; 0 before the first."""
        return self.num_outside / max(1, self.num_steps)

    def step_s(self, *args: int) -> float:
        """Seconds of one step; see `core.step.StepModel`."""
        tokens, chunks, pairs, context, done, decodes, read = args[:7]
        self._count(
            StepShape(
                prefill_tokens=tokens,
                num_prefill=chunks,
                prefill_pairs=pairs,
                prefill_read_tokens=context,
                num_prefill_done=done,
                num_decode=decodes,
                decode_read_tokens=read,
                longest_decode=args[7] if len(args) > 7 else 0,
            )
        )
        seconds: float = self._inner.step_s(*args)
        return seconds

    def decode_line(self, num_decode: int, decode_read_tokens: int, *longest: int) -> Line:
        """The line at this one step."""
        self._count(
            StepShape(
                num_decode=num_decode,
                decode_read_tokens=decode_read_tokens,
                longest_decode=longest[0] if longest else 0,
            )
        )
        base_s, slope_s, _ = self._inner.decode_line(num_decode, decode_read_tokens, *longest)
        return base_s, slope_s, decode_read_tokens + 1

    def step(self, shape: StepShape, /) -> StepCost:
        """As inside."""
        cost: StepCost = self._inner.step(shape)
        return cost

    def _count(self, shape: StepShape) -> None:
        self.num_steps += 1
        self.num_outside += not self._inner.covers(shape)
