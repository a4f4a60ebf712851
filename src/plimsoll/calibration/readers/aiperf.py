"""AIPerf's ``profile_export.jsonl``: one line a request, values with their units.

Times are converted from the unit that each value names. AIPerf's ``request_latency`` ends with the last token and its
``inter_token_latency`` leaves out the first, as here. Tokens are the server's (``usage_…``) where a record has them:
AIPerf's own count tokenises the text again, and differs where the server emits what has no text. Its TPOT then differs
in the same measure.

The cap of requests in flight is in ``profile_export_aiperf.json`` beside it, the server's KV blocks in
``server_metrics_export.json``; both are read where they exist. Several profiling phases are several runs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plimsoll.calibration.measured import Answer, MeasuredRun, from_answers, left_out_notes, read_json, read_text
from plimsoll.calibration.snapshots import kv_cache_in_aiperf
from plimsoll.core.errors import InputError

FORMAT = "AIPerf's profile_export.jsonl"
SECONDS_PER = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
RECORDS, SUMMARY, SERVER = "profile_export.jsonl", "profile_export_aiperf.json", "server_metrics_export.json"
MARKS = ('"request_start_ns"', '"aiperf_version"')
PROFILING = "profiling"
RATES = ("request_rate", "rate", "user_centric_rate")
OTHER_FILE = f"give the {RECORDS} of a run: one line a request, with metadata and metrics"
CACHED = "usage_prompt_cache_read_tokens"
PROMPT = ("usage_prompt_tokens", "input_sequence_length")
OUTPUT = ("usage_completion_tokens", "output_sequence_length", "output_token_count")


@dataclasses.dataclass(kw_only=True)
class _Phase:
    """What the lines of one profiling phase came to."""

    answers: list[Answer] = dataclasses.field(default_factory=list)
    num_failed: int = 0
    num_cut: int = 0


def recognises(path: Path, head: str) -> bool:
    """A line with AIPerf's metadata, or one of AIPerf's other files, to say which one is needed."""
    del path
    return head.lstrip().startswith("{") and any(mark in head for mark in MARKS)


def read(path: Path) -> list[MeasuredRun]:
    """The profiling phases of the file; warm-up, failed and cancelled requests are left out.

    Raises:
        InputError: another of AIPerf's files, a line that is no record, a value in an unknown unit (names the line),
            answers that were not streamed, or no answer at all.
    """
    if path.suffix != ".jsonl" and MARKS[0] not in read_text(path, 4096):
        raise InputError(str(path), "a file without requests", OTHER_FILE)
    phases: dict[int, _Phase] = {}
    for line, text in enumerate(read_text(path).split("\n"), start=1):  # not splitlines: texts may hold U+2028
        if text.strip():
            _take(phases, f"{path} line {line}", text)
    answered = {index: phase for index, phase in sorted(phases.items()) if phase.answers}
    if not answered:
        num_failed = sum(phase.num_failed + phase.num_cut for phase in phases.values())
        raise InputError(f"{path} metrics", "no answered request", f"all {num_failed} requests failed or were cut off")
    users = _users(path)
    blocks = kv_cache_in_aiperf(_beside(path, SERVER, "_server_metrics.json"))
    runs = []
    for index, phase in answered.items():
        name = str(path) if len(answered) == 1 else f"{path} #{index}"
        notes = left_out_notes(name, len(phase.answers), phase.num_failed, phase.num_cut)
        if users is None:
            notes = (*notes, f"{name}: no {SUMMARY} beside it says how it was sent; replayed by the clock")
        run = from_answers(name, phase.answers, concurrency=users.get(index) if users else None, notes=notes)
        runs.append(
            dataclasses.replace(run, num_kv_blocks=blocks.num_blocks, kv_block_tokens=blocks.block_tokens)
            if blocks
            else run
        )
    return runs


def _take(phases: dict[int, _Phase], field: str, text: str) -> None:
    """Put one line where it belongs."""
    try:
        record: dict[str, Any] = json.loads(text)
        metadata = record["metadata"]
        kind = str(metadata.get("phase_kind") or metadata.get("benchmark_phase") or PROFILING)
        if kind != PROFILING:
            return
        phase = phases.setdefault(int(metadata.get("profiling_index") or 0), _Phase())
        if metadata.get("was_cancelled"):
            phase.num_cut += 1
        elif record.get("error"):
            phase.num_failed += 1
        elif (answer := _answer(field, metadata, record["metrics"])) is not None:
            phase.answers.append(answer)
        else:
            phase.num_failed += 1
    except KeyError as error:
        raise InputError(field, f"no {error.args[0]}", OTHER_FILE) from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(field, str(error), f"every line is one AIPerf record; {OTHER_FILE}") from error


def _answer(field: str, metadata: dict[str, Any], metrics: dict[str, Any]) -> Answer | None:
    """None for an answer without output."""
    output = _tokens(metrics, OUTPUT)
    if output < 1:
        return None
    if "time_to_first_token" not in metrics and "request_latency" in metrics:
        raise InputError(
            f"{field} time_to_first_token", None, "measure with --streaming: these answers came as a whole"
        )
    return Answer(
        sent_s=int(metadata["request_start_ns"]) * 1e-9,
        prompt_tokens=_tokens(metrics, PROMPT),
        output_tokens=output,
        ttft_s=_seconds(metrics["time_to_first_token"]),
        e2e_s=_seconds(metrics["request_latency"]),
        cached_tokens=_tokens(metrics, (CACHED,)) if CACHED in metrics else 0,
    )


def _tokens(metrics: dict[str, Any], names: Iterable[str]) -> int:
    for name in names:
        if name in metrics:
            return int(metrics[name]["value"])
    raise KeyError(" or ".join(names))


def _seconds(metric: dict[str, Any]) -> float:
    unit = str(metric.get("unit", "ms"))
    if unit not in SECONDS_PER:
        raise ValueError(f"unit {unit!r} is none of {', '.join(SECONDS_PER)}")
    return float(metric["value"]) * SECONDS_PER[unit]


def _beside(path: Path, name: str, ending: str) -> Path:
    """AIPerf's other file of the same run: `name`, or what ``--profile-export-prefix`` makes of it."""
    base = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return path.with_name(name if base == RECORDS.removesuffix(".jsonl") else base + ending)


def _users(path: Path) -> dict[int, int] | None:
    """Requests in flight by profiling phase, wherever this version keeps them; None where no summary tells."""
    summary = _beside(path, SUMMARY, ".json")
    document = read_json(summary) if summary.is_file() else None
    given = document.get("input_config") if isinstance(document, dict) else None
    if not isinstance(given, dict):
        return None
    phases = given.get("phases")  # since 0.9: a list of phases, each with a type; before: one load generator
    loads = [phase for phase in phases if _is_profiling(phase)] if isinstance(phases, list) else [given.get("loadgen")]
    users = {}
    for index, load in enumerate(load for load in loads if isinstance(load, dict)):
        cap = load.get("concurrency")
        by_clock = any(load.get(name) for name in RATES) or load.get("type", "concurrency") != "concurrency"
        if isinstance(cap, int) and cap > 0 and not by_clock:
            users[index] = cap
    return users


def _is_profiling(phase: Any) -> bool:
    return isinstance(phase, dict) and str(phase.get("kind", PROFILING)) == PROFILING
