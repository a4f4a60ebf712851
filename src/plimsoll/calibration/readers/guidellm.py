"""GuideLLM's ``benchmarks.json`` (0.3 to 0.8): one run per benchmark of the file.

Fields read per successful request: request_start_time, request_latency (seconds), time_to_first_token_ms,
prompt_tokens, output_tokens. Requests that GuideLLM sampled away are not in the file; the run is then a sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plimsoll.calibration.measured import MeasuredRun, from_columns, read_json
from plimsoll.core.errors import InputError
from plimsoll.core.units import MS_PER_S

FORMAT = "GuideLLM's benchmarks.json"
FIELDS = ("request_start_time", "prompt_tokens", "output_tokens", "time_to_first_token_ms", "request_latency")
CLOSED = ("concurrent", "synchronous")


def recognises(path: Path, head: str) -> bool:
    """A JSON object whose first keys are GuideLLM's."""
    del path
    return head.lstrip().startswith("{") and ('"benchmarks"' in head or '"guidellm_version"' in head)


def read(path: Path) -> list[MeasuredRun]:
    """All benchmarks of the file that have answered requests.

    Raises:
        InputError: no benchmarks, or requests without the fields above.
    """
    document = read_json(path)
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, list) or not benchmarks:
        raise InputError(str(path), "no benchmarks", "give GuideLLM's --output kind=json file")
    return [_run(f"{path} #{k}", benchmark) for k, benchmark in enumerate(benchmarks)]


def _run(name: str, benchmark: dict[str, Any]) -> MeasuredRun:
    try:
        requests = benchmark["requests"]["successful"]
        rows = [tuple(float(request[field]) for field in FIELDS) for request in requests]
    except (KeyError, TypeError, ValueError) as error:
        remedy = f"successful requests need {', '.join(FIELDS)}"
        raise InputError(name, str(error), remedy) from error
    rows = [row for row in rows if row[2] > 0]
    start, prompt, output, ttft_ms, whole = (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 5
    return from_columns(
        name,
        start,
        [int(value) for value in prompt],
        [int(value) for value in output],
        [value / MS_PER_S for value in ttft_ms],
        whole,
        _concurrency(benchmark),
    )


def _concurrency(benchmark: dict[str, Any]) -> int | None:
    """Streams of a concurrent benchmark, 1 of a synchronous one, wherever the version keeps its strategy."""
    for holder in (benchmark.get("config"), benchmark.get("scheduler"), benchmark.get("args"), benchmark):
        strategy = (holder or {}).get("strategy") if isinstance(holder, dict) else None
        if isinstance(strategy, dict) and strategy.get("type_") in CLOSED:
            return int(strategy.get("streams") or 1)
    return None
