"""Step models by name. One file in ``step_models`` is one step model; nothing is registered anywhere."""

from __future__ import annotations

import dataclasses
import importlib
from importlib import resources
from typing import Any, Protocol

from plimsoll.core.errors import UnknownNameError
from plimsoll.core.step import StepModel
from plimsoll.perf.request import StepModelRequest


class DescribedStepModel(StepModel, Protocol):
    """A step model that can say what it is made of."""

    def describe(self) -> dict[str, Any]:
        """Plain values for reports: ``step_model``, the versions and sources of its data, ``source``."""
        ...


def list_step_models() -> tuple[str, ...]:
    """The step models there are, by name, as users write them: hyphens for the underscores of their files."""
    folder = resources.files("plimsoll.perf") / "step_models"
    names = (entry.name for entry in folder.iterdir() if entry.name.endswith(".py"))
    return tuple(sorted(name.removesuffix(".py").replace("_", "-") for name in names if not name.startswith("_")))


def build_step_model(name: str, request: StepModelRequest) -> DescribedStepModel:
    """The step model `name` (``roofline``, ``vllm-roofline``, ``silicon``, ``profile:DIR``) of a deployment.

    Raises:
        UnknownNameError: no step model of that name.
        InfeasibleError, OutOfRangeError, MissingExtraError, InputError: as the step model's own file says.
    """
    kind, _, argument = name.partition(":")
    if kind not in list_step_models():
        raise UnknownNameError("--step-model", kind, list_step_models())
    module = importlib.import_module(f"plimsoll.perf.step_models.{kind.replace('-', '_')}")
    built: DescribedStepModel = module.build(_with_argument(request, argument))
    return built


def _with_argument(request: StepModelRequest, argument: str) -> StepModelRequest:
    return dataclasses.replace(request, argument=argument) if argument else request
