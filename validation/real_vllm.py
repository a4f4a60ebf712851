"""Suite `real-vllm`: measured runs of real vLLM servers, predicted from the operator profiles of their machines alone.

`--data` takes folders with ``runs/`` and ``profiles/`` beside each other, or single ``runs/NAME`` folders. A run is
replayed with its own arrivals, lengths, prompt contents, engine arguments and (where the server printed them) KV
blocks; no constant is fitted to any run, and no host time is added. Errors are signed fractions,
ours over measured less one.

TTFT counts from the moment at which the engine core sees a request, which is between two steps, because that is when
vLLM stamps it as queued; so it does here.

`wall_s` is the simulation alone, from the requests to the time of every token.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.catalog.accelerators import Accelerator, load_accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.engine_facts import load_engine
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InputError, OutOfRangeError, PlimsollError
from plimsoll.engine import EngineConfig
from plimsoll.perf.build import build_step_model
from plimsoll.perf.memory import MemoryAssumptions, kv_capacity
from plimsoll.perf.profiles.graphs import DEFAULT_LIMIT_TOKENS
from plimsoll.perf.profiles.model import Profiled
from plimsoll.perf.request import StepModelRequest
from validation._replay import Counted, Served, serve, workload_of

Row = dict[str, Any]
Figures = dict[str, dict[str, float]]

TARGETS = {"RTX-4090": 0.03}
OTHER_TARGET = 0.05
FIRST_ASYNCHRONOUS = (0, 14)  # "Async scheduling is now enabled by default": release notes of vLLM v0.14.0
STATISTICS: dict[str, Callable[[Any], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    **{f"p{q}": lambda values, q=q: float(np.percentile(values, q)) for q in (90, 95, 99)},  # type: ignore[misc]
}
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "auto": "bf16"}


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Predict every run; a run that cannot be predicted is named with the reason, and fails the suite."""
    figures: dict[str, Any] = {}
    refused: dict[str, str] = {}
    sentences, passed = [], True
    for folder in _run_folders(paths):
        try:
            found, target = predict(folder)
        except PlimsollError as error:
            refused[folder.name] = str(error)
            passed = False
            continue
        figures[folder.name] = found
        worst = max(abs(found[metric][name]) for metric in ("ttft", "tpot", "latency") for name in STATISTICS)
        passed &= worst <= target
        sentences.append(
            f"{folder.name} worst figure off by {worst:.1%} (to reach {target:.0%}), {found['wall_s']:.2f} s"
        )
    sentences += [f"{name} not predicted: {reason}" for name, reason in refused.items()]
    return {
        "passed": passed and bool(figures),
        "summary": "; ".join(sentences) or "no runs",
        "figures": figures,
        "refused": refused,
    }


def predict(folder: Path) -> tuple[dict[str, Any], float]:
    """Errors of one run, and the bound within which they ought to lie.

    Raises:
        InputError: files that are missing or cannot be read.
        PlimsollError: whatever the catalogue, the profile or the memory model refuse.
    """
    meta, measured, blocks = _read(folder)
    deployment = meta["deployment"]
    gpu, model = load_accelerator(deployment["gpu"]), load_model(meta["model"])
    parallelism = Parallelism(tp=deployment["tp"], dp=deployment["dp"], ep=deployment["ep"])
    config, notes = _config(meta, model, gpu, parallelism)
    measured = sorted(measured, key=lambda row: row["queued_s"])
    workload = workload_of(measured, blocks)
    step_model = _step_model(folder, meta, model, gpu, parallelism, extrapolate=False)
    outside_frac = 0.0
    try:
        served = serve(workload, config, step_model)
    except OutOfRangeError:
        step_model = _step_model(folder, meta, model, gpu, parallelism, extrapolate=True)
        counted = Counted(step_model)
        served = serve(workload, config, counted)
        outside_frac = counted.outside / counted.steps
    found: dict[str, Any] = {
        **_errors(measured, served),
        "wall_s": served.wall_s,
        "preemptions": served.preemptions,
        "num_kv_blocks": config.num_blocks + 1,
        "steps_outside_profile_frac": outside_frac,
        "step_model": step_model.describe(),
        "notes": notes,
    }
    return found, TARGETS.get(gpu.id, OTHER_TARGET)


def _step_model(
    folder: Path, meta: Row, model: ModelSpec, gpu: Accelerator, parallelism: Parallelism, *, extrapolate: bool
) -> Profiled:
    profile = folder.resolve().parent.parent / "profiles" / meta["deployment"]["profile"]
    request = StepModelRequest(
        model=model,
        gpu=gpu,
        parallelism=parallelism,
        precision=_precision(meta),
        options={
            "allow_extrapolation": extrapolate,
            "custom_all_reduce": not meta["engine_kwargs"].get("disable_custom_all_reduce", False),
            "graph_tokens": _graph_tokens(meta["engine_kwargs"]),
        },
    )
    built = build_step_model(f"profile:{profile}", request)
    assert isinstance(built, Profiled)
    return built


def _graph_tokens(arguments: Row) -> int:
    """The largest CUDA graph of such a server: vLLM, ``config/vllm.py``, `_set_cudagraph_sizes`."""
    if arguments.get("enforce_eager"):
        return 0
    limits = [DEFAULT_LIMIT_TOKENS]
    if arguments.get("max_num_seqs"):
        limits.append(2 * int(arguments["max_num_seqs"]))
    if arguments.get("max_num_batched_tokens"):
        limits.append(int(arguments["max_num_batched_tokens"]))
    return min(limits)


