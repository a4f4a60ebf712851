"""Measured rows from CSV files that anybody may hand in: another format is refused in one line, never a traceback."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from plimsoll.core.errors import InputError


def csv_rows(path: Path, columns: Collection[str], remedy: str) -> list[dict[str, str]]:
    """All rows of a CSV as text.

    Args:
        path: the file.
        columns: what every row must have a cell of, even an empty one.
        remedy: what to give instead, as an imperative.

    Raises:
        InputError: no such file, no text, no rows, or columns or cells that are missing.
    """
    if not path.is_file():
        raise InputError("--data", str(path), remedy)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("--data", str(path), f"it is not readable UTF-8 text; {remedy}") from error
    if not rows:
        raise InputError("--data", str(path), f"it has no rows; {remedy}")
    missing = sorted(set(columns) - rows[0].keys())
    if missing:
        shown = ", ".join(missing[:12]) + (f" and {len(missing) - 12} more" if len(missing) > 12 else "")
        raise InputError("--data", str(path), f"it lacks the columns {shown}; {remedy}")
    for number, row in enumerate(rows, 1):
        cut = [name for name in columns if row[name] is None]
        if cut:
            raise InputError("--data", str(path), f"row {number} ends before column {min(cut)}; {remedy}")
    return rows
