"""Plimsoll's own profile: a folder of ``profile.toml`` and CSV tables, written by `plimsoll profile`, open to anybody.

    profile.toml      whose times these are: model, device, software, threads, date; host times; how well lines fit
    tokens.csv        operators that work on every token of a step: matrix products, norms, activation, embedding
    sequences.csv     operators that work on every sampled sequence: head, sampler
    attention.csv     attention of one layer: prompt chunks, decodes, both
    attention_window.csv  the same of one layer with a sliding window, where the model has such layers
    moe.csv           routed experts of one layer, by tokens and by the experts that any of them uses
    steps.csv         whole steps of a running engine beside the operators in them: what is left is host time
    checks.csv        steps off the grid, measured and predicted: the error of interpolation
    collectives.csv   messages between devices, where there are several
    power.csv         watts, where the device says so

Times are microseconds of *one call* (``time_us``); ``calls_per_step`` says how often a step makes it. ``spread_frac``
is half the distance between the quartiles over the median. docs/profiling.md explains every column.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plimsoll.core.errors import InputError
from plimsoll.perf.request import StepModelRequest

HEADER = "profile.toml"
FORMAT = "plimsoll-profile-1"
Row = dict[str, Any]
FIELD = "--step-model profile"
AGAIN = "run `plimsoll profile` with the same --out again: it measures what is missing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One CSV file.

    Attributes:
        file: its name.
        key: columns that say what was measured: whole numbers, but for those in `texts`.
        texts: columns of words.
        figures: columns of what came out: numbers above zero, but for `spread_frac` and `num_samples`.
    """

    file: str
    key: tuple[str, ...]
    texts: tuple[str, ...] = ()
    figures: tuple[str, ...] = ("time_us", "spread_frac", "num_samples")

    @property
    def columns(self) -> tuple[str, ...]:
        """In the order of the file."""
        return (*self.key, *self.figures)

    def key_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """What identifies a row."""
        return tuple(row[name] for name in self.key)


TOKENS = Table(
    file="tokens.csv",
    key=("operator", "calls_per_step", "flop_per_token", "weight_bytes", "tokens"),
    texts=("operator",),
)
SEQUENCES = Table(
    file="sequences.csv",
    key=("operator", "calls_per_step", "flop_per_sequence", "weight_bytes", "sequences"),
    texts=("operator",),
)
SHAPE = ("num_prefill", "chunk_tokens", "context_tokens", "num_decode", "decode_length_tokens")
ATTENTION = Table(file="attention.csv", key=("calls_per_step", *SHAPE))
WINDOWED = Table(file="attention_window.csv", key=ATTENTION.key)
EXPERTS = Table(file="moe.csv", key=("calls_per_step", "flop_per_token", "weight_bytes", "tokens", "activated_experts"))
STEPS = Table(file="steps.csv", key=SHAPE, figures=("step_us", "operators_us", "spread_frac", "num_samples"))
CHECKS = Table(file="checks.csv", key=SHAPE, figures=("measured_us", "predicted_us", "spread_frac", "num_samples"))
COLLECTIVES = Table(file="collectives.csv", key=("operation", "ranks", "message_bytes"), texts=("operation",))
POWER = Table(file="power.csv", key=("load",), texts=("load",), figures=("power_w", "spread_frac", "num_samples"))
TABLES = (TOKENS, SEQUENCES, ATTENTION, WINDOWED, EXPERTS, STEPS, CHECKS, COLLECTIVES, POWER)
FROM_ZERO = ("spread_frac", "num_samples", "operators_us")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnProfile:
    """A profile as it stands in its folder.

    Attributes:
        folder: where it lies.
        header: ``profile.toml``.
        tables: rows by table, in the file's units.
    """

    folder: Path
    header: Mapping[str, Any]
    tables: Mapping[Table, list[Row]]

    def section(self, name: str) -> Mapping[str, Any]:
        """A table of the header, empty where there is none."""
        found = self.header.get(name, {})
        if not isinstance(found, dict):
            raise InputError(f"{self.folder / HEADER}, {name}", found, "write a table")
        return found

    def number(self, section: str, name: str) -> float:
        """A number of the header that is not negative; 0 where it is not there.

        Raises:
            InputError: anything else.
        """
        value = self.section(section).get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"{self.folder / HEADER}, {section}.{name}", value, "write a number from 0")
        return float(value)


