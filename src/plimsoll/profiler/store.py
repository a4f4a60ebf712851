"""The folder that a profile grows in: every measured row is written at once, and found again by the next run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.own_checks import FAMILIES
from plimsoll.perf.profiles.own_format import (
    HEADER,
    TABLES,
    OwnProfile,
    Row,
    Table,
    header_text,
    line_of,
    read_header,
    read_rows,
    text_of,
)

IDENTITY = {"model": None, "device": ("id", "name"), "run": ("backend", "dtype", "tp", "threads", "torch", "vllm")}
"""What must be the same for rows to belong into one profile; None stands for the whole section."""

COMMENT = (
    "A profile of Plimsoll (docs/profiling.md): operators measured on one machine. Times are microseconds of",
    "one call. Read it with --step-model profile:FOLDER.",
)


class Store:
    """A profile's folder, opened to be measured into.

    Args:
        folder: made where it is missing.
        header: what is measured; a folder that holds a profile of something else is refused.

    Raises:
        InputError: the folder cannot be written, holds other files than a profile's, or a profile of something else.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder, self.header = folder, dict(header)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("--out", str(folder), f"the folder cannot be made ({error.strerror})") from error
        if (folder / HEADER).is_file():
            self._check_same(read_header(folder / HEADER))
        self.rows: dict[Table, dict[tuple[Any, ...], Row]] = {}
        for table in TABLES:
            file = folder / table.file
            rows = read_rows(file, table, unfinished=True) if file.is_file() else []
            if table in FAMILIES:
                rows = _whole_groups(rows, FAMILIES[table][1])
            self.rows[table] = {table.key_of(row): row for row in rows}
            if file.is_file():  # without an unfinished last line or group
                file.write_text(",".join(table.columns) + "\n" + "".join(line_of(table, row) for row in rows))
        self.num_kept = sum(len(rows) for rows in self.rows.values())
        self.write_header()

    def find(self, table: Table, **key: Any) -> list[Row]:
        """The rows whose columns have these values."""
        return [row for row in self.rows[table].values() if all(row[name] == value for name, value in key.items())]

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Keep rows; those that are there already stay as they are."""
        file = self.folder / table.file
        fresh = [_as_written(row) for row in rows if table.key_of(row) not in self.rows[table]]
        if not fresh:
            return
        head = "" if file.is_file() else ",".join(table.columns) + "\n"
        with file.open("a", encoding="utf-8") as out:
            out.write(head + "".join(line_of(table, row) for row in fresh))
        self.rows[table].update({table.key_of(row): row for row in fresh})

    def keep(self, table: Table, key: Mapping[str, Any], measure: Callable[[], Iterable[Row]]) -> list[Row]:
        """The rows of `key`, measured only where there are none."""
        found = self.find(table, **key)
        if not found:
            self.add(table, measure())
            found = self.find(table, **key)
        return found

    def replace(self, table: Table, rows: Iterable[Row]) -> None:
        """Write a whole table anew."""
        found = [_as_written(row) for row in rows]
        text = ",".join(table.columns) + "\n" + "".join(line_of(table, row) for row in found)
        (self.folder / table.file).write_text(text, encoding="utf-8")
        self.rows[table] = {table.key_of(row): row for row in found}

    def write_header(self) -> None:
        """``profile.toml`` as it is now."""
        temporary = self.folder / f".{HEADER}.new"
        temporary.write_text(header_text(self.header, COMMENT), encoding="utf-8")
        temporary.replace(self.folder / HEADER)

    def profile(self) -> OwnProfile:
        """What is measured so far, as a reader has it."""
        tables = {table: list(rows.values()) for table, rows in self.rows.items()}
        return OwnProfile(folder=self.folder, header=self.header, tables=tables)

    def _check_same(self, old: Mapping[str, Any]) -> None:
        for section, names in IDENTITY.items():
            before, now = old.get(section, {}), self.header.get(section, {})
            for name in names or sorted({*before, *now}):
                if before.get(name) != now.get(name):
                    raise InputError(
                        "--out",
                        str(self.folder),
                        f"it holds a profile with {section}.{name} {before.get(name)}, this is {now.get(name)}; "
                        "give another folder",
                    )
        for section in ("host", "server", "quality"):  # found by earlier runs, replaced by this one where it measures
            if section in old:
                self.header.setdefault(section, old[section])


def _whole_groups(rows: list[Row], size: str) -> list[Row]:
    """Without the sizes at which an operator is missing: they were being written when a run was interrupted."""
    operators = {row["operator"] for row in rows}
    found: dict[int, set[str]] = {}
    for row in rows:
        found.setdefault(row[size], set()).add(row["operator"])
    return [row for row in rows if found[row[size]] == operators]


def _as_written(row: Row) -> Row:
    """The row as it will be read again, so that a resumed run decides as an uninterrupted one."""
    return {name: float(text_of(value)) if isinstance(value, float) else value for name, value in row.items()}
