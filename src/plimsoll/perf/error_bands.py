"""How far a predicted step time may be off: bands from residuals, never from a feeling.

A band is where measured over predicted seconds of a step fell in four runs of five of the same step model, on machines
whose measurements no coefficient of it was fitted to (``data/error_bands.toml``, written by
``benchmarks/fit_error_bands.py``). Where there are no such runs, a wider one is made of those there are:

- a step model and GPU with measured runs: the 10th to the 90th percentile of their residuals;
- another GPU: from the lowest to the highest end of the GPUs that have runs, because one band does not carry over (the
  H100's holds half to two thirds of the B200's runs, the B200's most of the H100's);
- a model of an engine, on an architecture where nobody measured that engine (`engine_measured`): not narrower than the
  roofline's, which says nothing of engines;
- one whose operators nobody measured either: that, widened by the error of borrowing coefficients (`efficiency`);
- measured tables with holes that the roofline fills: from the lower to the upper end of the bands of both;
- compositions on top: widened once each, by the error of gains that were published;
- under a calibration: the band without it. How far off calibrated predictions are, `plimsoll calibrate` says.

Errors widen each other as independent ones do: the squares of the logarithms add up. A median stands for a spread as it
does in a normal distribution, of which 80 % lie within 1.9 times the median distance.

Models of kernels alone (roofline, measured tables) were given the host time of the servers measured; under an engine's
own that differs, the difference comes on top (``docs/step-cost.md``).

A band is of step time. At light load TPOT and the prefill's part of TTFT are off by as much; towards saturation waiting
grows faster than the step, and a capacity found at a target moves about inversely to it. All runs are vLLM's on NVIDIA
GPUs: that another vendor's machine with measured operators does as well is not known.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

HALF_WIDTHS_PER_MEDIAN = 1.9
"""Of a normal distribution: the half-width that holds 80 % over the median absolute deviation, 1.2816 / 0.6745."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorBand:
    """Where the measured step time lies, given the predicted one.

    Attributes:
        low_frac, high_frac: measured over predicted seconds less 1, the ends of the band; low is above -1.
        median_abs_frac: the median distance of measured from predicted, over predicted.
        coverage_frac: share of the runs that lay inside the band it was made of.
        num_runs: how many those were; runs of one machine and model are much alike.
        basis: in words, what was compared and what was assumed.
        source: where the measurements come from.
        date: when they were evaluated, ISO.
    """

    low_frac: float
    high_frac: float
    median_abs_frac: float
    coverage_frac: float
    num_runs: int
    basis: str
    source: str
    date: str

    def to_json_dict(self) -> dict[str, Any]:
        """Plain values, the key ``error_band`` of documents."""
        rounded = {name: round(getattr(self, name), 3) for name in ("low_frac", "high_frac", "median_abs_frac")}
        return {"of": "seconds of a step", **dataclasses.asdict(self), **rounded}


def error_band(facts: Mapping[str, Any]) -> ErrorBand | None:
    """The band of a step model's predictions.

    Args:
        facts: what its `describe` says of itself.

    Returns:
        None for a step model that was never compared with measured runs.
    """
    table = load_error_bands()
    name, gpu = str(facts.get("step_model", "")), str(facts.get("gpu", ""))
    band = _measured(table, name, gpu)
    if band is None:
        return None
    if facts.get("fallbacks") or not facts.get("engine_measured", True):
        band = _around(band, _measured(table, "roofline", gpu))
    borrowed_frac = float(facts.get("borrowed_error_frac", 0.0))
    if borrowed_frac:
        reason = f"{gpu} not measured: {borrowed_frac:.0%} for coefficients of {facts.get('efficiency')}"
        band = _widened(band, borrowed_frac, reason)
    for composition in facts.get("compositions", ()):
        error_frac = table["composition"]["median_abs_frac"]
        band = _widened(band, error_frac, f"{error_frac:.0%} for {composition['name']}")
    if facts.get("calibration"):
        band = dataclasses.replace(band, basis=f"{band.basis}; before calibration")
    return band


def widest(bands: Iterable[ErrorBand]) -> ErrorBand:
    """The band from the lowest to the highest end of several, for a comparison across step models or GPUs.

    Raises:
        ValueError: there are none.
    """
    first, *others = bands
    for other in others:
        first = _around(first, other)
    return first


@functools.cache
def load_error_bands() -> Mapping[str, Any]:
    """The data file."""
    text = (resources.files("plimsoll.perf") / "data" / "error_bands.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _measured(table: Mapping[str, Any], step_model: str, gpu: str) -> ErrorBand | None:
    """The band of the GPU's own runs, else that for GPUs without."""
    rows = [row for row in table["runs"] if row["step_model"] == step_model and row["gpu"] in (gpu, "")]
    if not rows:
        return None
    row = max(rows, key=lambda row: bool(row["gpu"]))
    return ErrorBand(
        low_frac=row["low_frac"],
        high_frac=row["high_frac"],
        median_abs_frac=row["median_abs_frac"],
        coverage_frac=row["coverage_frac"],
        num_runs=row["num_runs"],
        basis=row["basis"] if row["gpu"] == gpu or not gpu else f"{row['basis']}; none on {gpu}",
        source=row["source"],
        date=row["date"],
    )


def _widened(band: ErrorBand, error_frac: float, reason: str) -> ErrorBand:
    """`band` with another, independent error of median `error_frac`."""
    own = HALF_WIDTHS_PER_MEDIAN * math.log1p(error_frac)
    median = math.hypot(math.log1p(band.median_abs_frac), math.log1p(error_frac))
    return dataclasses.replace(
        band,
        low_frac=math.expm1(-math.hypot(math.log1p(min(band.low_frac, 0.0)), own)),
        high_frac=math.expm1(math.hypot(math.log1p(max(band.high_frac, 0.0)), own)),
        median_abs_frac=math.expm1(median),
        basis=f"{band.basis}; widened: {reason}",
    )


def _around(band: ErrorBand, other: ErrorBand | None) -> ErrorBand:
    """From the lower end of both to the upper."""
    if other is None:
        return band
    return dataclasses.replace(
        band,
        low_frac=min(band.low_frac, other.low_frac),
        high_frac=max(band.high_frac, other.high_frac),
        median_abs_frac=max(band.median_abs_frac, other.median_abs_frac),
        coverage_frac=min(band.coverage_frac, other.coverage_frac),
        num_runs=min(band.num_runs, other.num_runs),
        basis=band.basis if band.basis == other.basis else f"{band.basis}; and {other.basis}",
        source=band.source if band.source == other.source else f"{band.source}; {other.source}",
    )
