"""Suite `papers`: published figures of serving systems beside ours. A row without a bound is shown and not judged.

One file of `validation._papers` is one paper: `rows()`, or, where the paper's own data are needed, ``NEEDS_DATA`` (a
file below the folder of measured data) and `rows(data)`. Where that file is missing the paper is skipped, with the
reason.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import validation._papers

DEFAULT_DATA = True
"""Runs without ``--data``: most papers need none."""
ROOT = Path(__file__).resolve().parent.parent


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Every table of `validation._papers`.

    Args:
        paths: the folder of measured data, else ``PLIMSOLL_DATA``, else ``../shared/data``.
    """
    data = paths[0] if paths else Path(os.environ.get("PLIMSOLL_DATA") or ROOT.parent / "shared" / "data")
    tables: dict[str, list[dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    for info in pkgutil.iter_modules(validation._papers.__path__):
        if info.name.startswith("_"):
            continue
        paper = importlib.import_module(f"validation._papers.{info.name}")
        needed = getattr(paper, "NEEDS_DATA", None)
        if needed is None:
            tables[info.name] = paper.rows()
        elif (data / needed).is_file():
            tables[info.name] = paper.rows(data)
        else:
            skipped[info.name] = f"needs {needed} in the folder of measured data (--data, PLIMSOLL_DATA)"
    judged = [row for rows in tables.values() for row in rows if row["bound"] is not None]
    within = sum(bool(row["within"]) for row in judged)
    misses = [
        f"{name}: {row['figure']}"
        for name, rows in tables.items()
        for row in rows
        if row["bound"] is not None and not row["within"]
    ]
    summary = f"{within} of {len(judged)} judged figures within bounds; outside: {', '.join(misses) or 'none'}"
    if skipped:
        summary += f"; skipped: {', '.join(skipped)}"
    figures: dict[str, Any] = {name: [_row(row) for row in rows] for name, rows in tables.items()}
    return {
        "passed": within == len(judged),
        "summary": summary,
        "figures": {**figures, "skipped": skipped} if skipped else figures,
    }


def _row(row: dict[str, Any]) -> dict[str, Any]:
    shown = {key: row[key] for key in ("figure", "unit", "paper", "ours", "error", "bound", "within", "assumption")}
    return shown if row["bound"] is not None else {**shown, "within": None}
