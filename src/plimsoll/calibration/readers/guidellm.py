"""GuideLLM's ``benchmarks.json``: one run per benchmark of the file.

Fields read per successful request: request_start_time (seconds; start_time before 0.4), time_to_first_token_ms,
inter_token_latency_ms, prompt_tokens, output_tokens. The time of the last token is the first token's plus the gaps.
GuideLLM's own ``request_latency`` goes on to the end of the stream, a few milliseconds later, and its
``time_per_output_token_ms`` spreads the first token's time over all tokens; neither is used. The ITL it prints is
weighted by tokens; Plimsoll's TPOT is the mean of the same gaps over requests. Its quantiles are of nearest rank.

Requests outside the measured window (warm-up, cool-down) are replayed but not judged, by GuideLLM's own rule: those
that were in flight at no time of it. Which of them count in its TTFT and ITL differs by a request or two.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from plimsoll.calibration.measured import Answer, MeasuredRun, from_answers, left_out_notes, read_json
from plimsoll.core.errors import InputError
from plimsoll.core.units import MS_PER_S

FORMAT = "GuideLLM's benchmarks.json"
FIELDS = ("prompt_tokens", "output_tokens", "time_to_first_token_ms")
SENT = ("request_start_time", "start_time")
CSV_HEAD, YAML_HEAD = "Run Info,", "benchmarks:"


def recognises(path: Path, head: str) -> bool:
    """A JSON object whose first keys are GuideLLM's; its CSV and YAML too, to say what to give instead."""
    if head.startswith(CSV_HEAD) or (path.suffix in (".yaml", ".yml") and YAML_HEAD in head):
        return True
    return head.lstrip().startswith("{") and ('"benchmarks"' in head or '"guidellm_version"' in head)


def read(path: Path) -> list[MeasuredRun]:
    """All benchmarks of the file that have answered requests; a note names those that have none.

    Raises:
        InputError: no benchmark with answers, requests without the fields above, or answers that were not streamed.
    """
    document = read_json(path, "give GuideLLM's JSON: --output kind=json, or --output-formats json")
    benchmarks = document.get("benchmarks") if isinstance(document, dict) else None
    if not isinstance(benchmarks, list) or not benchmarks:
        raise InputError(f"{path} benchmarks", benchmarks, "give GuideLLM's JSON file of a run that ended")
    runs: list[MeasuredRun] = []
    notes: list[str] = []
    for k, benchmark in enumerate(benchmarks):
        name = f"{path} #{k}"
        answers, num_failed, num_cut = _requests(name, benchmark)
        found = left_out_notes(name, len(answers), num_failed, num_cut)
        if answers:
            found += _sample_notes(name, benchmark, len(answers))
            runs.append(from_answers(name, answers, concurrency=_users(benchmark, len(answers)), notes=found))
        else:
            notes += found or [f"{name}: it has no requests"]
    if not runs:
        raise InputError(f"{path} requests.successful", "no answered request", "; ".join(notes))
    return [dataclasses.replace(runs[0], notes=(*notes, *runs[0].notes)), *runs[1:]]


def _requests(name: str, benchmark: Any) -> tuple[list[Answer], int, int]:
    """Answers, and how many requests failed or were cut off."""
    try:
        groups = benchmark["requests"]
        window = _window(benchmark)
        found = [
            _answer(f"{name} requests.successful[{k}]", request, window)
            for k, request in enumerate(groups["successful"])
        ]
        answers = [answer for answer in found if answer is not None]
        num_cut = sum(1 for request in groups.get("incomplete") or () if any(request.get(name) for name in SENT))
        return answers, len(groups.get("errored") or ()) + len(found) - len(answers), num_cut
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{name} requests", str(error), "it needs lists of successful and errored requests") from error


def _answer(field: str, request: dict[str, Any], window: tuple[float, float]) -> Answer | None:
    """None for an answer without output."""
    if "output_tokens" in request and not request["output_tokens"]:
        return None
    if request.get("time_to_first_token_ms") is None and "time_to_first_token_ms" in request:
        remedy = "these answers were not streamed: measure with streaming, which is GuideLLM's default"
        raise InputError(f"{field}.time_to_first_token_ms", "null", remedy)
    sent_name = next((name for name in SENT if name in request), SENT[0])
    sent_s, prompt, output, ttft_ms = (_number(field, request, name) for name in (sent_name, *FIELDS))
    gap_ms = _number(field, request, "inter_token_latency_ms") if output > 1 else 0.0
    ended_s = float(request.get("request_end_time") or sent_s + float(request.get("request_latency") or 0.0))
    return Answer(
        sent_s=sent_s,
        prompt_tokens=int(prompt),
        output_tokens=int(output),
        ttft_s=ttft_ms / MS_PER_S,
        e2e_s=(ttft_ms + gap_ms * (output - 1)) / MS_PER_S,
        cached_tokens=int(_number(field, request, "cached_tokens")) if request.get("cached_tokens") else 0,
        is_counted=sent_s <= window[1] and ended_s >= window[0],
    )


def _number(field: str, request: dict[str, Any], name: str) -> float:
    try:
        value = float(request[name])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{field}.{name}", request.get(name), "a number is needed") from error
    if not math.isfinite(value):
        raise InputError(f"{field}.{name}", value, "a finite number is needed")
    return value


def _window(benchmark: dict[str, Any]) -> tuple[float, float]:
    """Seconds between which GuideLLM measured; everything where it had neither warm-up nor cool-down."""
    found = _inside(benchmark, "scheduler_metrics")
    start_s, end_s = float(found.get("measure_start_time") or 0.0), float(found.get("measure_end_time") or "inf")
    return (start_s, end_s) if end_s > start_s else (0.0, math.inf)


def _sample_notes(name: str, benchmark: dict[str, Any], num_answered: int) -> tuple[str, ...]:
    """Older versions keep a sample of the requests where they were asked to."""
    totals = _inside(benchmark, "request_totals") or _inside(_inside(benchmark, "scheduler_metrics"), "requests_made")
    total = totals.get("successful")
    if not isinstance(total, int) or total <= num_answered:
        return ()
    return (f"{name}: {num_answered} of {total} answers are in the file: the server had more to do than the replay",)


def _inside(holder: dict[str, Any], name: str) -> dict[str, Any]:
    """An object that a file may have, else an empty one."""
    found = holder.get(name)
    return found if isinstance(found, dict) else {}


def _users(benchmark: dict[str, Any], num_requests: int) -> int | None:
    """Requests in flight of a closed load: streams, 1 where synchronous, a cap on throughput that binds."""
    for holder in ("config", "scheduler", "args"):  # 0.5 and later; 0.4 (not seen); 0.3
        strategy = _inside(_inside(benchmark, holder), "strategy")
        kind, cap, streams = (strategy.get(name) for name in ("type_", "max_concurrency", "streams"))
        if kind is None:
            continue
        if kind == "concurrent":
            return streams if isinstance(streams, int) and streams > 0 else None
        if kind == "throughput" and isinstance(cap, int) and 0 < cap < num_requests:
            return cap
        return 1 if kind == "synchronous" else None
    return None
