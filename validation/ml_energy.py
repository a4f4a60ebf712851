"""Suite `ml-energy`: inter-token latency, throughput, watts and joules per token of measured vLLM configurations.

Every row's benchmark run is simulated as it was done (`_ml_energy_load`): all requests at once, `max_num_seqs` running,
figures of the benchmark's own window. Steps cost what ``--step-model vllm-roofline`` says; what the plain roofline with
`vllm-v1`'s host time, the default, makes of the same rows stands beside (`plain_roofline`).

Assumed, because the data do not say: lengths of prompts and the spread of lengths (``ml_energy_runs.toml``); expert
parallelism with one data-parallel rank has its attention cut by tensor parallelism over the same GPUs.

What vLLM adds to a step and the power model were fitted on half of the pairs of model and GPU
(`python -m validation._ml_energy_fit`); `figures` hold the errors of all rows, and of each half beside them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.architecture import LayerGroup, ModelSpec, StateSpace
from plimsoll.catalog.engines import load_engine
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InputError, PlimsollError, UnknownNameError
from plimsoll.core.run import Run
from plimsoll.core.step import StepShape
from plimsoll.engine import simulate
from plimsoll.perf.build import build_step_model
from plimsoll.perf.memory import MemoryAssumptions, kv_capacity
from plimsoll.perf.overheads import load_overheads
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.roofline import Roofline
from plimsoll.planner.sizing import engine_config, with_ranks
from validation import _ml_energy_load as load
from validation._csv import csv_rows

AIMS = {"itl": 0.12, "throughput": 0.12, "power": 0.15, "energy": 0.15}
PRECISIONS = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "fp4", "float16": "fp16"}
GPUS = {"H100": "H100-SXM"}
STEP_MODEL, PLAIN = "vllm-roofline", "roofline"
# The same architecture under another name; only weights differ.
SAME_SHAPE = {
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
}
Row = dict[str, str]
NEEDED = (
    "model", "task", "weights", "gpu", "num_gpus", "tp", "ep", "dp", "max_num_seqs", "avg_output_tokens",
    "median_itl_ms", "output_tokens_per_s", "avg_power_w", "joules_per_output_token",
)  # fmt: skip


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Simulate every row whose model the catalogue knows.

    Raises:
        InputError: no such file, or a column is missing.
    """
    rows = [row for path in paths for row in _read(path)]
    errors: dict[str, list[tuple[float, ...]]] = {"all": [], "tune": [], "judge": []}
    plain: dict[str, list[tuple[float, ...]]] = {}
    refused: Counter[str] = Counter()
    groups: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        try:
            found, beside = row_errors(row), row_errors(row, PLAIN)
        except PlimsollError as error:
            refused[str(error).splitlines()[0][:100]] += 1
            continue
        errors["all"].append(found)
        errors[half(row)].append(found)
        for name in ("all", half(row)):
            plain.setdefault(name, []).append(beside)
        groups.setdefault(f"{row['gpu']} {row['model'].split('/')[-1]}", []).append(found)
    figures: dict[str, Any] = _figures(errors["all"])
    figures["answered_frac"] = round(len(errors["all"]) / max(1, len(rows)), 4)
    for name in ("tune", "judge"):
        figures[name] = _figures(errors[name])
    figures["plain_roofline"] = {name: _figures(plain.get(name, [])) for name in ("all", "tune", "judge")}
    figures["by_model"] = {name: _figures(part) for name, part in sorted(groups.items())}
    figures["refused"] = dict(refused)
    figures["assumptions"] = {
        "lengths": {name: fact for name, fact in load.facts().items() if isinstance(fact, dict)},
        "engine": "vLLM 0.11.1, asynchronous scheduling",
        "expert_parallel_attention": "tensor parallel unless the row has data-parallel ranks",
    }
    passed = bool(errors["all"]) and all(figures[name]["median_abs_error"] <= aim for name, aim in AIMS.items())
    said = ", ".join(f"{name} {figures[name]['median_abs_error']:.1%}" for name in AIMS if name in figures) or "none"
    return {
        "passed": passed,
        "summary": f"{len(errors['all'])} of {len(rows)} rows; median absolute error: {said}",
        "figures": figures,
        "plots": {
            "ml-energy": {
                "kind": "errors",
                "title": "ML.ENERGY, all rows",
                "bound": AIMS["itl"],
                "series": {name: [found[i] for found in errors["all"]] for i, name in enumerate(AIMS)},
            }
        },
    }


