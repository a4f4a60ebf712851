"""``measured.csv``: one row a request, times on one clock; ``meta.json`` and ``workload.jsonl.gz`` beside it are used.

Columns: prompt_tokens, output_tokens, first_token_s, last_token_s, and queued_s (the engine saw it) or arrival_s (the
client sent it). LLMServingSim's bench and `plimsoll simulate --out` (requests.csv, with finish_s) write such files.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.calibration.measured import MeasuredRun, Origin, from_columns, read_text
from plimsoll.core.columns import ints
from plimsoll.core.errors import InputError

FORMAT = "CSV, one row a request: prompt_tokens, output_tokens, arrival_s or queued_s, first_token_s, last_token_s"
LAST = ("last_token_s", "finish_s")
SENT = ("queued_s", "arrival_s")
CONTENT_TOKENS = 16


def recognises(path: Path, head: str) -> bool:
    """By its header."""
    del path
    columns = set(head.partition("\n")[0].strip().split(","))
    return {"prompt_tokens", "output_tokens", "first_token_s"} <= columns


def read(path: Path) -> list[MeasuredRun]:
    """The one run of the file.

    Raises:
        InputError: a column or a value that is missing or no number; names the line.
    """
    rows = csv.DictReader(io.StringIO(read_text(path)))
    names = rows.fieldnames or []
    sent = next((name for name in SENT if name in names), None)
    last = next((name for name in LAST if name in names), None)
    if sent is None or last is None:
        raise InputError(str(path), ",".join(names)[:80], f"it needs {' or '.join(SENT)}, and {' or '.join(LAST)}")
    columns: dict[str, list[float]] = {
        name: [] for name in (sent, "first_token_s", last, "prompt_tokens", "output_tokens")
    }
    ids: list[int] = []
    for line, row in enumerate(rows, start=2):
        if row.get("status", "finished") not in ("finished", "", None):
            continue
        try:
            values = {name: float(row[name]) for name in columns}
            if not all(map(math.isfinite, values.values())):
                raise ValueError(f"{values} is not finite")
            ids.append(int(float(row.get("request_id") or line - 2)))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path} line {line}", str(error), "every value is a number") from error
        for name, value in values.items():
            columns[name].append(value)
    start, first, end = (np.array(columns[name]) for name in (sent, "first_token_s", last))
    run = from_columns(
        str(path),
        columns[sent],
        [int(value) for value in columns["prompt_tokens"]],
        [int(value) for value in columns["output_tokens"]],
        list(first - start),
        list(end - start),
    )
    return [_with_meta(_with_content(run, path, [ids[k] for k in np.argsort(start, kind="stable")]), path)]


def _with_content(run: MeasuredRun, path: Path, ids: list[int]) -> MeasuredRun:
    """The prompts' chained block ids, where a workload file beside the measurements has them."""
    workload = path.with_name("workload.jsonl.gz")
    if not workload.is_file():
        return run
    try:
        with gzip.open(workload, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        blocks = {int(row["request_id"]): row["prefix_blocks_16"] for row in rows}
        lists = [np.asarray(blocks.get(key, ()), dtype=np.int64) for key in ids]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(str(workload), str(error), "remove it, or write request_id and prefix_blocks_16") from error
    return dataclasses.replace(
        run,
        block_tokens=CONTENT_TOKENS,
        block_ids=ints(np.concatenate(lists)) if lists else ints([]),
        block_offsets=ints(np.cumsum([0, *map(len, lists)])),
    )


def _with_meta(run: MeasuredRun, path: Path) -> MeasuredRun:
    """The KV blocks that the server printed, its model and its GPU, where the run's meta.json has them."""
    meta = path.with_name("meta.json")
    if not meta.is_file():
        return run
    try:
        document = json.loads(meta.read_text(encoding="utf-8"))
        cache = document.get("kv_cache") or {}
        count, tokens = cache.get("num_gpu_blocks"), cache.get("block_size")
        return dataclasses.replace(
            run,
            num_kv_blocks=int(count) if count else None,
            kv_block_tokens=int(tokens) if count and tokens else None,
            origin=_origin(meta, document),
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            str(meta), str(error), "remove it, or write kv_cache.num_gpu_blocks, model and deployment.gpu"
        ) from error


def _origin(meta: Path, document: dict[str, Any]) -> Origin:
    """LLMServingSim's bench writes the model, its own name of the GPU, and the driver's."""
    deployment, hardware = document.get("deployment") or {}, document.get("hardware") or {}
    model, gpu = document.get("model"), deployment.get("gpu") or hardware.get("device_name")
    return Origin(file=str(meta), model=str(model) if model else None, gpu=str(gpu) if gpu else None)
