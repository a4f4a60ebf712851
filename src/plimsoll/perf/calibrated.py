"""A step model with factors fitted to measured runs (`plimsoll calibrate`), around any other step model.

    step = bandwidth × decode part + compute × (whole step − decode part) + per_step_s

The decode part is what the same decodes would cost alone: bound by memory, as a rule. What prompt chunks add to it is
bound by arithmetic. So two factors mend what two different limits of a GPU get wrong, whatever the step model inside,
and decode-only steps stay on a straight line.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from plimsoll.core.source import Source
from plimsoll.core.step import AttentionLayers, StepCost, StepModel, StepShape
from plimsoll.perf.factors import Factors
from plimsoll.perf.tabulated import Line

AnyStepModel = TypeVar("AnyStepModel", bound=StepModel)


def calibrated(model: AnyStepModel, factors: Factors | None) -> AnyStepModel | Calibrated:
    """`model` under `factors`; itself where there are none."""
    return model if factors is None else Calibrated(model, factors)


class Calibrated:
    """A `core.step.StepModel`: `inner` under `factors`."""

    def __init__(self, inner: StepModel, factors: Factors) -> None:
        self._inner, self._factors = inner, factors
        self._compute, self._bandwidth, self._host_s = factors.compute, factors.bandwidth, factors.per_step_s

    def __getattr__(self, name: str) -> Any:
        """What else the inner model offers (`prefill_attention_layers`, …), unchanged but for its lockstep seconds."""
        if name.startswith("_"):
            raise AttributeError(name)
        offered = getattr(self._inner, name)
        return functools.partial(self._lockstep_s, offered) if name == "lockstep_s" else offered

    @property
    def attention_layers(self) -> AttentionLayers:
        """How the engine folds attention windows into read tokens: as inside."""
        return self._inner.attention_layers

    @property
    def num_stages(self) -> int:
        """Pipeline stages, as inside."""
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
        *longest: int,
    ) -> float:
        """Seconds of one step; see `core.step.StepModel`."""
        if not prefill_tokens and not num_prefill:
            base_s, slope_s, _ = self.decode_line(num_decode, decode_read_tokens, *longest)
            return base_s + slope_s * decode_read_tokens
        whole_s = self._inner.step_s(
            prefill_tokens,
            num_prefill,
            prefill_pairs,
            prefill_read_tokens,
            num_prefill_done,
            num_decode,
            decode_read_tokens,
            *longest,
        )
        decode_s = 0.0
        if num_decode:
            base_s, slope_s, _ = self._inner.decode_line(num_decode, decode_read_tokens, *longest)
            decode_s = min(base_s + slope_s * decode_read_tokens, whole_s)
        return self._bandwidth * decode_s + self._compute * (whole_s - decode_s) + self._host_s

    def _lockstep_s(self, inner_s: Callable[[Sequence[StepShape]], float], ranks: Sequence[StepShape], /) -> float:
        """Seconds of a step that ranks take together, its parts scaled as in `step_s`."""
        whole_s = inner_s(ranks)
        decodes = [
            StepShape(
                num_decode=rank.num_decode,
                decode_read_tokens=rank.decode_read_tokens,
                longest_decode=rank.longest_decode,
            )
            for rank in ranks
        ]
        decode_s = min(inner_s(decodes), whole_s) if any(rank.num_decode for rank in ranks) else 0.0
        return self._bandwidth * decode_s + self._compute * (whole_s - decode_s) + self._host_s

    def decode_line(self, num_decode: int, decode_read_tokens: int, *longest: int) -> Line:
        """The straight line of decode-only steps; see `core.step.StepModel`."""
        base_s, slope_s, below = self._inner.decode_line(num_decode, decode_read_tokens, *longest)
        return self._bandwidth * base_s + self._host_s, self._bandwidth * slope_s, below

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`, with the inner model's energy and source."""
        longest = (shape.longest_decode,) if getattr(self._inner, "needs_longest", False) else ()
        time_s = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
            *longest,
        )
        inner = self._inner.step(shape)
        energy = getattr(self._inner, "energy_j", None)
        energy_j: float | None = inner.energy_j if energy is None else energy(shape, time_s)
        return StepCost(time_s=time_s, energy_j=energy_j, source=self.source)

    @property
    def source(self) -> Source:
        """That of the model inside: the factors do not make a modelled figure a measured one."""
        return Source(getattr(self._inner, "source", Source.MODELLED))

    def describe(self) -> dict[str, Any]:
        """The inner model's description, with the factors under ``calibration``."""
        described: dict[str, Any] = getattr(self._inner, "describe", dict)()
        return {**described, "calibration": dataclasses.asdict(self._factors)}
