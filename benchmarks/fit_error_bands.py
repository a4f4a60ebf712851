"""Measures how far predicted steps are off whole measured systems, and writes `perf/data/error_bands.toml`.

    PLIMSOLL_DATA=../shared/data python benchmarks/fit_error_bands.py [--write]

Replays the judging half of ML.ENERGY (no coefficient and no host time was fitted to it) under the roofline, under
`vllm-roofline` and, where the `silicon` extra is installed, under the measured tables: measured over predicted median
inter-token latency, row by row. The roofline and the tables say nothing of a host: they get that of vLLM 0.11 on those
machines, so their bands are of kernels beside a host that is known. `vllm-roofline` has its own.
The error of profiles is that of `docs/validation.json`, suite `real-vllm`; that of compositions the published gains of
H2O in suite `papers`. About a minute. Without `--write` nothing is changed; the bands are printed, and how many rows of
each GPU lie inside the band of the other GPUs' rows.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plimsoll.catalog.accelerators import load_accelerator  # noqa: E402
from plimsoll.core.errors import PlimsollError  # noqa: E402
from plimsoll.perf.build import build_step_model  # noqa: E402
from plimsoll.perf.overheads import load_overheads  # noqa: E402
from plimsoll.perf.request import StepModelRequest  # noqa: E402
from validation import ml_energy  # noqa: E402

DATA = Path(os.environ.get("PLIMSOLL_DATA") or ROOT.parent / "shared" / "data")
TARGET = ROOT / "src" / "plimsoll" / "perf" / "data" / "error_bands.toml"
DATE = "2026-11-20"
SOURCE = "https://github.com/ml-energy/leaderboard public/data (ML.ENERGY v3), judging half"
COVERAGE = 0.8
HOST_ADDED = ", the host time of those servers added"
Rows = dict[str, list[float]]


def residuals(step_model: str) -> Rows:
    """Measured over predicted inter-token latency less 1 of every judged row, by GPU."""
    found: Rows = {}
    original = ml_energy._steps
    ml_energy._steps = _steps
    try:
        for row in ml_energy._read(DATA / "ml-energy" / "llm_text.csv"):
            if ml_energy.half(row) != "judge":
                continue
            try:
                error = ml_energy.row_errors(row, step_model)[0]
            except PlimsollError as refused:
                print(f"  left out: {row['gpu']} {row['model']}: {refused}")
                continue
            found.setdefault(load_accelerator(ml_energy.GPUS.get(row["gpu"], row["gpu"])).id, []).append(
                1 / (1 + error) - 1
            )
    finally:
        ml_energy._steps = original
    return found


@functools.lru_cache(maxsize=8)
def _steps(model: str, gpu: str, cut: Any, precision: str, step_model: str) -> Any:
    """What `ml_energy` builds its steps with, with the host time of the machines measured."""
    card = load_accelerator(gpu)
    generation = "blackwell" if card.architecture == "blackwell" else "hopper"
    wanted = StepModelRequest(
        model=ml_energy.find_model(model),
        gpu=card,
        parallelism=cut,
        precision=precision,
        overheads=load_overheads(f"vllm-0.11-{generation}{'-ep' if cut.ep > 1 else ''}"),
        options={"allow_fallback": True} if step_model == "silicon" else {},
    )
    return build_step_model(step_model, wanted)


def central(errors: list[float]) -> tuple[float, float]:
    """The ends between which `COVERAGE` of the errors lie, as many below as above."""
    low, high = np.quantile(errors, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def band(step_model: str, gpu: str, errors: list[float], basis: str) -> dict[str, Any]:
    """One table of the file."""
    low, high = central(errors)
    return {
        "step_model": step_model,
        "gpu": gpu,
        "low_frac": round(low, 3),
        "high_frac": round(high, 3),
        "median_abs_frac": round(float(np.median(np.abs(errors))), 3),
        "coverage_frac": COVERAGE,
        "num_runs": len(errors),
        "basis": basis,
        "source": SOURCE,
        "date": DATE,
    }


def system_bands(step_model: str) -> list[dict[str, Any]]:
    """A band of each GPU, and from the lowest end to the highest for GPUs without runs; prints why no narrower one."""
    rows, host = residuals(step_model), "" if step_model == "vllm-roofline" else HOST_ADDED
    bands = [
        band(step_model, gpu, errors, f"{len(errors)} measured vLLM runs on {gpu}{host}")
        for gpu, errors in sorted(rows.items())
    ]
    for gpu, errors in sorted(rows.items()):
        low, high = central([error for other, theirs in rows.items() if other != gpu for error in theirs])
        inside = float(np.mean([low <= error <= high for error in errors]))
        print(f"{step_model}: {inside:.0%} of {len(errors)} rows of {gpu} inside the others' {low:+.0%} to {high:+.0%}")
    pooled = [error for errors in rows.values() for error in errors]
    names = " and of those on ".join(sorted(rows))
    anywhere = band(step_model, "", pooled, f"the widest of the band of measured vLLM runs on {names}{host}")
    anywhere["low_frac"] = min(each["low_frac"] for each in bands)
    anywhere["high_frac"] = max(each["high_frac"] for each in bands)
    anywhere["median_abs_frac"] = max(each["median_abs_frac"] for each in bands)
    return [anywhere, *bands]


def profile_band(suites: dict[str, Any]) -> dict[str, Any]:
    """Both measured runs, every figure: too few for percentiles, so the band is the largest error seen, both ways."""
    runs = suites["real-vllm"]["figures"]
    errors = [1 / (1 + e) - 1 for run in runs.values() if isinstance(run, dict) and "ttft" in run
              for figure in ("ttft", "tpot", "latency") for e in run[figure].values()]  # fmt: skip
    most = round(float(np.max(np.abs(errors))), 3)
    return {
        **band(
            "profile", "", errors, "two measured vLLM runs, 15 latency figures each, on the profiled machine and model"
        ),
        "low_frac": -most,
        "high_frac": most,
        "coverage_frac": 1.0,
        "num_runs": 2,
        "source": "https://github.com/casys-kaist/LLMServingSim 2.0 bench (MIT): RTX 4090, RTX PRO 6000, vLLM 0.19.0",
    }


def composition(suites: dict[str, Any]) -> dict[str, Any]:
    """The median error of published gains of a composition over the same system without it."""
    gains = [row["error"] for row in suites["papers"]["figures"]["h2o"] if row["figure"].endswith("gain")]
    return {
        "median_abs_frac": round(float(np.median(np.abs(gains))), 3),
        "num_runs": len(gains),
        "source": "https://arxiv.org/abs/2306.14048 (H2O), throughput gains over FlexGen",
        "date": DATE,
        "note": "Published gains of one composition; that the others are off by as much is an assumption.",
    }


def as_toml(bands: list[dict[str, Any]], extra: dict[str, Any]) -> str:
    """The file."""
    lines = [
        "# Written by benchmarks/fit_error_bands.py: measured over predicted seconds less 1 of four runs of five.",
        "# An empty gpu stands for every GPU without runs of its own.",
    ]
    for header, table in (*(("[[runs]]", each) for each in bands), ("[composition]", extra)):
        lines += ["", header]
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the data file")
    write = parser.parse_args().write
    suites = json.loads((ROOT / "docs" / "validation.json").read_text(encoding="utf-8"))
    bands = [entry for name in ("roofline", "vllm-roofline", "silicon") for entry in system_bands(name)]
    text = as_toml([*bands, profile_band(suites)], composition(suites))
    print(text)
    if write:
        TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
