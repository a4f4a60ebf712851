"""What a step model is built from: the resolved deployment, as `perf.build` hands it to a step model's file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.perf.factors import Factors
from plimsoll.perf.overheads import NO_OVERHEADS, Overheads


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepModelRequest:
    """A deployment in catalogue entries instead of names.

    Attributes:
        model, gpu: catalogue entries.
        parallelism: cut of one replica.
        precision: of the weights.
        kv_precision: of the cache.
        overheads: host time of the engine.
        argument: what follows the colon of the step model's name (``profile:DIR``), else empty.
        options: of the step model, by name.
        factors: fitted to measured runs, around the whole; None without a calibration.
    """

    model: ModelSpec
    gpu: Accelerator
    parallelism: Parallelism = dataclasses.field(default_factory=Parallelism)
    precision: str = "bf16"
    kv_precision: str = "auto"
    overheads: Overheads = NO_OVERHEADS
    argument: str = ""
    options: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    factors: Factors | None = None

    def check_options(self, *known: str) -> None:
        """Refuse options that the step model does not have.

        Raises:
            UnknownNameError: with the closest known ones.
        """
        for name in self.options:
            if name not in known:
                raise UnknownNameError("step model option", name, known)

    def refuse_argument(self) -> None:
        """Refuse anything behind a colon.

        Raises:
            InputError: there is something.
        """
        if self.argument:
            raise InputError("--step-model", self.argument, "this step model takes nothing after a colon")
