"""vLLM's ``vllm bench serve --save-result --save-detailed``: lists of lengths, TTFTs, gaps and start times.

TTFT, TPOT (without the first token) and latency to the last token are vLLM's own definitions. Without
``--save-detailed`` the file has means only; so had versions before ``start_times``. Both are refused. With
``--append-result`` a file holds one JSON document a line, and each is a run. ``max_concurrency`` makes users of a load
without a rate; with a rate the requests go by the clock, at the times when they were really sent. Warm-up requests are
not in the file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from plimsoll.calibration.measured import Answer, MeasuredRun, Origin, from_answers, left_out_notes, read_text
from plimsoll.core.errors import InputError

FORMAT = "JSON of vllm bench serve --save-result --save-detailed"
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")


def recognises(path: Path, head: str) -> bool:
    """A JSON object that names vLLM's fields."""
    del path
    return head.lstrip().startswith("{") and ('"request_throughput"' in head or '"endpoint_type"' in head)


def read(path: Path) -> list[MeasuredRun]:
    """The run of the file, or the runs that were appended to it; failed requests are left out.

    Raises:
        InputError: it is not JSON, or the per-request lists are missing or of different lengths.
    """
    documents = _documents(path)
    return [_run(str(path) if len(documents) == 1 else f"{path} #{k}", one) for k, one in enumerate(documents)]


def _documents(path: Path) -> list[Any]:
    text = read_text(path)
    try:
        return [json.loads(text)]
    except (json.JSONDecodeError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) > 1:
                return [json.loads(line) for line in lines]
        except (json.JSONDecodeError, RecursionError):
            pass
        raise InputError(str(path), "the file", f"it is not JSON ({error})") from error


def _run(name: str, document: Any) -> MeasuredRun:
    missing = [field for field in LISTS if not (isinstance(document, dict) and isinstance(document.get(field), list))]
    if missing:
        remedy = "measure again with --save-result --save-detailed (vLLM 0.11 or newer)"
        raise InputError(name, f"no {', '.join(missing)}", remedy)
    with_errors = (*LISTS, "errors") if isinstance(document.get("errors"), list) else LISTS
    lengths = {field: len(document[field]) for field in with_errors}
    if len(set(lengths.values())) > 1:
        raise InputError(name, ", ".join(f"{n} {field}" for field, n in lengths.items()), "is the file cut?")
    num_sent = lengths["ttfts"]
    errors = document["errors"] if len(with_errors) > len(LISTS) else [""] * num_sent
    answers = []
    for k, row in enumerate(zip(*(document[field] for field in LISTS), errors, strict=True)):
        prompt, output, ttft, gaps, start, failed = row
        if failed or not output or not ttft:
            continue
        try:
            e2e_s = float(ttft) + sum(map(float, gaps))
            answers.append(
                Answer(
                    sent_s=float(start),
                    prompt_tokens=int(prompt),
                    output_tokens=int(output),
                    ttft_s=float(ttft),
                    e2e_s=e2e_s,
                )
            )
        except (TypeError, ValueError, OverflowError) as error:
            remedy = f"{', '.join(LISTS)} need one number (itls: a list of them) per request"
            raise InputError(f"{name} request {k}", str(error), remedy) from error
    if not answers:
        raise InputError(f"{name} ttfts", "no answered request", f"all {num_sent} requests failed or were not streamed")
    notes = left_out_notes(name, len(answers), num_sent - len(answers), 0)
    run = from_answers(name, answers, concurrency=_users(document), notes=notes)
    called = document.get("model_id")  # --served-model-name where it was given
    origin = Origin(file=name, model=called, is_alias=True) if isinstance(called, str) and called else None
    return dataclasses.replace(run, origin=origin)


def _users(document: dict[str, Any]) -> int | None:
    users, rate = document.get("max_concurrency"), document.get("request_rate", "inf")
    return int(users) if isinstance(users, int) and users > 0 and rate in ("inf", float("inf"), None) else None