def half(row: Row) -> str:
    """``tune`` for the pairs of model and GPU that host time was fitted on, else ``judge``."""
    digest = hashlib.sha1((row["model"] + row["gpu"]).encode()).hexdigest()
    return "tune" if int(digest, 16) % 2 == 0 else "judge"


def _figures(errors: list[tuple[float, ...]]) -> dict[str, Any]:
    if not errors:
        return {}
    table = np.array(errors)
    return {
        name: {
            "median_abs_error": round(float(np.nanmedian(np.abs(table[:, i]))), 4),
            "median_error": round(float(np.nanmedian(table[:, i])), 4),
            "p90_abs_error": round(float(np.nanquantile(np.abs(table[:, i]), 0.9)), 4),
            "num_rows": len(errors),
        }
        for i, name in enumerate(AIMS)
    }


def _read(path: Path) -> list[Row]:
    path = path / "llm_text.csv" if path.is_dir() else path
    return csv_rows(path, NEEDED, "give a CSV with the columns of the ML.ENERGY leaderboard's text models")


def row_errors(row: Row, step_model: str = STEP_MODEL) -> tuple[float, ...]:
    """Signed relative errors of ITL, throughput, watts and joules per token of one row.

    Raises:
        PlimsollError: a model or GPU that the catalogue lacks, or a deployment that does not fit.
    """
    ours = predict(row, step_model)
    measured = (
        number(row, "median_itl_ms") / 1e3,
        number(row, "output_tokens_per_s"),
        number(row, "avg_power_w"),
        number(row, "joules_per_output_token"),
    )
    return tuple(value / real - 1 for value, real in zip(ours, measured, strict=True))


def number(row: Row, column: str) -> float:
    """A column above zero.

    Raises:
        InputError: it is none.
    """
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError):
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InputError(column, row.get(column), f"write a number above 0 (row of {row.get('model')})")
    return value


def predict(row: Row, step_model: str = STEP_MODEL) -> tuple[float, float, float, float]:
    """Median ITL in s, output tokens per s, W of all GPUs, J per output token."""
    steps = _steps(row["model"], GPUS.get(row["gpu"], row["gpu"]), _cut(row), _precision(row), step_model)
    return _figures_of(run_of(row, steps), int(number(row, "max_num_seqs")), steps)


