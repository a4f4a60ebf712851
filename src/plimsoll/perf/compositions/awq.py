"""``awq``: weights in 4 bit by groups of 128, activations in 16 bit (Lin et al., MLSys 2024, arXiv 2306.00978).

The step model is built at precision int4: weight-only kernels that unpack on the fly and multiply in 16 bit, so small
batches gain and large ones do not. `overhead` stands for kernels that unpack worse than the measured (Marlin) ones.
"""

from __future__ import annotations

from types import MappingProxyType

from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._matrix import ScaledMatrices, overhead_of, quantised
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.request import StepModelRequest

SUMMARY = "4-bit weights, 16-bit activations (AWQ, MLSys 2024, arXiv 2306.00978)"
OPTIONS = MappingProxyType(
    {"overhead": Option(default=0.0, meaning="added share of the matrix products, for slower kernels")}
)


def prepare(request: StepModelRequest, options: Options) -> StepModelRequest:  # noqa: ARG001
    """The deployment at int4; refuses weights that are not of 16 bit."""
    return quantised("awq", request, "int4")


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> ScaledMatrices:  # noqa: ARG001
    """`inner`, which was built at int4, with the overhead."""
    return ScaledMatrices("awq", inner, options, overhead_of("awq", options))


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:  # noqa: ARG001
    """None beyond the changed precision, which `_port.combined_memory_effect` hands back."""
    return MemoryEffect()