def _precision(meta: Row) -> str:
    dtype = str(meta["engine_kwargs"].get("dtype", "auto"))
    if dtype not in PRECISIONS:
        raise InputError("meta.json dtype", dtype, f"profiles are of {', '.join(PRECISIONS)}")
    return PRECISIONS[dtype]


def _config(meta: Row, model: ModelSpec, gpu: Accelerator, parallelism: Parallelism) -> tuple[EngineConfig, list[str]]:
    """The server's arguments, and KV blocks by the memory model where the server's own are not recorded."""
    arguments, cache, notes = meta["engine_kwargs"], meta.get("kv_cache") or {}, []
    asked = EngineSettings(
        max_num_seqs=arguments.get("max_num_seqs"),
        max_num_batched_tokens=arguments.get("max_num_batched_tokens"),
        max_model_len=arguments.get("max_model_len"),
        block_size=cache.get("block_size") or 16,
        gpu_memory_utilization=cache.get("gpu_memory_utilization"),
        num_kv_blocks=cache.get("num_gpu_blocks"),  # of all data-parallel ranks together: vLLM sums them at start
    )
    engine = load_engine("vllm-v1", ".".join(map(str, _version(meta))))
    assumed = MemoryAssumptions(engine=engine)  # with the memory share that this version takes by default
    plan = kv_capacity(model, gpu, parallelism, _precision(meta), "auto", asked, assumed)
    if asked.num_kv_blocks is None:
        notes.append(f"KV blocks are not recorded: {plan.num_blocks} by the memory model")
    resolved = plan.settings
    assert resolved.max_num_seqs is not None
    assert resolved.max_num_batched_tokens is not None
    config = EngineConfig(
        num_blocks=plan.num_blocks - 1,  # without the null block
        block_size=plan.block_size,
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
        ranks=parallelism.dp,
        options={
            "enable_prefix_caching": cache.get("enable_prefix_caching", True),
            "cache_own_blocks": True,
            "async_scheduling": _is_asynchronous(meta),
        },
    )
    return config, notes


def _is_asynchronous(meta: Row) -> bool:
    given = meta["engine_kwargs"].get("async_scheduling")
    if given is not None:
        return bool(given)
    return _version(meta) >= FIRST_ASYNCHRONOUS


def _version(meta: Row) -> tuple[int, ...]:
    """Of vLLM, as far as it is numbers: ``0.19.0rc1+cu128`` is (0, 19, 0).

    Raises:
        InputError: it begins with none.
    """
    found = re.match(r"v?(\d+(?:\.\d+)*)", str(meta["vllm_version"]))
    if found is None:
        raise InputError("meta.json vllm_version", meta["vllm_version"], "write it like 0.19.0")
    return tuple(int(part) for part in found[1].split("."))


def _errors(measured: Sequence[Row], served: Served) -> Figures:
    def column(name: str) -> Any:
        return np.array([row[name] for row in measured])

    outputs = column("output_tokens")
    real = _metrics(column("queued_s"), column("first_token_s"), column("last_token_s"), outputs)
    ours = _metrics(served.queued_s, served.first_token_s, served.last_token_s, outputs)
    return {
        metric: {name: statistic(ours[metric]) / statistic(real[metric]) - 1 for name, statistic in STATISTICS.items()}
        for metric in real
    }


def _metrics(queued_s: Any, first_s: Any, last_s: Any, outputs: Any) -> dict[str, Any]:
    several = outputs > 1
    return {
        "ttft": first_s - queued_s,
        "tpot": (last_s - first_s)[several] / (outputs[several] - 1),
        "latency": last_s - queued_s,
    }


def _run_folders(paths: Sequence[Path]) -> list[Path]:
    folders: list[Path] = []
    for path in paths:
        if (path / "meta.json").is_file():
            folders.append(path)
        elif (path / "runs").is_dir():
            folders += sorted(entry for entry in (path / "runs").iterdir() if (entry / "meta.json").is_file())
        else:
            raise InputError("--data", str(path), "give a folder with runs/ and profiles/, or one runs/NAME folder")
    return folders


def _read(folder: Path) -> tuple[Row, list[Row], dict[int, tuple[int, ...]]]:
    """meta.json, measured.csv and the prompts' block ids by request (none where there is no workload file)."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        with (folder / "measured.csv").open(encoding="utf-8", newline="") as file:
            measured = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
        workload = folder / "workload.jsonl.gz"
        blocks: dict[int, tuple[int, ...]] = {}
        if workload.is_file():
            with gzip.open(workload, "rt", encoding="utf-8") as file:
                for line in file:
                    row = json.loads(line)
                    blocks[int(row["request_id"])] = tuple(row["prefix_blocks_16"])
        for name in ("model", "vllm_version", "engine_kwargs", "deployment"):
            meta[name]
        if not measured or "queued_s" not in measured[0]:
            raise ValueError("no measured requests")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(str(folder), str(error), "a run has meta.json, measured.csv and workload.jsonl.gz") from error
    return meta, measured, blocks
