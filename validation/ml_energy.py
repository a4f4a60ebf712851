"""Suite `ml-energy`: inter-token latency, throughput, watts and joules per token of measured vLLM configurations.

Every row is simulated as a closed loop at `max_num_seqs` in flight on its own deployment, started in the steady state
(the first requests have a uniform share of their answer left), measured after the first seats have turned over.

Assumed, because the data do not say: prompts of 250 (lm-arena-chat), 300 (gpqa) and 1500 tokens (sourcegraph-fim),
uniform within ±50 %; answers uniform within ±80 % of the row's mean; expert parallelism with one data-parallel rank has
its attention cut by tensor parallelism over the same GPUs; routing balanced; vLLM 0.11 with synchronous scheduling.

Host time (`perf/data/overheads/vllm-0.11-*.toml`) was fitted on half of the pairs of model and GPU; `figures` hold the
errors of all rows, and of each half beside them.
"""

from __future__ import annotations

import csv
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.engines import load_engine
from plimsoll.catalog.models import load_model
from plimsoll.core.columns import floats, ints
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InputError, PlimsollError, UnknownNameError
from plimsoll.core.run import Run
from plimsoll.core.step import StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import simulate
from plimsoll.perf.memory import MemoryAssumptions, kv_capacity
from plimsoll.perf.overheads import load_overheads
from plimsoll.perf.roofline import Roofline
from plimsoll.perf.tabulated import PrefillRates
from plimsoll.planner.sizing import engine_config

