"""Steps outside what a profile measured: the refusal, and a step model that counts them while it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from plimsoll.core.errors import OutOfRangeError
from plimsoll.core.step import AttentionLayers, StepCost, StepShape
from plimsoll.perf.tabulated import Line

TOKENS_FLAG, DECODES_FLAG, LENGTH_FLAG = "--max-num-batched-tokens", "--max-num-seqs", "--max-model-len"
"""What bounds the tokens of a step, its sequences and their length, as users write it."""
DRAFTS = {
    TOKENS_FLAG: " (with +speculative, less its drafted tokens times --max-num-seqs)",
    DECODES_FLAG: " (with +speculative, over 1 + its drafted tokens)",
    LENGTH_FLAG: "",
}
"""Engines count drafts in no limit, but they are rows of a step like all others."""


def refuse_above(folder: object, what: str, asked: float, measured: float, flag: str) -> None:
    """Refuse what lies beyond the grid, and say with which limit of the engine it would not come up.

    Args:
        folder: of the profile.
        what: is counted.
        asked: how many there are in the step.
        measured: the most that were measured.
        flag: of the engine's limit.

    Raises:
        OutOfRangeError: more were asked than measured.
    """
    if asked > measured:
        raise OutOfRangeError(
            f"profile {folder}: {asked:.0f} {what}, measured up to {measured:.0f}; "
            f"set {flag} {int(measured)}{DRAFTS[flag]}, take another step model, or allow extrapolation "
            "(profile:DIR,allow_extrapolation=true)"
        )


def extrapolated(facts: Mapping[str, Any]) -> bool:
    """Whether steps may lie outside what was measured, so that no error band is known for them.

    Args:
        facts: what a step model's `describe` says; `outside_frac`, the share of a run's steps, where it was counted.
    """
    outside_frac = facts.get("outside_frac")
    return bool(facts.get("extrapolates")) if outside_frac is None else outside_frac > 0


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
    def can_count(self) -> bool:
        """Whether the model knows what it covers; one under a composition does not, whose steps are others."""
        return hasattr(self._inner, "covers")

    def sentence(self) -> str:
        """What came out, for the user."""
        if not self.can_count:
            return "steps may lie outside what the profile measured; under a composition they are not counted"
        share = f"{self.outside_frac:.1%} of {self.num_steps:,} steps lie outside what the profile measured"
        return f"{share}{': their times are extrapolated, how far off is not known' if self.num_outside else ''}"

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