def run_of(row: Row, steps: Roofline) -> Run:
    """The benchmark's run of a row, simulated.

    Raises:
        PlimsollError: an unknown task or GPU, or a deployment that does not fit.
    """
    task, cut, gpu = load.find_task(row["task"]), _cut(row), load_accelerator(GPUS.get(row["gpu"], row["gpu"]))
    seats = int(number(row, "max_num_seqs"))
    # Ranks of their own step together, which the engine cannot do with prefix caches.
    workload = load.requests(task, seats, number(row, "avg_output_tokens"), contents=cut.dp == 1)
    settings = EngineSettings(
        max_num_seqs=-(-seats // cut.dp),
        max_num_batched_tokens=load.facts()["max_num_batched_tokens"],
        max_model_len=int((workload.prompt_tokens + workload.output_tokens).max()) + 1,
    )
    assumed = MemoryAssumptions(
        engine=load_engine("vllm-v1"),
        expected_sequence_tokens=int(workload.prompt_tokens.mean() + workload.output_tokens.mean()),
    )
    memory = kv_capacity(find_model(row["model"]), gpu, cut, _precision(row), "auto", settings, assumed)
    config = engine_config(memory, cut, "vllm-v1", 1, "round-robin")
    return simulate(workload, with_ranks(config, cut.dp, workload, steps)[0], steps)


def _precision(row: Row) -> str:
    return PRECISIONS.get(row["weights"], row["weights"])


def _cut(row: Row) -> Parallelism:
    num_gpus, tp, ep, dp = (int(number(row, name)) for name in ("num_gpus", "tp", "ep", "dp"))
    if ep > 1:
        return Parallelism(tp=1, dp=dp, ep=ep) if dp > 1 else Parallelism(tp=num_gpus, ep=ep)
    return Parallelism(tp=tp, dp=max(1, num_gpus // tp))


@functools.cache
def find_model(name: str) -> ModelSpec:
    """The catalogue's entry of a model's shape: without the suffixes of its training and of its weights' type."""
    plain = SAME_SHAPE.get(name, name.replace("-FP8", "").replace("Thinking", "Instruct"))
    last: UnknownNameError | None = None
    for cut in ("", "-Instruct", "-Instruct-2507", "-0528"):
        try:
            return _as_served(load_model(plain.removesuffix(cut)))
        except UnknownNameError as error:
            last = last or error
    assert last is not None
    raise last


def _as_served(model: ModelSpec) -> ModelSpec:
    """The benchmark keeps recurrent states in 32 bit, whatever the checkpoint asks for."""
    size = load.facts()["state_bytes_per_element"]

    def served(group: LayerGroup) -> LayerGroup:
        if not isinstance(group.mixer, StateSpace):
            return group
        return dataclasses.replace(group, mixer=dataclasses.replace(group.mixer, state_bytes_per_element=size))

    return dataclasses.replace(model, groups=tuple(served(group) for group in model.groups))


@functools.lru_cache(maxsize=8)
def _steps(model: str, gpu: str, cut: Parallelism, precision: str, step_model: str = STEP_MODEL) -> Roofline:
    """What commands build for ``--step-model`` and ``--engine vllm-v1``."""
    request = StepModelRequest(
        model=find_model(model),
        gpu=load_accelerator(gpu),
        parallelism=cut,
        precision=precision,
        overheads=load_overheads("vllm-v1"),
    )
    return cast(Roofline, build_step_model(step_model, request))


def _figures_of(run_: Run, seats: int, steps: Roofline) -> tuple[float, float, float, float]:
    """What the benchmark would have said of a run."""
    line, (begin, end) = load.steps_of(run_), load.window(run_, seats)
    inside = (line.end_s > begin) & (line.end_s <= end)
    seconds, num_tokens = end - begin, float(line.tokens[inside].sum())
    shape, step_s = mean_step(run_, steps, line, inside)
    joules = steps.energy_j(shape, step_s)
    watts = float("nan") if joules is None else joules / step_s
    return line.median_latency_s(), num_tokens / seconds, watts, watts * seconds / num_tokens


def mean_step(run_: Run, steps: Roofline, line: load.Steps, inside: np.ndarray[Any, Any]) -> tuple[StepShape, float]:
    """The work and the seconds of the steps of the window, over their number."""
    num, layers = int(inside.sum()), steps.attention_layers
    begin, end = float((line.end_s - line.took_s)[inside].min()), float(line.end_s[inside].max())
    entered = (run_.first_token_s > begin) & (run_.first_token_s <= end)
    prompts = (run_.prompt_tokens - run_.cached_tokens)[entered].astype(float)
    # Tokens that each request decoded in the window, and the length it had halfway through.
    alive = np.clip((np.minimum(run_.finish_s, end) - np.maximum(run_.first_token_s, begin)), 0.0, None)
    pace = run_.output_tokens / np.maximum(run_.finish_s - run_.first_token_s, 1e-9)
    decoded = np.minimum(run_.output_tokens, alive * pace)
    before = np.clip(begin - run_.first_token_s, 0.0, None) * pace
    halfway = run_.prompt_tokens + before + decoded / 2
    read = sum(weight * float((decoded * np.minimum(halfway, window or np.inf)).sum()) for weight, window in layers)
    shape = StepShape(
        num_decode=round(float(line.decoding[inside].sum()) / num),
        decode_read_tokens=int(read / num),
        prefill_tokens=round(float(prompts.sum()) / num),
        num_prefill=1 if prompts.sum() >= num else 0,
        num_prefill_done=round(float(entered.sum()) / num),
        prefill_pairs=int(float((prompts**2).sum()) / 2 / num * sum(weight for weight, _ in layers)),
    )
    return shape, float(line.took_s[inside].mean())
