"""The host's launches below a stack of compositions: these change what a GPU does, never how long launching it takes.

    step = max(step of the stack, sampler + launches)

A step model that knows launches apart has `without_launches`, around which the stack is built, `launched_s` and
`sampled_s` (`perf.vllm_steps`). Where tokens are drafted, a verify step is launched for all its rows, and costs its
share per token like the rest of it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Protocol

from plimsoll.core.source import Source
from plimsoll.core.step import AttentionLayers, StepCost, StepShape
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.tabulated import Line


class KnowsLaunches(Protocol):
    """A step model that can tell kernels from launches."""

    def without_launches(self) -> DescribedStepModel:
        """The same model with a host that launches in no time."""
        ...

    def launched_s(self, tokens: int, *, mixed: bool) -> float:
        """Host time of launching a step, 0 where one graph does it."""
        ...

    def sampled_s(self, rows: int) -> float:
        """Seconds of head and sampler, which come after the launched layers."""
        ...


class Launched:
    """A `core.step.StepModel`: `inner`, never faster than `base` is launched."""

    def __init__(self, inner: DescribedStepModel, base: KnowsLaunches) -> None:
        self._inner, self._base = inner, base
        self._rows: int
        self._tokens: float
        self._rows, self._tokens = getattr(inner, "verified", (1, 1.0))
        self._floors: dict[int, float] = {}

    def __getattr__(self, name: str) -> Any:
        """What else the stack offers (`draw_bursts`, `prefill_attention_layers`, …)."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def attention_layers(self) -> AttentionLayers:
        """As the stack folds them."""
        return self._inner.attention_layers

    @property
    def num_stages(self) -> int:
        """Pipeline stages; all times are those of one stage."""
        return self._inner.num_stages

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
            base_s, slope_s, _ = self.decode_line(num_decode, decode_read_tokens)
            return base_s + slope_s * decode_read_tokens
        seconds = self._inner.step_s(
            prefill_tokens, num_prefill, prefill_pairs, prefill_read_tokens, num_prefill_done, num_decode,
            decode_read_tokens,
        )  # fmt: skip
        rows, done_s = num_decode * self._rows, self._base.sampled_s(num_prefill_done)
        sampled_s = done_s + (self._base.sampled_s(num_prefill_done + rows) - done_s) / self._tokens
        return max(seconds, sampled_s + self._base.launched_s(prefill_tokens + rows, mixed=True))

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """The straight line of decode-only steps around `decode_read_tokens`; see `core.step.StepModel`."""
        line = self._inner.decode_line(num_decode, decode_read_tokens)
        floor_s = self._floors.get(num_decode)
        if floor_s is None:
            floor_s = self._floors[num_decode] = self._floor_s(num_decode * self._rows)
        base_s, slope_s, below = line
        if base_s + slope_s * decode_read_tokens >= floor_s:
            return line
        # To the last bit where the line reaches the floor, so that every question before it gets the same piece.
        return floor_s, 0.0, bisect_left(range(below), floor_s, key=lambda read: base_s + slope_s * read)

    def _floor_s(self, rows: int) -> float:
        launched_s = self._base.launched_s(rows, mixed=False)
        return (launched_s + self._base.sampled_s(rows)) / self._tokens if launched_s else 0.0

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`, with the energy of the stack's work in it and its source."""
        time_s = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
        )
        inner: Any = self._inner
        return StepCost(time_s=time_s, energy_j=inner.energy_j(shape, time_s), source=self.source)

    @property
    def source(self) -> Source:
        """The stack's."""
        return Source(getattr(self._inner, "source", Source.MODELLED))

    def describe(self) -> dict[str, Any]:
        """The stack's."""
        return self._inner.describe()
