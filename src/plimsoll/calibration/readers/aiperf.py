"""AIPerf's ``profile_export.jsonl``: one line a request, values with their units.

Times are converted from the unit that each value names. The cap of requests in flight is in
``profile_export_aiperf.json`` beside it, which is read where it exists.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plimsoll.calibration.measured import MeasuredRun, from_columns, read_json, read_text
from plimsoll.core.errors import InputError

FORMAT = "AIPerf's profile_export.jsonl"
SECONDS_PER = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def recognises(path: Path, head: str) -> bool:
    """A line with AIPerf's metadata."""
    del path
    return head.lstrip().startswith("{") and '"request_start_ns"' in head


def read(path: Path) -> list[MeasuredRun]:
    """The profiling phase of the file; warm-up, failed and cancelled requests are left out.

    Raises:
        InputError: a line that is no record, or a value in an unknown unit; names the line.
    """
    rows = []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            record: dict[str, Any] = json.loads(text)
            row = _row(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} line {line}", str(error), "every line is one AIPerf record") from error
        if row is not None:
            rows.append(row)
    start, prompt, output, ttft, whole = (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 5
    return [from_columns(str(path), start, list(map(int, prompt)), list(map(int, output)), ttft, whole, _users(path))]


def _row(record: dict[str, Any]) -> tuple[float, float, float, float, float] | None:
    metadata, metrics = record["metadata"], record["metrics"]
    phase = str(metadata.get("phase_kind") or metadata.get("benchmark_phase") or "profiling")
    if record.get("error") or metadata.get("was_cancelled") or phase != "profiling":
        return None
    tokens = metrics.get("output_sequence_length") or metrics.get("output_token_count")
    return (
        int(metadata["request_start_ns"]) * 1e-9,
        float(metrics["input_sequence_length"]["value"]),
        float(tokens["value"]),
        _seconds(metrics["time_to_first_token"]),
        _seconds(metrics["request_latency"]),
    )


def _seconds(metric: dict[str, Any]) -> float:
    unit = str(metric.get("unit", "ms"))
    if unit not in SECONDS_PER:
        raise ValueError(f"unit {unit!r} is none of {', '.join(SECONDS_PER)}")
    return float(metric["value"]) * SECONDS_PER[unit]


def _users(path: Path) -> int | None:
    """The concurrency that the run's own configuration names, wherever this version keeps it."""
    summary = path.with_name("profile_export_aiperf.json")
    if not summary.is_file():
        return None
    document = read_json(summary)
    loads = (document.get("input_config") or {}).get("loadgen") or {}
    users = loads.get("concurrency")
    by_rate = loads.get("request_rate")
    return int(users) if isinstance(users, int) and users > 0 and not by_rate else None