AIMS = {"itl": 0.12, "throughput": 0.12, "power": 0.15, "energy": 0.15}
PROMPT_TOKENS = {"lm-arena-chat": 250, "gpqa": 300, "sourcegraph-fim": 1500}
PRECISIONS = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "fp4", "float16": "fp16"}
GPUS = {"H100": "H100-SXM"}
# The same architecture under another name; only weights differ.
SAME_SHAPE = {
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
}
SPREAD, PROMPT_SPREAD, TURNOVERS, FEWEST = 0.8, 0.5, 3.5, 32
Row = dict[str, str]


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Simulate every row whose model the catalogue knows.

    Raises:
        InputError: no such file, or a column is missing.
    """
    rows = [row for path in paths for row in _read(path)]
    errors: dict[str, list[tuple[float, ...]]] = {"all": [], "tune": [], "judge": []}
    refused: Counter[str] = Counter()
    groups: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        try:
            found = row_errors(row)
        except PlimsollError as error:
            refused[str(error).splitlines()[0][:100]] += 1
            continue
        errors["all"].append(found)
        errors[half(row)].append(found)
        groups.setdefault(f"{row['gpu']} {row['model'].split('/')[-1]}", []).append(found)
    figures: dict[str, Any] = _figures(errors["all"])
    figures["answered_frac"] = round(len(errors["all"]) / max(1, len(rows)), 4)
    for name in ("tune", "judge"):
        figures[name] = _figures(errors[name])
    figures["by_model"] = {name: _figures(part) for name, part in sorted(groups.items())}
    figures["refused"] = dict(refused)
    figures["assumptions"] = {
        "prompt_tokens": PROMPT_TOKENS,
        "engine": "vLLM 0.11, synchronous scheduling",
        "expert_parallel_attention": "tensor parallel unless the row has data-parallel ranks",
        "routing": "balanced",
    }
    passed = bool(errors["all"]) and all(figures[name]["median_abs_error"] <= aim for name, aim in AIMS.items())
    said = ", ".join(f"{name} {figures[name].get('median_abs_error', 1.0):.1%}" for name in AIMS)
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
    if not path.is_file():
        raise InputError("--data", str(path), "give a CSV with the columns of the ML.ENERGY leaderboard's text models")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    needed = {"model", "task", "weights", "gpu", "num_gpus", "tp", "ep", "dp", "max_num_seqs", "avg_output_tokens"}
    if not rows or needed - rows[0].keys():
        missing = ", ".join(sorted(needed - (rows[0].keys() if rows else set())))
        raise InputError(path.name, missing, "these columns are missing")
    return rows


def row_errors(row: Row) -> tuple[float, ...]:
    """Signed relative errors of ITL, throughput, watts and joules per token of one row.

    Raises:
        PlimsollError: a model or GPU that the catalogue lacks, or a deployment that does not fit.
    """
    ours = predict(row)
    measured = (
        float(row["median_itl_ms"]) / 1e3,
        float(row["output_tokens_per_s"]),
        float(row["avg_power_w"]),
        float(row["joules_per_output_token"]),
    )
    return tuple(value / real - 1 for value, real in zip(ours, measured, strict=True))


def predict(row: Row) -> tuple[float, float, float, float]:
    """Median ITL in s, output tokens per s, W of all GPUs, J per output token."""
    model, gpu, cut = find_model(row["model"]), GPUS.get(row["gpu"], row["gpu"]), _cut(row)
    task = row["task"]
    if task not in PROMPT_TOKENS:
        raise UnknownNameError("task", task, tuple(PROMPT_TOKENS))
    steps = _steps(row["model"], gpu, cut, PRECISIONS.get(row["weights"], row["weights"]))
    seats, prompt, output = int(row["max_num_seqs"]), PROMPT_TOKENS[task], float(row["avg_output_tokens"])
    settings = EngineSettings(max_num_seqs=-(-seats // cut.dp), max_model_len=int(2 * (prompt + output)) + 10)
    memory = kv_capacity(
        model, load_accelerator(gpu), cut, PRECISIONS.get(row["weights"], row["weights"]), "auto", settings,
        MemoryAssumptions(
            engine=load_engine("vllm-v1"), expected_sequence_tokens=int(prompt + output), shrink_max_model_len=True
        ),
    )  # fmt: skip
    workload = _workload(seats, prompt, output)
    run_ = simulate(workload, engine_config(memory, cut, "vllm-v1", 1, "round-robin"), steps)
    return _steady(run_, workload, steps)


def _workload(seats: int, prompt: float, output: float) -> Workload:
    num = int(max(TURNOVERS * seats, FEWEST))
    rng = np.random.default_rng(0)
    prompts = rng.integers(int(prompt * (1 - PROMPT_SPREAD)), int(prompt * (1 + PROMPT_SPREAD)), num)
    outputs = np.maximum(2, rng.uniform(1 - SPREAD, 1 + SPREAD, num) * output).astype(int)
    outputs[:seats] = np.maximum(2, outputs[:seats] * rng.uniform(0, 1, min(seats, num))).astype(int)
    return Workload(
        arrival_s=floats(np.zeros(num)), prompt_tokens=ints(prompts), output_tokens=ints(outputs), concurrency=seats
    )


def _cut(row: Row) -> Parallelism:
    num_gpus, tp, ep, dp = (int(row[name]) for name in ("num_gpus", "tp", "ep", "dp"))
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
            return load_model(plain.removesuffix(cut))
        except UnknownNameError as error:
            last = last or error
    assert last is not None
    raise last


@functools.lru_cache(maxsize=8)
def _steps(model: str, gpu: str, cut: Parallelism, precision: str) -> Roofline:
    card = load_accelerator(gpu)
    generation = "blackwell" if card.architecture == "blackwell" else "hopper"
    host = load_overheads(f"vllm-0.11-{generation}{'-ep' if cut.ep > 1 else ''}")
    return _Hosted(find_model(model), card, cut, precision, "auto", host)


class _Hosted(Roofline):
    """The roofline with the host time of steps that have prompts in them."""

    def _prefill_rates(self) -> PrefillRates:
        rates = super()._prefill_rates()
        return rates._replace(fixed_s=rates.fixed_s + self.overheads.per_prefill_s)


def _steady(run_: Run, workload: Workload, steps: Roofline) -> tuple[float, float, float, float]:
    """Figures between the moment the seats have turned over and the moment the last request is sent."""
    seats = workload.concurrency or 1
    begin = float(np.sort(run_.scheduled_s)[min(seats, len(run_) - 1)])
    end = float(np.max(run_.arrival_s))
    if end <= begin:
        begin, end = 0.0, run_.end_s
    line = run_.timeline
    assert line is not None  # nobody asked the engine to leave token times out
    ends = line.step_end_s
    running = np.zeros(len(ends) + 1)
    np.add.at(running, line.slice_begin, 1)
    np.add.at(running, line.slice_end, -1)
    inside = (ends > begin) & (ends <= end)
    took, tokens = np.diff(ends, prepend=0.0)[inside], np.cumsum(running)[:-1][inside]
    order = np.argsort(took)
    share = np.cumsum(tokens[order])
    itl_s = float(took[order][np.searchsorted(share, share[-1] / 2)])
    seconds, num_tokens, num_steps = end - begin, float(tokens.sum()), len(took)
    entered = (run_.first_token_s > begin) & (run_.first_token_s <= end)
    shape = _mean_shape(run_, steps, num_tokens / num_steps, float(entered.sum()) / num_steps)
    joules = steps.energy_j(shape, seconds / num_steps)
    watts = float("nan") if joules is None else joules / (seconds / num_steps)
    return itl_s, num_tokens / seconds, watts, watts * seconds / num_tokens


def _mean_shape(run_: Run, steps: Roofline, batch: float, entering: float) -> StepShape:
    """The work of all steps over their number: power is a straight line in it."""
    layers, prompt = steps.attention_layers, float(run_.prompt_tokens.mean())
    later = run_.output_tokens[len(run_) // 3 :].astype(float)
    seen = prompt + float((later**2).sum() / later.sum()) / 2
    read = sum(weight * min(seen, window or seen) for weight, window in layers)
    return StepShape(
        num_decode=round(batch),
        decode_read_tokens=int(batch * read),
        prefill_tokens=round(entering * prompt),
        num_prefill=1 if entering * prompt >= 1 else 0,
        prefill_pairs=int(entering * prompt * prompt / 2 * sum(weight for weight, _ in layers)),
    )
