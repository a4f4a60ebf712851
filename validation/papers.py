"""Suite `papers`: published figures of serving systems beside ours. A row without a bound is shown and not judged.

One file of `validation._papers` is one paper: `rows()`, or, where the paper's own data are needed, ``NEEDS_DATA`` (a
file below the folder of measured data) and `rows(data)`. Where that file is missing the paper is skipped, with the
reason.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import validation._papers
from plimsoll.core.errors import InputError

DEFAULT_DATA = True
"""Runs without ``--data``: most papers need none."""
ROOT = Path(__file__).resolve().parent.parent


def check(paths: Sequence[Path]) -> None:
    """Refuse a folder that was named and that no paper can use; `run` alone would skip those papers and go on.

    Raises:
        InputError: more than one path, or one without any paper's data.
    """
    if len(paths) > 1:
        raise InputError("--data", str(paths[1]), "give one folder, that of all measured data")
    needed = sorted({name for _, paper in _papers() if (name := getattr(paper, "NEEDS_DATA", None)) is not None})
    if paths and not any((paths[0] / name).is_file() for name in needed):
        remedy = f"give a folder that holds {' or '.join(needed)}, or leave --data out"
        raise InputError("--data", str(paths[0]), remedy)


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Every table of `validation._papers`.

    Args:
        paths: the folder of measured data, else ``PLIMSOLL_DATA``, else ``../shared/data``.
    """
    data = paths[0] if paths else Path(os.environ.get("PLIMSOLL_DATA") or ROOT.parent / "shared" / "data")
    tables: dict[str, list[dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    for name, paper in _papers():
        needed = getattr(paper, "NEEDS_DATA", None)
        if needed is None:
            tables[name] = paper.rows()
        elif (data / needed).is_file():
            tables[name] = paper.rows(data)
        else:
            skipped[name] = f"needs {needed} in the folder of measured data (--data, PLIMSOLL_DATA)"
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


def _papers() -> Iterator[tuple[str, Any]]:
    """Every paper's name and module."""
    for info in pkgutil.iter_modules(validation._papers.__path__):
        if not info.name.startswith("_"):
            yield info.name, importlib.import_module(f"validation._papers.{info.name}")


def _row(row: dict[str, Any]) -> dict[str, Any]:
    shown = {key: row[key] for key in ("figure", "unit", "paper", "ours", "error", "bound", "within", "assumption")}
    return shown if row["bound"] is not None else {**shown, "within": None}
