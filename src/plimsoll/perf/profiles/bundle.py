"""Reader of LLMServingSim bundles (MIT): one folder of CSV files per tensor-parallel degree, times in microseconds.

``…/bf16/meta.yaml`` and ``…/bf16/tpN/{dense,per_sequence,attention,moe,skew_fit}.csv``. Their meaning was read in
https://github.com/casys-kaist/LLMServingSim, ``profiler/``: dense.csv holds the mean time of *one call* of a layer, so
that `layernorm`, called before attention and before the MLP, counts twice per layer (``profiler/models/*.yaml``).

Uneven decode lengths. The bundle measures batches of equal lengths, and how far batches of two lengths, one four times
the other, lie between equal batches of the mean and of the longest length: ``t = t(mean) + α·(t(longest) − t(mean))``.
Its table gives α in some 4,000 buckets of two to eight measurements, and meta.yaml the least-squares α over all of
them. Only the latter is used: buckets jump between neighbours (from -0.9 to 5 in one bundle). Where meta.yaml says that
the sweep was off, there is no α, whatever file lies beside it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll.core.deployment import PRECISIONS
from plimsoll.core.errors import InputError, OutOfRangeError
from plimsoll.perf.profiles.curves import Curve
from plimsoll.perf.profiles.declared import NOTHING_DECLARED, Declared, declared_of
from plimsoll.perf.profiles.grids import AttentionGrid, ExpertGrid, Slices

MICROSECOND = 1e-6
Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """What was measured, in seconds.

    Attributes:
        folder: the ``tpN`` folder.
        tp: tensor-parallel degree.
        model, hardware: as the bundle names them; empty where it does not.
        dense: one call of a layer by tokens in the step.
        per_sequence: head and sampler by sequences.
        attention: of one layer.
        experts: of one layer on one rank; None for dense models.
        skew_alpha: see the module's text; 0 where it was not measured.
        versions: of engine, CUDA and profiler, and the date.
        precision, kv_precision: of weights and cache when it was measured.
        declared: the grid of attention that the measurement set out to fill.
    """

    folder: Path
    tp: int
    model: str
    hardware: str
    dense: Mapping[str, Curve]
    per_sequence: Mapping[str, Curve]
    attention: AttentionGrid
    experts: ExpertGrid | None
    skew_alpha: float
    versions: Mapping[str, str]
    precision: str = "bf16"
    kv_precision: str = "bf16"
    declared: Declared = NOTHING_DECLARED


def read_bundle(directory: str | Path, tp: int) -> Bundle:
    """The profile of tensor-parallel degree `tp` in `directory`, a ``…/bf16`` folder or its ``tpN``.

    Raises:
        InputError: no such folder, another degree, a missing file or a line that cannot be read.
        OutOfRangeError: the bundle lacks `tp`.
    """
    folder = _find_folder(Path(directory), tp)
    meta = _read_meta(folder.parent / "meta.yaml")
    return Bundle(
        folder=folder,
        tp=tp,
        model=str(meta.get("model", "")),
        hardware=str(meta.get("gpu", meta.get("hardware", ""))),
        dense=_curves(folder / "dense.csv", ("layer", "tokens", "time_us")),
        per_sequence=_curves(folder / "per_sequence.csv", ("layer", "sequences", "time_us")),
        attention=_attention(folder / "attention.csv"),
        experts=_experts(folder / "moe.csv") if (folder / "moe.csv").is_file() else None,
        skew_alpha=_skew_alpha(meta, tp),
        versions={key: str(meta[key]) for key in ("vllm_version", "cuda_version", "profiled_at") if key in meta},
        precision=_precision(meta, folder.parent.name),
        kv_precision=_kv_precision(meta),
        declared=declared_of(meta),
    )


def _find_folder(directory: Path, tp: int) -> Path:
    if not directory.is_dir():
        raise InputError("--step-model profile", str(directory), "give the folder of a profile, …/bf16 or …/bf16/tp1")
    named = re.fullmatch(r"tp(\d+)", directory.name)
    if named:
        if int(named[1]) != tp:
            raise InputError("--tp", tp, f"{directory} was measured at tensor-parallel degree {named[1]}")
        return directory
    degrees = sorted(int(entry.name[2:]) for entry in directory.glob("tp[0-9]*") if entry.name[2:].isdecimal())
    if not degrees:
        raise InputError("--step-model profile", str(directory), "the folder holds no tp1, tp2, … with CSV files")
    if tp not in degrees:
        raise OutOfRangeError(f"profile {directory} has tensor-parallel degrees {degrees}, not {tp}")
    return directory / f"tp{tp}"


def _read_meta(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise InputError("--step-model profile", str(path), "a profile folder holds a meta.yaml beside its tpN")
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(str(path), str(error), "write valid YAML") from error
    if not isinstance(meta, dict):
        raise InputError(str(path), type(meta).__name__, "write a YAML mapping")
    return meta


def _precision(meta: Mapping[str, Any], folder: str) -> str:
    """``variant: bf16``, else the name of the folder, else 16 bit, which is what such bundles are without a word."""
    words = re.split(r"[^a-z0-9]+", f"{meta.get('variant', '')} {folder}".lower())
    return next((word for word in words if word in PRECISIONS), "bf16")


def _kv_precision(meta: Mapping[str, Any]) -> str:
    """As the engine was told when it was measured; 16 bit without a word."""
    engine = meta.get("engine_effective")
    told = str(engine.get("kv_cache_dtype", "auto")) if isinstance(engine, dict) else "auto"
    return "fp8" if told.startswith("fp8") else "bf16"


def _skew_alpha(meta: Mapping[str, Any], tp: int) -> float:
    fit = meta.get("skew_fit")
    found = (fit.get("per_tp") or {}).get(tp) if isinstance(fit, dict) and fit.get("enabled") else None
    alpha = found.get("alpha_default") if isinstance(found, dict) else None
    if not isinstance(alpha, int | float):
        return 0.0
    if not 0 <= alpha <= 1:
        raise InputError("meta.yaml skew_fit alpha_default", alpha, "the time lies between mean and longest: 0 to 1")
    return float(alpha)


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[Row, float]]:
    """Keys and seconds of every line. Raises InputError with the line's number."""
    lines = _lines(path)
    header = tuple(lines[0]) if lines else ()
    if header != columns:
        raise InputError(f"{path} line 1", ",".join(header), f"write the columns {','.join(columns)}")
    found: dict[Row, float] = {}
    for number, line in enumerate(lines[1:], 2):
        where = f"{path} line {number}"
        if len(line) != len(columns):
            raise InputError(where, ",".join(line), f"write {len(columns)} fields")
        if tuple(line[:-1]) in found:
            raise InputError(where, ",".join(line), "this was measured in a line above; keep one of the two")
        found[tuple(line[:-1])] = _seconds(where, line[-1])
    if not found:
        raise InputError(str(path), "no lines", "a profile has measurements")
    return list(found.items())


