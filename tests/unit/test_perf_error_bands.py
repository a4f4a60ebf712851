"""Error bands: the data, which band a prediction gets, and how bands widen."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import plimsoll
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import PlimsollError
from plimsoll.perf import error_bands
from plimsoll.perf.compositions import build_composed
from plimsoll.perf.error_bands import ErrorBand, error_band, load_error_bands, widest
from plimsoll.perf.overheads import load_overheads
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.roofline import Roofline
from validation import ml_energy

ROWS = load_error_bands()["runs"]


def band_of(step_model: str, gpu: str) -> ErrorBand:
    model = load_model("Llama-3.1-8B")
    found = error_band(build_composed(step_model, StepModelRequest(model=model, gpu=load_accelerator(gpu))).describe())
    assert found is not None
    return found


def a_band(low: float = -0.2, high: float = 0.3, median: float = 0.1) -> ErrorBand:
    return ErrorBand(
        low_frac=low, high_frac=high, median_abs_frac=median, coverage_frac=0.8, num_runs=9,
        basis="nine runs", source="https://example.org", date="2026-11-20",
    )  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['step_model']}-{row['gpu'] or 'other'}")
def test_every_band_is_one_and_cites_its_source(row: dict[str, Any]) -> None:
    assert -1 < row["low_frac"] < 0 < row["high_frac"]
    assert 0 < row["median_abs_frac"] <= max(-row["low_frac"], row["high_frac"])
    assert 0.5 < row["coverage_frac"] <= 1
    assert row["num_runs"] >= 2
    assert row["source"].startswith("https://")
    assert len(row["date"]) == 10
    assert not row["gpu"] or load_accelerator(row["gpu"]).id == row["gpu"]


def test_a_gpu_without_runs_gets_no_narrower_a_band_than_any_with() -> None:
    for row in ROWS:
        anywhere = next(each for each in ROWS if each["step_model"] == row["step_model"] and not each["gpu"])
        assert anywhere["low_frac"] <= row["low_frac"]
        assert anywhere["high_frac"] >= row["high_frac"]
        assert anywhere["median_abs_frac"] >= row["median_abs_frac"]


@pytest.mark.parametrize("step_model", ["roofline", "vllm-roofline"])
def test_a_gpu_with_runs_gets_its_own_band(step_model: str) -> None:
    own = next(row for row in ROWS if row["step_model"] == step_model and row["gpu"] == "H100-SXM")
    band = band_of(step_model, "H100-SXM")
    assert (band.low_frac, band.high_frac, band.num_runs) == (own["low_frac"], own["high_frac"], own["num_runs"])
    assert "H100-SXM" in band.basis


def test_bands_widen_with_the_distance_from_what_was_measured() -> None:
    names = ("H100-SXM", "H200", "L4", "RTX-5090", "MI300X")  # runs; operators; segment; architecture; another vendor
    bands = [band_of("roofline", name) for name in names]
    for near, far in itertools.pairwise(bands):
        assert far.low_frac <= near.low_frac  # the lowest end of all may be the H100's own
        assert far.high_frac > near.high_frac
        assert far.median_abs_frac > near.median_abs_frac
    assert bands[2].low_frac < bands[1].low_frac
    assert "none on H200" in bands[1].basis
    assert "L4 not measured: 18% for coefficients of l40s" in bands[2].basis


def test_independent_errors_add_as_squares_of_logarithms() -> None:
    wider = error_bands._widened(a_band(), 0.18, "borrowed")
    own = 1.9 * math.log(1.18)
    assert math.log1p(wider.high_frac) == pytest.approx(math.sqrt(math.log(1.3) ** 2 + own**2))
    assert math.log1p(wider.low_frac) == pytest.approx(-math.sqrt(math.log(0.8) ** 2 + own**2))
    assert wider.high_frac == pytest.approx(0.5061, abs=1e-4)
    assert wider.low_frac == pytest.approx(-0.3200, abs=1e-4)
    assert wider.basis == "nine runs; widened: borrowed"


@given(low=st.floats(-0.95, 0.5), high=st.floats(-0.5, 5.0), error_frac=st.floats(0.0, 3.0))
def test_a_widened_band_holds_the_old_one_and_no_negative_time(low: float, high: float, error_frac: float) -> None:
    wider = error_bands._widened(a_band(low, high), error_frac, "")
    assert -1 < wider.low_frac <= min(low, 0) + 1e-12
    assert wider.high_frac >= max(high, 0) - 1e-12
    assert wider.median_abs_frac >= 0.1 - 1e-12


def test_every_composition_widens_once() -> None:
    plain = band_of("roofline", "H100-SXM")
    one = band_of("roofline+h2o,ratio=0.2", "H100-SXM")
    two = band_of("roofline+h2o,ratio=0.2+nanoflow", "H100-SXM")
    assert two.low_frac < one.low_frac < plain.low_frac
    assert plain.high_frac < one.high_frac < two.high_frac
    assert two.basis.count("widened") == 2
    assert "nanoflow" in two.basis


def test_holes_filled_by_the_roofline_take_both_bands() -> None:
    tables = {"step_model": "silicon", "gpu": "H100-SXM"}
    whole, filled = error_band(tables), error_band({**tables, "fallbacks": ["recurrent layers"]})
    roofline = error_band({"step_model": "roofline", "gpu": "H100-SXM"})
    assert whole is not None
    assert filled is not None
    assert roofline is not None
    assert filled.low_frac == min(whole.low_frac, roofline.low_frac)
    assert filled.high_frac == max(whole.high_frac, roofline.high_frac)
    assert filled.median_abs_frac == max(whole.median_abs_frac, roofline.median_abs_frac)


def test_an_engine_that_nobody_measured_there_is_no_nearer_than_the_roofline() -> None:
    """On Hopper and Blackwell its own band; on an A100 vLLM's constants are Hopper's."""
    own, near = band_of("vllm-roofline", "H100-SXM"), band_of("vllm-roofline", "H200")
    assert own.basis == "82 measured vLLM runs on H100-SXM"
    assert near.low_frac < own.low_frac
    assert near.high_frac > own.high_frac
    far, plain = band_of("vllm-roofline", "A100-SXM-80GB"), band_of("roofline", "A100-SXM-80GB")
    assert far.low_frac == min(near.low_frac, plain.low_frac)
    assert far.high_frac == max(near.high_frac, plain.high_frac)
    assert plain.basis in far.basis
    lone = band_of("vllm-roofline", "L4")  # neither the engine nor the operators
    assert lone.low_frac < far.low_frac
    assert lone.high_frac > far.high_frac
    assert band_of("vllm-roofline:sampler=greedy+nanoflow", "H100-SXM").high_frac > own.high_frac


def test_profiles_are_nearest_and_a_stranger_has_no_band() -> None:
    profile = error_band({"step_model": "profile"})
    roofline = band_of("roofline", "H100-SXM")
    assert profile is not None
    assert profile.high_frac - profile.low_frac < roofline.high_frac - roofline.low_frac
    assert error_band({"step_model": "constant"}) is None
    assert error_band({}) is None


def test_a_calibration_is_said_not_to_be_in_it() -> None:
    facts = {"step_model": "roofline", "gpu": "H100-SXM"}
    plain, calibrated = error_band(facts), error_band({**facts, "calibration": {"compute": 1.1}})
    assert plain is not None
    assert calibrated == dataclasses.replace(plain, basis=f"{plain.basis}; before calibration")


def test_the_widest_of_several() -> None:
    joined = widest([a_band(-0.1, 0.5, 0.2), a_band(-0.4, 0.2, 0.1)])
    assert (joined.low_frac, joined.high_frac, joined.median_abs_frac) == (-0.4, 0.5, 0.2)
    assert joined.basis == "nine runs"
    with pytest.raises(ValueError, match="not enough values"):
        widest([])


def test_documents_carry_it() -> None:
    document = plimsoll.simulate(
        model="Llama-3.1-8B", gpu="L4", prompt_tokens=64, output_tokens=4, rate_per_s=1, num_requests=5
    ).to_json_dict()
    said = document["sources"]["error_band"]
    assert said["of"] == "seconds of a step"
    assert -1 < said["low_frac"] < 0 < said["high_frac"]
    assert set(said) == {"of", *(field.name for field in dataclasses.fields(ErrorBand))}


def _plain(model: str, gpu: str, cut: Parallelism, precision: str, step_model: str) -> Roofline:
    """What the roofline's bands are of: with the host time of the machines measured."""
    assert step_model == "roofline"
    host = load_overheads(f"vllm-0.11-hopper{'-ep' if cut.ep > 1 else ''}")
    return Roofline(ml_energy.find_model(model), load_accelerator(gpu), cut, precision, "auto", host)


@pytest.mark.parametrize("step_model", ["roofline", "vllm-roofline"])
def test_the_band_holds_about_as_many_measured_runs_as_it_says(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, step_model: str
) -> None:
    """Every fourth judged row of the H100: the file was made of all 82, so 80 % of these 21, give or take three."""
    if step_model == "roofline":
        monkeypatch.setattr(ml_energy, "_steps", _plain)
    rows = ml_energy._read(shared_data / "ml-energy" / "llm_text.csv")
    judged = [row for row in rows if row["gpu"] == "H100" and ml_energy.half(row) == "judge"]
    band, inside = band_of(step_model, "H100-SXM"), []
    for row in judged[::4]:
        try:
            off = 1 / (1 + ml_energy.row_errors(row, step_model)[0]) - 1
        except PlimsollError:
            continue
        inside.append(band.low_frac <= off <= band.high_frac)
    assert len(inside) > 15
    assert 0.65 <= float(np.mean(inside)) <= 0.95
