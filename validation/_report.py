"""`python -m validation._report [--data FOLDER] [SUITE …]`: runs every suite and writes docs/validation.md and .json.

Suites whose data are missing are named as skipped. The page holds what was measured, and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plimsoll._version import __version__
from plimsoll.core.errors import PlimsollError
from validation._plots import to_svg

ROOT = Path(__file__).resolve().parent.parent
DATA_OF = {
    "schedules": "vllm-schedules/*.jsonl.gz",
    "real-vllm": "real-vllm",
    "inferencex": "",
    "ml-energy": "ml-energy/llm_text.csv",
    "operators": "operator-profiles",
    "guide-grid": "",
    "papers": ".",
}
"""Suite → what of the data folder it reads; an empty one brings its own data, a dot takes the folder if it is there."""

MEASURED_HERE = {"guide-grid": ROOT / "out" / "verify-vllm"}
"""Suites of what this machine measured itself; where that is not there, the page keeps what was found last."""

WHAT = {
    "schedules": "Does the `vllm-v1` policy schedule as vLLM's own scheduler did, step by step?",
    "real-vllm": "Signed errors against real vLLM 0.19 servers, from measured operator profiles alone.",
    "inferencex": "Errors against InferenceX measurements; tuned on one half of the deployments, judged by the other.",
    "ml-energy": "Errors against the ML.ENERGY leaderboard: inter-token latency, throughput, power, energy.",
    "operators": "Errors of the roofline on measured operators that were left out of its fit.",
    "guide-grid": "GUIDE's batches on a real vLLM server, from a profile of that server alone (`make verify-vllm`).",
    "papers": "Published figures of serving systems beside ours.",
}
MAX_ROWS = 60
METRICS = ("ttft", "tpot", "latency")


def main() -> int:
    """Run the suites asked for (all by default) and write the page."""
    parser = argparse.ArgumentParser(prog="python -m validation._report", description=__doc__)
    parser.add_argument("suites", nargs="*", default=list(DATA_OF))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "validation.md")
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".json")
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in arguments.suites:
        if name in MEASURED_HERE and not MEASURED_HERE[name].is_dir():
            results.setdefault(name, {"passed": None, "summary": "skipped: run make verify-vllm first", "figures": {}})
            continue
        results[name] = _run(name, arguments.data)
        results[name]["plots"] = _write_plots(arguments.out.parent / "plots", _plots(name, results[name]))
        sys.stderr.write(f"{name}: {results[name]['summary']}\n")
    path.write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.write_text(page({name: results[name] for name in DATA_OF if name in results}))
    return 0


def _run(name: str, data: Path) -> dict[str, Any]:
    pattern = DATA_OF[name]
    paths = [data] if pattern == "." else sorted(data.glob(pattern)) if pattern else []
    paths = [MEASURED_HERE[name]] if name in MEASURED_HERE else paths
    if pattern and not paths:
        return {"passed": None, "summary": f"skipped: no data at {pattern}", "figures": {}}
    started_s = time.perf_counter()
    try:
        result = importlib.import_module(f"validation.{name.replace('-', '_')}").run(paths)
    except ModuleNotFoundError as error:
        if error.name == f"validation.{name.replace('-', '_')}":
            return {"passed": None, "summary": "skipped: the suite is not written yet", "figures": {}}
        raise
    except PlimsollError as error:
        return {"passed": None, "summary": f"skipped: {error}", "figures": {}}
    return {**result, "wall_s": round(time.perf_counter() - started_s, 1)}


def _plots(name: str, result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A suite's own plots, or what its figures alone can show."""
    plots: dict[str, dict[str, Any]] = result.get("plots") or {}
    figures = result["figures"]
    if name == "real-vllm" and figures:
        series = {
            run.split("_")[0]: {
                f"{metric} {statistic}": found[metric][statistic] for metric in METRICS for statistic in found[metric]
            }
            for run, found in figures.items()
        }
        title = "Real vLLM servers: predicted over measured, less one"
        plots = {"real-vllm": {"kind": "bars", "title": title, "bound": 0.05, "series": series}}
    if name == "guide-grid" and figures.get("batches"):
        rows, metrics = figures["batches"], ("batch latency", "ttft", "decode throughput")
        signed = {metric: [row[f"{metric} error"] for row in rows] for metric in metrics}
        title = "GUIDE's grid on a real vLLM server"
        plots = {"guide-grid": {"kind": "errors", "title": title, "bound": 0.08, "series": signed}}
    return plots


def _write_plots(folder: Path, plots: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Write every plot as an SVG file; returns the titles by name."""
    for name, plot in plots.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svg").write_text(to_svg(plot), encoding="utf-8")
    return {name: plot["title"] for name, plot in plots.items()}


def page(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown page of all results."""
    lines = ["# Validation", "", "<!-- Made by: make validate -->", ""]
    lines += [
        f"Plimsoll {__version__} against the real world. `make validate` runs every suite again; each also runs",
        "",
    ]
    lines[-2] += " on any data of its format: `python -m validation SUITE --data PATH… [--json]`."
    lines += ["| suite | result | seconds |", "|---|---|---|"]
    for name, result in results.items():
        lines.append(f"| [{name}](#{name}) | {_verdict(result)} | {result.get('wall_s', '')} |")
    for name, result in results.items():
        lines += ["", f"## {name}", "", WHAT[name], "", result["summary"], ""]
        lines += [
            line for plot, title in result.get("plots", {}).items() for line in (f"![{title}](plots/{plot}.svg)", "")
        ]
        for title, table in result["figures"].items():
            if _is_table(table):
                lines += [f"### {title}", "", *_table(table), ""]
        rows = list(_flat({k: v for k, v in result["figures"].items() if not _is_table(v)}))
        if rows:
            lines += ["| figure | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows[:MAX_ROWS])]
        if len(rows) > MAX_ROWS:
            lines.append(f"\n{len(rows) - MAX_ROWS} more figures are in `docs/validation.json`.")
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(rows[0])
    head = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    return head + ["| " + " | ".join(_cell(key, row[key]) for key in keys) + " |" for row in rows]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{100 * value:+.1f} %" if key == "error" else f"{value:.4g}"
    return str(value)


def _verdict(result: dict[str, Any]) -> str:
    return {True: "passed", False: "**falls short**", None: "skipped"}[result["passed"]]


def _flat(figures: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(figures, dict):
        for key, value in figures.items():
            yield from _flat(value, f"{path} · {key}" if path else str(key))
    elif isinstance(figures, list) and len(figures) == 2 and all(isinstance(item, int) for item in figures):
        yield path, f"{figures[0]} of {figures[1]}"
    elif isinstance(figures, list):
        for number, value in enumerate(figures):
            yield from _flat(value, f"{path} {number + 1}")
    elif isinstance(figures, float):
        yield path, f"{figures:.4g}"
    elif figures is not None:
        yield path, str(figures)


if __name__ == "__main__":
    sys.exit(main())
