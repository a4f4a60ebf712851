"""``llm_int8``: int8 weights with 16-bit outlier columns (Dettmers et al., NeurIPS 2022, arXiv 2208.07339).

Weights take one byte, yet a step is slower than in 16 bit: activations are searched for outliers and quantised, two
products are made and added. The step is the 16-bit one with its matrix products slowed down by `slowdown`.
"""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from types import MappingProxyType
from typing import Any

from plimsoll.catalog.counting import weight_bytes
from plimsoll.core.errors import InfeasibleError
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._matrix import ScaledMatrices, check_sixteen_bit
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.request import StepModelRequest

SUMMARY = "int8 weights, outliers in 16 bit: smaller, not faster (LLM.int8(), NeurIPS 2022, arXiv 2208.07339)"
OPTIONS = MappingProxyType(
    {"slowdown": Option(default=-1.0, meaning="added share of the matrix products' time; negative takes the data's")}
)


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files("plimsoll.perf.compositions").joinpath("data", "llm_int8.toml").read_text("utf-8")
    return tomllib.loads(text)


def _check(request: StepModelRequest) -> None:
    check_sixteen_bit("llm_int8", request)
    if "int8" not in request.gpu.dense_flop_per_s:
        raise InfeasibleError(f"{request.gpu.id} has no int8 matrix units for llm_int8", "precision")


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> ScaledMatrices:
    """Slower matrix products around `inner`.

    Raises:
        InfeasibleError: a deployment that is not 16 bit, or a GPU without int8 units.
    """
    _check(request)
    given = float(options["slowdown"])
    return ScaledMatrices("llm_int8", inner, options, float(_data()["slowdown_frac"]) if given < 0 else given)


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:  # noqa: ARG001
    """Weights of one byte."""
    _check(request)
    factor = weight_bytes(request.model, "int8") / weight_bytes(request.model, request.precision)
    return MemoryEffect(weight_bytes_factor=factor)
