"""AIConfigurator's answers to the judged rows, beside ours: `aiconfigurator_0.12.csv`, measured once.

`python -m validation._inferencex_peer OUT.csv`, where the package `aiconfigurator` is installed, writes such a file: it
is asked for every judged row as its makers ask it for their accuracy tests (`cli_estimate` with the row's columns, its
own default tables where it has none of the row's engine version). Models whose configs it would download, and which it
ships under another name, are asked for under that name.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from validation._inferencex_rows import NEEDED, SIZES, Row, number, package_file, read_rows

FILE = Path(__file__).with_name("aiconfigurator_0.12.csv")
SOURCE = "https://pypi.org/project/aiconfigurator/ 0.12.0 (Apache-2.0), cli_estimate on each judged row, 2026-11-20"
SHIPPED_AS = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}
Answers = Mapping[str, tuple[float, float]]
Errors = Sequence[tuple[Row, float, float]]


def key(row_id: str) -> str:
    """The short name of a row in the file."""
    return hashlib.sha1(row_id.encode()).hexdigest()[:10]


def load_answers(path: Path = FILE) -> tuple[Answers, set[str]]:
    """TTFT and TPOT in s by `key`, and the keys of all rows that were asked for."""
    if not path.is_file():
        return {}, set()
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(line for line in file if not line.startswith("#")))
    answered = {
        line["row"]: (float(line["ttft_ms"]) / 1e3, float(line["tpot_ms"]) / 1e3) for line in lines if line["ttft_ms"]
    }
    return answered, {line["row"] for line in lines}


def beside(errors: Errors, path: Path = FILE) -> dict[str, Any]:
    """Median absolute errors of both on the rows that both answer; empty where the file has none of them."""
    answers, asked = load_answers(path)
    both = [(row, ttft, tpot, *answers[key(row.id)]) for row, ttft, tpot in errors if key(row.id) in answers]
    if not both:
        return {}
    theirs_ttft = [abs(ttft_s / row.ttft_s - 1) for row, _, _, ttft_s, _ in both]
    theirs_tpot = [abs(tpot_s / row.tpot_s - 1) for row, _, _, _, tpot_s in both]
    num_asked = sum(key(row.id) in asked for row, _, _ in errors)
    return {
        "source": SOURCE,
        "num_rows_asked": num_asked,
        "num_rows": len(both),
        "answered_frac": round(len(both) / num_asked, 4),
        "tpot_median_abs_error": _median(theirs_tpot),
        "ttft_median_abs_error": _median(theirs_ttft),
        "ours_tpot_median_abs_error": _median([abs(tpot) for _, _, tpot, _, _ in both]),
        "ours_ttft_median_abs_error": _median([abs(ttft) for _, ttft, _, _, _ in both]),
    }


def table(figures: Mapping[str, Any], all_answered_frac: float) -> list[dict[str, Any]]:
    """What `beside` found as two lines, ours and theirs; empty where it found nothing."""
    if not figures:
        return []
    ours = {"tpot": figures["ours_tpot_median_abs_error"], "ttft": figures["ours_ttft_median_abs_error"]}
    theirs = {"tpot": figures["tpot_median_abs_error"], "ttft": figures["ttft_median_abs_error"]}
    lines = (("Plimsoll", all_answered_frac, ours), ("AIConfigurator 0.12", figures["answered_frac"], theirs))
    return [
        {
            "predictor": name,
            "share of the judged rows answered": answered,
            f"TPOT median abs error on the {figures['num_rows']} that both answer": errors["tpot"],
            "TTFT on the same": errors["ttft"],
        }
        for name, answered, errors in lines
    ]


def _median(values: Sequence[float]) -> float:
    return round(float(np.median(values)), 4)


# Asking it


def ask(row: Row, estimate: Any) -> tuple[float, float] | None:
    """TTFT and TPOT in ms, None where it refuses. `estimate` is its `cli_estimate`."""
    stages = ("",) if not row.is_disaggregated else ("prefill_", "decode_")
    names = [stage + size for stage in stages for size in SIZES]
    names += ["batch_size"] if not row.is_disaggregated else list(NEEDED)
    arguments: dict[str, Any] = {name: number(row.fields[name]) for name in names if number(row.fields.get(name))}
    arguments |= {
        "model_path": SHIPPED_AS.get(row.fields["model_path"], row.fields["model_path"]),
        "system_name": row.fields["system"],
        "mode": row.fields["mode"],
        "backend_name": row.backend,
        "isl": row.prompt_tokens,
        "osl": row.output_tokens,
        "gemm_quant_mode": row.fields["gemm_quant_mode"] or None,
        "moe_quant_mode": row.fields["moe_quant_mode"] or None,
    }
    for version in (row.fields["backend_version"] or None, None):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                answer = estimate(**arguments, backend_version=version)
            return float(answer.ttft), float(answer.tpot)
        except Exception as error:  # whatever another program raises is a refusal
            if version is None or not any(part in str(error) for part in ("version", "perf database")):
                return None
    return None


def main() -> None:
    """Ask for every judged row and write the file."""
    estimate = importlib.import_module("aiconfigurator.cli.api").cli_estimate
    rows = [row for row in read_rows(package_file("systems", "silicon_sample.csv")) if row.complete]
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {SOURCE}; rows by the first ten digits of the SHA-1 of their id; empty where it refuses\n")
        writer = csv.writer(file)
        writer.writerow(("row", "ttft_ms", "tpot_ms"))
        for row in rows:
            if row.half == "judge":
                answer = ask(row, estimate)
                writer.writerow((key(row.id), *(("", "") if answer is None else (f"{v:.4g}" for v in answer))))


if __name__ == "__main__":
    main()
