"""Are measured runs of this model and GPU, in seconds, and of a real server? Asked before anything is fitted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plimsoll.api.resolve import Resolved
from plimsoll.calibration import MeasuredRun, Seen
from plimsoll.catalog.accelerators import Accelerator, list_accelerators, load_accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.models import load_model
from plimsoll.core.columns import Floats
from plimsoll.core.errors import InputError, PlimsollError
from plimsoll.core.step import StepShape
from plimsoll.perf.error_bands import error_band
from plimsoll.perf.roofline import Roofline, RooflineOptions

FASTEST = 0.8
"""Of the hardware's limit: boost clocks lie above the datasheet's, and small weights can stay in a large cache."""
FASTEST_COMPOSED = 1 / 16
"""The same under a composition, which may read a quarter of the weights and give several tokens a step."""
SLOWEST = 300.0
"""Measured over modelled: a unit mixed up is 1,000, and no step model worth mending is off by a third of that."""
DIFFERENT_FRAC = 0.1
"""Share of the judged requests that must have times of their own: a clock seldom repeats itself to the last digit."""
LEAST_USABLE, MOST_USABLE = 0.25, 0.5


def check_origin(runs: Sequence[MeasuredRun], model: ModelSpec, gpu: Accelerator) -> list[str]:
    """Compare the model and GPU that files name with those that were asked for.

    Returns:
        Sentences where a name says nothing certain: a server's alias, a name that is in no catalogue, a GPU of the
        user's own file.

    Raises:
        InputError: a file says that it is of another GPU, or of a model of another shape.
    """
    notes = []
    for run in runs:
        origin = run.origin
        if origin is None:
            continue
        if origin.gpu is not None and (known := _gpu(origin.gpu)) != gpu.id:
            if known is not None and gpu.id in list_accelerators():
                remedy = f"this is --gpu {gpu.id}: give --gpu {known}, or runs of {gpu.id}"
                raise InputError(f"{origin.file} gpu", origin.gpu, remedy)
            notes.append(f"{origin.file}: the GPU is called {origin.gpu!r}; it is taken for --gpu {gpu.id}")
        if origin.model is not None and not _is_called(model, origin.model):
            found = _model(origin.model)
            if found is not None and _shape(found) == _shape(model):
                continue
            if found is not None and not origin.is_alias:
                remedy = f"this is --model {model.id}: give --model {found.id}, or runs of {model.id}"
                raise InputError(f"{origin.file} model", origin.model, remedy)
            what = "a server's alias?" if origin.is_alias else "a copy under another name?"
            notes.append(f"{origin.file}: the model is called {origin.model!r} ({what}); it is taken for {model.id}")
    return notes


def _gpu(name: str) -> str | None:
    try:
        return load_accelerator(name).id
    except PlimsollError:
        return None


def _model(name: str) -> ModelSpec | None:
    """From the catalogue alone: without its organisation a name is never looked up on the hub."""
    try:
        return load_model(name.rstrip("/").rpartition("/")[2])
    except PlimsollError:
        return None


def _is_called(model: ModelSpec, name: str) -> bool:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return any(known.rpartition("/")[2].lower() == last for known in (model.id, *model.aliases))


def _shape(model: ModelSpec) -> tuple[object, ...]:
    return model.hidden_size, model.vocab_size, model.groups


def check_times(run: MeasuredRun, modelled: Seen, resolved: Resolved) -> None:
    """Compare a run with what the hardware allows, and with what the step model says of the same requests.

    A server reads its weights once a step, so the median request has waited that long for its first token and for
    every other; contexts, batches and the host come on top.

    Raises:
        InputError: faster than the hardware, hundreds of times slower than modelled, or the same times again and again.
    """
    counted = run.counted
    num_different = len(np.unique(np.column_stack([run.ttft_s[counted], run.e2e_s[counted]]), axis=0))
    if num_different < max(2.0, DIFFERENT_FRAC * int(counted.sum())):
        found = f"{num_different} different times in {int(counted.sum())} requests"
        raise InputError(run.name, found, "every request of a server has its own: are these copies of a few rows?")
    limit_s = _limit_s(resolved)
    composed = bool(resolved.step_model_facts.get("compositions"))
    for name, ours, theirs in (
        ("TTFT", run.ttft_s, modelled.ttft_s),
        ("time per output token", run.tpot_s, modelled.tpot_s),
    ):
        measured_s, modelled_s = _median(ours[counted]), _median(theirs[counted])
        if measured_s is None:
            continue
        gpu, model = resolved.gpu.id, resolved.model.id
        if limit_s is not None and measured_s < limit_s * (FASTEST_COMPOSED if composed else FASTEST):
            reason = f"{gpu} needs {_shown(limit_s)} to read the weights of {model} once"
            remedy = f"{reason}: are these seconds, of this model, GPU and --precision?"
            raise InputError(run.name, f"median {name} of {_shown(measured_s)}", remedy)
        is_queue = name == "TTFT" and _median(run.tpot_s[counted]) is not None  # an overload may make TTFTs this long
        if modelled_s and measured_s > SLOWEST * modelled_s and not is_queue:
            reason = f"{measured_s / modelled_s:,.0f} times the modelled {_shown(modelled_s)}"
            remedy = f"{reason}, which no factor mends: are these milliseconds?"
            raise InputError(run.name, f"median {name} of {_shown(measured_s)}", remedy)


def _limit_s(resolved: Resolved) -> float | None:
    """Seconds of a decode of one token at the datasheet's rates; None where the roofline cannot price it."""
    deployment = resolved.deployment
    try:
        bound = Roofline(
            resolved.model,
            resolved.gpu,
            deployment.parallelism,
            deployment.precision,
            deployment.kv_precision,
            options=RooflineOptions(ideal=True),
        )
        return bound.step(StepShape(num_decode=1, decode_read_tokens=1)).time_s
    except PlimsollError:
        return None


def _median(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def usable_error(resolved: Resolved) -> float:
    """The median error up to which calibrated predictions are of use: the far end of the step model's own band.

    A calibration that is further off than the model claims to be without one adds nothing. The band is of steps, and
    latencies under load are off by more, so 25 % are always allowed; 50 % are the most, and hold where there is no
    band.
    """
    band = error_band(resolved.step_model_facts)
    if band is None:
        return MOST_USABLE
    return min(max(-band.low_frac, band.high_frac, LEAST_USABLE), MOST_USABLE)
