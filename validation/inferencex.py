"""Suite `inferencex`: measured mean TTFT and TPOT of 5,221 public rows (InferenceX and others) against predictions.

Data: `silicon_sample.csv` of `aiconfigurator-core` (the default), or any CSV with its columns. Factors are fitted on
the tuning half only (`_inferencex_fit`); whole deployments lie in one half. Medians are of absolutes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.core.errors import InputError, PlimsollError
from plimsoll.core.source import weakest
from validation._csv import csv_rows
from validation._inferencex_factors import Factors, load_factors
from validation._inferencex_model import Prediction, predict
from validation._inferencex_peer import beside, table
from validation._inferencex_recipes import recipe_of
from validation._inferencex_rows import LAYOUT, NEEDED, Row, package_file, read_rows

ANSWERED, TPOT, TTFT = 0.90, 0.10, 0.20
# AIConfigurator on all 5,221 rows, incomplete ones included: quoted. `aiconfigurator` holds what was measured here.
PEER = {"tpot_median_abs_error": 0.18, "ttft_median_abs_error": 0.50, "answered_frac": 0.42}
DEFAULT_DATA = True
MOST_RANKS = 8  # of a deployment whose columns hold its layout
COLUMNS = (
    *LAYOUT, *NEEDED, "id", "silicon_data_source", "backend_version", "isl", "osl", "batch_size",
    "silicon_ttft_ms", "silicon_tpot_ms",
)  # fmt: skip
Errors = list[tuple[Row, float, float]]


def run(paths: Sequence[Path], *, limit: int | None = None) -> dict[str, Any]:
    """Predict every complete row; `limit` takes that many, evenly spread.

    Raises:
        InputError: no data, another format, or no row to judge by.
    """
    files = list(paths) or [package_file("systems", "silicon_sample.csv")]
    rows = [row for path in files for row in _read(path)]
    complete = [row for row in rows if row.complete]
    if limit is not None and limit < len(complete):
        complete = [complete[i] for i in np.linspace(0, len(complete) - 1, limit).astype(int)]
    if not any(row.half == "judge" for row in complete):
        remedy = "no complete row is of the judging half: give more rows, or a higher --limit"
        raise InputError("--data", ", ".join(map(str, files)), remedy)
    predictions, refused = predict_all(complete)
    factors = load_factors()
    halves = {name: [row for row in complete if name in ("all", row.half)] for name in ("tune", "judge", "all")}
    errors = {name: errors_of(part, predictions, factors) for name, part in halves.items()}
    figures: dict[str, Any] = {name: _figures(halves[name], errors[name]) for name in halves}
    raw = errors_of(halves["judge"], predictions, Factors())
    figures["judge_without_factors"] = _figures(halves["judge"], raw)
    figures["judge_by"] = {name: _split(errors["judge"], key) for name, key in _KEYS.items()}
    figures["peer"] = PEER
    figures["refused"] = dict(Counter(refused.values()).most_common(10))
    figures["sources"] = dict(Counter(str(prediction.source) for prediction in predictions.values()))
    figures["num_incomplete_rows"] = len(rows) - sum(row.complete for row in rows)
    figures["aiconfigurator"] = beside(errors["judge"])
    figures["side by side"] = table(figures["aiconfigurator"], figures["judge"]["answered_frac"])
    from validation._inferencex_causes import split  # it fits, and the fit predicts with this module

    figures["error split of the judged TTFT"] = split(halves["judge"], predictions, factors)
    figures["causes"] = _causes(errors["judge"])
    judge = figures["judge"]
    passed = (
        judge["answered_frac"] >= ANSWERED  # above zero: what follows is there
        and judge["tpot_median_abs_error"] <= TPOT
        and judge["ttft_median_abs_error"] <= TTFT
    )
    used = [predictions[row.id].source for row in complete if row.id in predictions]
    return {
        "passed": bool(passed),
        "summary": (
            f"judging half: {judge['answered_frac']:.0%} answered, {_said(judge)} (aims {TPOT:.0%}, {TTFT:.0%}); "
            f"weakest source {weakest(used) if used else 'none'}"
        ),
        "figures": figures,
        "plots": _plots(errors["judge"]),
    }


def _said(judge: dict[str, Any]) -> str:
    if "tpot_median_abs_error" not in judge:
        return "no errors to tell"
    tpot, ttft = judge["tpot_median_abs_error"], judge["ttft_median_abs_error"]
    return f"TPOT {tpot:.1%}, TTFT {ttft:.1%} median absolute error"


def _read(path: Path) -> list[Row]:
    """`read_rows` of a file that anybody may have made.

    Raises:
        InputError: no such file, another format, or a measured time that is none.
    """
    csv_rows(path, COLUMNS, "give a CSV in the format of silicon_sample.csv")
    try:
        rows = read_rows(path)
    except OverflowError as error:
        raise InputError("--data", str(path), "write finite numbers of tokens and requests") from error
    for row in rows:
        if not all(0 < value < math.inf for value in (row.ttft_s, row.tpot_s)):
            found = {name: row.fields[name] for name in ("silicon_ttft_ms", "silicon_tpot_ms")}
            raise InputError(f"{path.name}, row {row.id}", found, "write milliseconds above 0")
    return rows


def _plots(errors: Errors) -> dict[str, Any]:
    """Every judged row: predicted over measured TTFT, and how the errors are distributed."""
    kinds = {"one pool": False, "prompts and decodes apart": True}
    points = {
        name: [[row.ttft_s, row.ttft_s * (1 + ttft)] for row, ttft, _ in errors if row.is_disaggregated == apart]
        for name, apart in kinds.items()
    }
    signed = {"TPOT": [tpot for _, _, tpot in errors], "TTFT": [ttft for _, ttft, _ in errors]}
    return {
        "inferencex-ttft": {
            "kind": "scatter",
            "title": "InferenceX, judging half: TTFT",
            "x": "measured, s",
            "y": "predicted, s",
            "series": points,
        },
        "inferencex-errors": {
            "kind": "errors",
            "title": "InferenceX, judging half",
            "bound": TTFT,
            "series": signed,
        },
    }


def predict_all(rows: Sequence[Row]) -> tuple[dict[str, Prediction], dict[str, str]]:
    """Predictions by row id, and the reason of every refusal; deployments apart go to processes apart."""
    ordered = sorted(rows, key=lambda row: (row.deployment, row.id))
    workers = min(2, os.cpu_count() or 1, max(1, len(rows) // 50))
    if workers == 1:
        answers = [_answer(row) for row in ordered]
    else:
        with ProcessPoolExecutor(workers) as pool:
            answers = list(pool.map(_answer, ordered, chunksize=40))
    predictions, refused = {}, {}
    for row, answer in zip(ordered, answers, strict=True):
        if isinstance(answer, str):
            refused[row.id] = answer
        else:
            predictions[row.id] = answer
    return predictions, refused


def _answer(row: Row) -> Prediction | str:
    try:
        return predict(row)
    except PlimsollError as error:
        return str(error)[:120]


def errors_of(rows: Sequence[Row], predictions: dict[str, Prediction], factors: Factors) -> Errors:
    """Row, signed TTFT error, signed TPOT error of every answered row."""
    found = []
    for row in rows:
        if row.id in predictions:
            ours = factors.apply(row, predictions[row.id])
            found.append((row, ours.ttft_s / row.ttft_s - 1, ours.tpot_s / row.tpot_s - 1))
    return found


def _figures(rows: Sequence[Row], errors: Errors) -> dict[str, Any]:
    ttft, tpot = np.array([e[1] for e in errors]), np.array([e[2] for e in errors])
    if not len(errors):
        return {"num_rows": len(rows), "answered_frac": 0.0}
    return {
        "num_rows": len(rows),
        "answered_frac": round(len(errors) / len(rows), 4),
        "tpot_median_abs_error": round(float(np.median(np.abs(tpot))), 4),
        "ttft_median_abs_error": round(float(np.median(np.abs(ttft))), 4),
        "tpot_median_error": round(float(np.median(tpot)), 4),
        "ttft_median_error": round(float(np.median(ttft)), 4),
        "tpot_p90_abs_error": round(float(np.quantile(np.abs(tpot), 0.9)), 4),
        "ttft_p90_abs_error": round(float(np.quantile(np.abs(ttft), 0.9)), 4),
    }


_KEYS: dict[str, Callable[[Row], str]] = {
    "backend": lambda row: row.backend,
    "gpu": lambda row: row.gpu,
    "model": lambda row: row.fields["model_path"].split("/")[-1],
    "mode": lambda row: "disaggregated" if row.is_disaggregated else "aggregated",
    "client": lambda row: row.client,
}


def _split(errors: Errors, key: Callable[[Row], str]) -> dict[str, Any]:
    groups: dict[str, Errors] = {}
    for error in errors:
        groups.setdefault(key(error[0]), []).append(error)
    return {name: _figures([e[0] for e in part], part) for name, part in sorted(groups.items())}


def _causes(errors: Errors) -> dict[str, Any]:
    """Where the judged error lies: rows that a column would explain if there were one, and the rest."""
    causes: dict[str, Callable[[Row], bool]] = {
        "layouts told by a total and a public recipe": lambda row: row.num_ways("tp_size") > MOST_RANKS,
        "disaggregated: two pools": lambda row: row.is_disaggregated,
        "another client": lambda row: row.client == "other",
        "speculation told by image and date": lambda row: recipe_of(row).speculative_tokens > 0,
        "SGLang": lambda row: row.backend == "sglang",
    }
    left, found = errors, {}
    for name, matches in causes.items():
        found[name] = _figures([e[0] for e in left if matches(e[0])], [e for e in left if matches(e[0])])
        left = [e for e in left if not matches(e[0])]
    found["none of these"] = _figures([e[0] for e in left], left)
    return found