def _lines(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise InputError("--step-model profile", str(path), "the file is missing from the profile")
    try:
        return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(str(path), str(error), "write a CSV table in UTF-8") from error


def _seconds(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{where}, time_us", text, "write microseconds above 0")
    return value * MICROSECOND


def _count(path: Path, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise InputError(str(path), text, "write whole numbers from 0 for tokens and sequences")
    return value


def _curves(path: Path, columns: tuple[str, str, str]) -> dict[str, Curve]:
    measured: dict[str, dict[int, float]] = defaultdict(dict)
    for (layer, count), seconds in _rows(path, columns):
        measured[layer][_count(path, count)] = seconds
    return {layer: Curve.of(times) for layer, times in measured.items()}


def _attention(path: Path) -> AttentionGrid:
    decode: dict[int, dict[int, float]] = defaultdict(dict)
    prefill: dict[int, dict[int, float]] = defaultdict(dict)
    mixed: dict[int, dict[int, dict[int, dict[int, float]]]] = {}
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    for keys, seconds in _rows(path, columns):
        chunk, context, num_decode, length = (_count(path, key) for key in keys)
        if chunk and num_decode:
            by_chunk = mixed.setdefault(num_decode, {})
            by_chunk.setdefault(chunk, {}).setdefault(context, {})[length] = seconds
        elif chunk:
            prefill[chunk][context] = seconds
        elif num_decode:
            decode[num_decode][length] = seconds
    if not (decode and prefill and mixed):
        raise InputError(str(path), "no grid", "measure steps of decodes, of prompts, and of both together")
    return AttentionGrid(
        decode=_curves_of(decode),
        prefill=_curves_of(prefill),
        mixed=Slices.of(
            {n: Slices.of({chunk: _curves_of(row) for chunk, row in chunks.items()}) for n, chunks in mixed.items()}
        ),
    )


def _curves_of(measured: Mapping[int, Mapping[int, float]]) -> Slices[Curve]:
    return Slices.of({key: Curve.of(times) for key, times in measured.items()})


def _experts(path: Path) -> ExpertGrid:
    rows: dict[int, dict[int, float]] = defaultdict(dict)
    for (tokens, activated), seconds in _rows(path, ("tokens", "activated_experts", "time_us")):
        rows[_count(path, tokens)][_count(path, activated)] = seconds
    return ExpertGrid(rows=_curves_of(rows))