def with_options(request: StepModelRequest) -> StepModelRequest:
    """The request with the options that were written behind the folder: ``DIR,allow_extrapolation=true``.

    Raises:
        InputError: an option that is not true or false.
    """
    folder, *pairs = request.argument.split(",")
    options = dict(request.options)
    for pair in pairs:
        name, _, value = pair.partition("=")
        if value not in ("true", "false"):
            raise InputError("--step-model profile", pair, f"write profile:{folder},allow_extrapolation=true")
        options[name.strip().replace("-", "_")] = value == "true"
    return dataclasses.replace(request, argument=folder, options=options) if pairs else request


def is_own(folder: str | Path) -> bool:
    """Whether a folder holds a profile of this form."""
    return (Path(folder) / HEADER).is_file()


def read_own(folder: str | Path) -> OwnProfile:
    """A profile of this form.

    Raises:
        InputError: a file that is missing or cannot be read; names file, line and column.
    """
    path = Path(folder)
    header = read_header(path / HEADER)
    tables: dict[Table, list[Row]] = {}
    required = required_tables(header)
    for table in TABLES:
        file = path / table.file
        if not file.is_file() and table not in required:
            tables[table] = []
            continue
        rows = read_rows(file, table)
        if not rows and table in required:
            raise InputError(FIELD, str(file), f"it holds no measurements; {AGAIN}")
        tables[table] = rows
    return OwnProfile(folder=path, header=header, tables=tables)


def required_tables(header: Mapping[str, Any]) -> tuple[Table, ...]:
    """The tables that a profile of the header's model cannot do without."""
    model = header.get("model", {})
    sizes = model if isinstance(model, dict) else {}
    behind = sizes.get("num_window_layers", 0)
    found = [TOKENS, SEQUENCES]
    found += [ATTENTION] if not behind or behind != sizes.get("num_layers") else []
    found += [WINDOWED] if behind else []
    found += [EXPERTS] if sizes.get("num_experts") else []
    return tuple(found)


def read_header(file: Path) -> Mapping[str, Any]:
    """``profile.toml``.

    Raises:
        InputError: missing, not TOML, or of another format.
    """
    try:
        header = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(FIELD, str(file), f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(str(file), str(error), "write valid TOML") from error
    if header.get("format") != FORMAT:
        raise InputError(f"{file}, format", header.get("format"), f'this version reads format = "{FORMAT}"')
    return header


def read_rows(file: Path, table: Table, *, unfinished: bool = False) -> list[Row]:
    """The rows of one table. With `unfinished` a last line without its end, as an interruption leaves it, is dropped.

    Raises:
        InputError: no such file, other columns, a value that cannot be used, the same measurement twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(FIELD, str(file), f"the file is missing from the profile ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(str(file), str(error), "write UTF-8") from error
    if unfinished and text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    try:
        lines = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise InputError(str(file), str(error), "write a CSV table") from error
    header = tuple(lines[0]) if lines else ()
    if header != table.columns:
        raise InputError(f"{file} line 1", ",".join(header), f"write the columns {','.join(table.columns)}")
    rows, seen = [], set()
    for number, fields in enumerate(lines[1:], 2):
        where = f"{file} line {number}"
        if len(fields) != len(table.columns):
            raise InputError(where, ",".join(fields), f"write {len(table.columns)} fields")
        row = {name: _value(where, table, name, text) for name, text in zip(table.columns, fields, strict=True)}
        key = table.key_of(row)
        if key in seen:
            raise InputError(where, ",".join(fields), "this was measured in a line above; keep one of the two")
        seen.add(key)
        rows.append(row)
    return rows


def _value(where: str, table: Table, name: str, text: str) -> Any:
    if name in table.texts:
        if not text:
            raise InputError(f"{where}, {name}", text, "write a name")
        return text
    whole = name in table.key or name == "num_samples"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    from_zero = whole or name in FROM_ZERO
    if not (value >= 0 if from_zero else value > 0) or not value < math.inf:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{where}, {name}", text, f"write {kind} {'from' if from_zero else 'above'} 0")
    return value


def line_of(table: Table, row: Mapping[str, Any]) -> str:
    """One line of a table's file, with its end."""
    return ",".join(text_of(row[name]) for name in table.columns) + "\n"


def text_of(value: Any) -> str:
    """A value as a table holds it: six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def header_text(header: Mapping[str, Any], comment: Iterable[str] = ()) -> str:
    """``profile.toml``: plain values first, then one table for every mapping."""
    lines = [f"# {line}" for line in comment]
    lines += [f"{key} = {_toml(value)}" for key, value in header.items() if not isinstance(value, Mapping)]
    for name, section in header.items():
        if isinstance(section, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if any(ch in text for ch in ".en") else f"{text}.0"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
