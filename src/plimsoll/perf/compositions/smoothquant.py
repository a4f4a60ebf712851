"""``smoothquant``: weights and activations in int8 (Xiao et al., ICML 2023, arXiv 2211.10438).

The step model is built at precision int8: matrix products on the int8 units, weights of one byte. The scales that move
outliers from activations into weights are folded into the norms before, so nothing is added but `overhead`.
"""

from __future__ import annotations

from types import MappingProxyType

from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._matrix import ScaledMatrices, overhead_of, quantised
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.request import StepModelRequest

SUMMARY = "int8 weights and activations (SmoothQuant, ICML 2023, arXiv 2211.10438)"
OPTIONS = MappingProxyType(
    {"overhead": Option(default=0.0, meaning="added share of the matrix products (quantising activations)")}
)


def prepare(request: StepModelRequest, options: Options) -> StepModelRequest:  # noqa: ARG001
    """The deployment at int8; refuses weights that are not of 16 bit."""
    return quantised("smoothquant", request, "int8")


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> ScaledMatrices:  # noqa: ARG001
    """`inner`, which was built at int8, with the overhead; a GPU without int8 units was refused there."""
    return ScaledMatrices("smoothquant", inner, options, overhead_of("smoothquant", options))


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:  # noqa: ARG001
    """None beyond the changed precision, which `_port.combined_memory_effect` hands back."""
    return MemoryEffect()
