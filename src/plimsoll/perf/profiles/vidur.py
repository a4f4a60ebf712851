"""Reader of Vidur's profiles (MIT): ``mlp.csv``, ``attention.csv`` and, for several GPUs, ``all_reduce.csv``.

Times are milliseconds of one call (``time_stats.OPERATOR.median``). Their meaning was read in
https://github.com/microsoft/vidur: ``vidur/profiling/`` (what is timed) and
``vidur/execution_time_predictor/base_execution_time_predictor.py`` (how often a step calls it): a layer calls every
operator of mlp.csv once but ``add`` twice, and the embedding belongs to the step. Files may be gzipped.

    mlp.csv          by num_tokens and num_tensor_parallel_workers; the model's sizes in n_head, n_kv_head, n_embd,
                     n_expanded_embd
    attention.csv    by batch_size, prefill_chunk_size, kv_cache_size, is_prefill; one chunk, or decodes of one length
    all_reduce.csv   by size (bytes) and num_workers; two in a layer, and one for the embedding

NOTE: Vidur times no output head and no sampler, so a step here has none either: for Llama-2-7B in 16 bit that is a
weight of 0.26 GB in 13.5 GB. Its predictor adds a CPU time instead; ours is the engine's host time.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from plimsoll.catalog.architecture import ModelSpec
from plimsoll.core.errors import InputError, OutOfRangeError
from plimsoll.perf.profiles.origin import check_precision
from plimsoll.perf.profiles.own_checks import by_operator, check_plausible
from plimsoll.perf.profiles.own_format import ATTENTION, COLLECTIVES, SEQUENCES, TABLES, TOKENS, OwnProfile, Row, Table
from plimsoll.perf.profiles.own_model import OwnProfiled
from plimsoll.perf.profiles.own_shape import plain_shape_of
from plimsoll.perf.request import StepModelRequest

MLP, ATTENTION_FILE, ALL_REDUCE = "mlp.csv", "attention.csv", "all_reduce.csv"
PREFIX, SUFFIX = "time_stats.", ".median"
US_PER_MS = 1000.0
ONCE_PER_STEP = ("emb",)
PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
CALLS_PER_LAYER = {"add": 2}
RESHAPES = ("attn_input_reshape", "attn_output_reshape", "attn_kv_cache_save")
BYTES_PER_ELEMENT = 2
SIZES = {
    "n_head": "num_heads",
    "n_kv_head": "num_kv_heads",
    "n_embd": "hidden_size",
    "n_expanded_embd": "intermediate_size",
}
Measured = dict[str, str]


def is_vidur(folder: str | Path) -> bool:
    """Whether a folder holds Vidur's two tables of compute."""
    return all(_find(Path(folder), name) is not None for name in (MLP, ATTENTION_FILE))


def build_vidur(request: StepModelRequest) -> OwnProfiled:
    """The step model of a deployment from the folder that `request.argument` names.

    Raises:
        InputError: a file that cannot be read, has holes, is of another model, or is not in milliseconds.
        InfeasibleError: another precision than 16 bit.
        OutOfRangeError: the tensor-parallel degree was not measured.
    """
    folder, tp = Path(request.argument), request.parallelism.tp
    if request.parallelism.num_gpus > tp:
        raise InputError("--step-model profile", str(folder), "Vidur's profiles hold tensor parallelism only")
    shape = plain_shape_of(request.model, "Vidur's profiles hold")
    tables: dict[Table, list[Row]] = {table: [] for table in TABLES}
    tables[TOKENS] = _tokens(folder, request.model, shape, tp)
    if tp > 1:
        tables[COLLECTIVES] = _all_reduces(folder, tp)
    tables[ATTENTION] = _attention(folder, shape, tp)
    tables[SEQUENCES] = []
    header = {
        "device": {"name": request.gpu.id, "id": request.gpu.id},
        "model": {"id": request.model.id, **shape},
        "run": {"backend": "vidur", "tp": tp},
    }
    profile = OwnProfile(folder=folder, header=header, tables=tables)
    check_precision(folder, ("fp16", "fp16"), (request.precision, request.kv_precision))
    _check_whole(profile)
    check_plausible(profile, request.gpu, request.precision)
    allowed = bool(request.options.get("allow_extrapolation", False))
    return OwnProfiled(profile, request.overheads, allow_extrapolation=allowed)


