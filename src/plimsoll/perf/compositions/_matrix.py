"""Compositions that change the time of matrix products."""

from __future__ import annotations

import dataclasses

from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.source import Source
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._port import Options
from plimsoll.perf.compositions._wrapped import Args, Composed
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.tabulated import Line


class ChangedMatrices(Composed):
    """A step whose matrix products take another time; `_change_s` says by how much."""

    def _change_s(self, tokens: float, rows: float) -> float:
        raise NotImplementedError

    def matrix_s(self, tokens: float, rows: float) -> float:
        """The changed seconds, for compositions around this one."""
        return super().matrix_s(tokens, rows) + self._change_s(tokens, rows)

    def _decode_piece(self, num_decode: int, line: Line, begin: int) -> Line:  # noqa: ARG002
        return line[0] + self._change_s(num_decode, num_decode), line[1], line[2]

    def _step_s(self, args: Args) -> float:
        return self.inner.step_s(*self._inner_args(args)) + self._change_s(args[0] + args[5], args[4] + args[5])


class ScaledMatrices(ChangedMatrices):
    """Matrix products of the layers that take `overhead` longer (as a share); the output head stays as it is."""

    def __init__(self, name: str, inner: DescribedStepModel, options: Options, overhead: float) -> None:
        super().__init__(name, inner, options, source=Source.ASSUMED if overhead else Source.MODELLED)
        self._overhead = overhead
        if overhead:
            self._inner_split()  # refuses a model without operators now, not in the first step

    def _change_s(self, tokens: float, rows: float) -> float:  # noqa: ARG002
        if not self._overhead or not tokens:
            return 0.0
        return self._overhead * self._inner_split().matrix_s(tokens, 0)


def check_sixteen_bit(name: str, request: StepModelRequest) -> None:
    """Refuse weights that are quantised already, be it by the deployment or by another composition.

    Raises:
        InfeasibleError: constraint ``precision``.
    """
    if request.precision not in ("fp16", "bf16"):
        raise InfeasibleError(
            f"{name} quantises fp16 or bf16 weights, and these are {request.precision}: leave out what else quantises "
            "them, or deploy in 16 bit",
            "precision",
        )


def quantised(name: str, request: StepModelRequest, precision: str) -> StepModelRequest:
    """The deployment at `precision`; raises as `check_sixteen_bit`."""
    check_sixteen_bit(name, request)
    return dataclasses.replace(request, precision=precision)


def overhead_of(name: str, options: Options) -> float:
    """The option ``overhead``, a share from 0.

    Raises:
        InputError: below 0.
    """
    value = float(options["overhead"])
    if value < 0:
        raise InputError(f"composition {name}, overhead", value, "write a share from 0, such as 0.05")
    return value
