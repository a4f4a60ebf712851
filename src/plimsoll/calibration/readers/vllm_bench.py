"""vLLM's ``vllm bench serve --save-result --save-detailed``: lists of lengths, TTFTs, gaps and start times.

Without ``--save-detailed`` the file has means only; so had versions before ``start_times``. Both are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plimsoll.calibration.measured import MeasuredRun, from_columns, read_json
from plimsoll.core.errors import InputError

FORMAT = "JSON of vllm bench serve --save-result --save-detailed"
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")


def recognises(path: Path, head: str) -> bool:
    """A JSON object that names vLLM's fields."""
    del path
    return head.lstrip().startswith("{") and ('"request_throughput"' in head or '"endpoint_type"' in head)


def read(path: Path) -> list[MeasuredRun]:
    """The one run of the file; failed requests are left out.

    Raises:
        InputError: the per-request lists are missing.
    """
    document: dict[str, Any] = read_json(path)
    missing = [name for name in LISTS if not isinstance(document.get(name), list)]
    if missing:
        remedy = "measure again with --save-result --save-detailed (vLLM 0.11 or newer)"
        raise InputError(str(path), f"no {', '.join(missing)}", remedy)
    errors = document.get("errors") or [""] * len(document["ttfts"])
    try:
        rows = [
            (float(start), int(prompt), int(output), float(ttft), float(ttft) + sum(map(float, gaps)))
            for start, prompt, output, ttft, gaps, error in zip(
                *(document[name] for name in ("start_times", "input_lens", "output_lens", "ttfts", "itls")),
                errors,
                strict=True,
            )
            if not error and output and ttft > 0
        ]
    except (TypeError, ValueError) as error:
        raise InputError(str(path), str(error), "its lists need one number (itls: a list) per request") from error
    start, prompt, output, ttft, whole = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    users = document.get("max_concurrency")
    return [
        from_columns(
            str(path), list(start), list(prompt), list(output), list(ttft), list(whole), int(users) if users else None
        )
    ]