def _check_whole(profile: OwnProfile) -> None:
    """Every matrix product is there, and every operator at the sizes of all others.

    Raises:
        InputError: a hole; names the operator.
    """
    operators = by_operator(profile, TOKENS)
    everywhere = {row["tokens"] for rows in operators.values() for row in rows}
    for operator in [*PRODUCTS, *operators]:
        missing = sorted(everywhere - {row["tokens"] for row in operators.get(operator, ())})
        if missing:
            what = f"{operator} was not measured at {missing[0]} tokens"
            raise InputError(str(profile.folder / MLP), what, "the profile has a hole; take it from its source again")


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _rows(folder: Path, name: str) -> Iterator[tuple[str, Measured]]:
    """``(where, row)`` of a table.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    path = _find(folder, name)
    if path is None:
        raise InputError("--step-model profile", str(folder / name), "the file is missing from the profile")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                yield f"{path} line {number}", row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), str(error), "write a CSV table, gzipped or not") from error


def _number(where: str, row: Measured, name: str) -> float:
    try:
        value = float(row[name] or "nan")
    except (KeyError, ValueError, TypeError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{where}, {name}", row.get(name), "write a number from 0")
    return value


def _tokens(folder: Path, model: ModelSpec, shape: Mapping[str, int], tp: int) -> list[Row]:
    """One row for every operator and number of tokens; repeated measurements are averaged."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    degrees = set()
    for where, row in _rows(folder, MLP):
        degrees.add(int(_number(where, row, "num_tensor_parallel_workers")))
        if int(_number(where, row, "num_tensor_parallel_workers")) != tp:
            continue
        _check_model(where, row, model, shape)
        for name in row:
            if name.startswith(PREFIX) and name.endswith(SUFFIX) and row[name]:
                operator = name.removeprefix(PREFIX).removesuffix(SUFFIX)
                found[operator, int(_number(where, row, "num_tokens"))].append(_number(where, row, name))
    if not found:
        raise OutOfRangeError(f"profile {folder} has tensor-parallel degrees {sorted(degrees)}, not {tp}")
    work = _work(shape, tp)
    return [
        {
            "operator": operator,
            "calls_per_step": _calls(operator, shape["num_layers"]),
            "flop_per_token": 2.0 * work.get(operator, 0),
            "weight_bytes": float(BYTES_PER_ELEMENT * work.get(operator, 0)),
            "tokens": tokens,
            "time_us": US_PER_MS * sum(times) / len(times),
        }
        for (operator, tokens), times in sorted(found.items())
    ]


def _check_model(where: str, row: Measured, model: ModelSpec, shape: Mapping[str, int]) -> None:
    for column, name in SIZES.items():
        if int(_number(where, row, column)) != shape[name]:
            measured = f"the profile is of a model with {name.replace('_', ' ')} {row[column]}"
            raise InputError("--model", model.id, f"{measured}, this one has {shape[name]} ({where})")


def _work(shape: Mapping[str, int], tp: int) -> dict[str, float]:
    """Weights of every matrix product on one GPU: what its time is checked against."""
    hidden, inter = shape["hidden_size"], shape["intermediate_size"]
    heads, kv_heads, width = shape["num_heads"], shape["num_kv_heads"], shape["head_dim"]
    return {
        "attn_pre_proj": hidden * (heads + 2 * kv_heads) * width / tp,
        "attn_post_proj": heads * width * hidden / tp,
        "mlp_up_proj": hidden * inter * (shape["mlp_matrices"] - 1) / tp,
        "mlp_down_proj": inter * hidden / tp,
    }


def _calls(operator: str, num_layers: int) -> int:
    return 1 if operator in ONCE_PER_STEP else num_layers * CALLS_PER_LAYER.get(operator, 1)


def _all_reduces(folder: Path, tp: int) -> list[Row]:
    """Times of the sums that `tp` GPUs exchange, by their bytes."""
    measured: dict[int, list[float]] = defaultdict(list)
    for where, row in _rows(folder, ALL_REDUCE):
        if int(_number(where, row, "num_workers")) == tp:
            time_ms = _number(where, row, f"{PREFIX}all_reduce{SUFFIX}")
            measured[int(_number(where, row, "size"))].append(time_ms)
    if not measured:
        raise OutOfRangeError(f"profile {folder}: {ALL_REDUCE} has no messages between {tp} GPUs")
    return [
        {
            "operation": "all_reduce",
            "ranks": tp,
            "message_bytes": size,
            "time_us": US_PER_MS * sum(times) / len(times),
        }
        for size, times in sorted(measured.items())
    ]


def _attention(folder: Path, shape: Mapping[str, int], tp: int) -> list[Row]:
    """One chunk, or decodes of one length; tensors' reshapes included."""
    found: dict[tuple[int, int, int, int], list[float]] = defaultdict(list)
    for where, row in _rows(folder, ATTENTION_FILE):
        if int(_number(where, row, "num_tensor_parallel_workers")) != tp:
            continue
        batch, chunk, cached = (
            int(_number(where, row, name)) for name in ("batch_size", "prefill_chunk_size", "kv_cache_size")
        )
        prefill = row.get("is_prefill", "").strip().lower() == "true"
        if prefill and batch > 1:
            continue  # Vidur's predictor adds chunks up, too
        name = "attn_prefill" if prefill else "attn_decode"
        extra = sum(_number(where, row, key) for key in _columns(RESHAPES) if row.get(key))
        key = (chunk, cached, 0, 0) if prefill else (0, 0, batch, max(cached, 1))
        found[key].append(_number(where, row, f"{PREFIX}{name}{SUFFIX}") + extra)
    if not found:
        raise OutOfRangeError(f"profile {folder}: {ATTENTION_FILE} was not measured at tensor-parallel degree {tp}")
    if len({key[0] for key in found if key[0]}) < 1 or not any(key[2] for key in found):
        raise InputError(str(folder / ATTENTION_FILE), "one kind of attention", "it needs chunks and decodes")
    return [
        {
            "calls_per_step": shape["num_layers"],
            "num_prefill": int(chunk > 0),
            "chunk_tokens": chunk,
            "context_tokens": context,
            "num_decode": decodes,
            "decode_length_tokens": length,
            "time_us": US_PER_MS * sum(times) / len(times),
        }
        for (chunk, context, decodes, length), times in sorted(found.items())
    ]


def _columns(operators: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{PREFIX}{name}{SUFFIX}" for name in operators)
