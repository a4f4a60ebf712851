"""Is a profile of the model, the GPU and the precision that it is used for?"""

from __future__ import annotations

from plimsoll.catalog.accelerators import Accelerator, load_accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InfeasibleError, InputError, PlimsollError
from plimsoll.perf.profiles.bundle import Bundle

SIXTEEN_BIT = ("bf16", "fp16")
"""Alike: GPUs multiply both at one rate and read as many bytes."""


def check_origin(bundle: Bundle, model: ModelSpec, gpu: Accelerator) -> None:
    """Compare the bundle's own names with the deployment. Names that the catalogue lacks prove nothing, and pass.

    Raises:
        InputError: the profile is of another model (its layers differ) or of another GPU.
    """
    if bundle.model and bundle.model != model.id:
        try:
            measured = load_model(bundle.model)
        except PlimsollError:
            measured = model
        if (measured.groups, measured.hidden_size) != (model.groups, model.hidden_size):
            raise InputError("--model", model.id, f"the profile {bundle.folder} is of {bundle.model}")
    if bundle.hardware:
        try:
            card = load_accelerator(bundle.hardware)
        except PlimsollError:
            return
        if card.id != gpu.id:
            raise InputError("--gpu", gpu.id, f"the profile {bundle.folder} is of {bundle.hardware}")


def check_precision(folder: object, measured: tuple[str, str], asked: tuple[str, str]) -> None:
    """Compare precisions of weights and cache: other ones take other kernels, whose times nobody measured.

    Args:
        folder: of the profile.
        measured: of the weights and of the cache.
        asked: likewise; ``auto`` is a cache in 16 bit.

    Raises:
        InfeasibleError: they differ.
    """
    for flag, found, wanted in zip(("--precision", "--kv-precision"), measured, asked, strict=True):
        sixteen = found in SIXTEEN_BIT and wanted in (*SIXTEEN_BIT, "auto")
        if found != wanted and not sixteen:
            raise other_precision(folder, flag, found, wanted)


def other_precision(folder: object, flag: str, measured: str, asked: str) -> InfeasibleError:
    """The refusal: no `InputError`, so that a search over precisions leaves such ones out and goes on."""
    quantised = "" if flag != "--precision" else " and no composition that quantises weights"
    return InfeasibleError(
        f"{flag}: {asked!r} cannot be used; the profile {folder} was measured in {measured}: take {flag} {measured}"
        f"{quantised}, or --step-model roofline",
        "precision",
    )
