"""Host time of a real server: what its steps and its requests take beside the operators, by vLLM's own client.

Three things are measured on the running server, at batches that nobody else is judged by:

- *Steps.* Batches of `STEP_BATCHES` requests, with few and with more output tokens. What the longer ones take more are
  steps in which everybody decodes; less the operators of such steps it is host time: scheduling, input preparation,
  the way to the worker and back. A straight line over the batch gives the time per step and per sequence.
- *Prompts.* Batches of `PROMPT_BATCHES` long prompts with one output token. The larger one takes more steps full of
  prompt tokens; what these take beyond the engine simulated on the operators is host time per prompt token.
- *Requests.* What a single request waits for its first token beyond its step, at several prompt lengths, and how much
  longer the first token of a burst takes: until then the API server takes in the whole burst, one after another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.core.errors import InputError
from plimsoll.core.units import US_PER_S
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.overheads import NO_OVERHEADS, Overheads
from plimsoll.perf.profiles.own_format import STEPS, Row
from plimsoll.perf.profiles.own_model import OwnProfiled
from plimsoll.profiler.samples import spread_frac
from plimsoll.profiler.shapes import Limits, chunks, decodes
from plimsoll.profiler.store import Store
from plimsoll.profiler.vllm_server import INSIDE, SERVED_NAME, ServerPlan

STEP_BATCHES = (1, 3, 6, 12, 24)
STEP_PROMPT = 48
STEP_OUTPUTS = (8, 48)
SINGLE_PROMPTS = (16, 96, 384)
PROMPT_BATCHES = (3, 12)
LONG_PROMPT = 320
BURST = 24
BURST_PROMPT = 16
REPEATS = 3
CLIENT_TIMEOUT_S = 900.0
LEAST_STEP_S = 1e-6
CLIENT_LOG = "client.log"
FAILED = "FAILED"
"""What `inside/plimsoll_bench.py` begins its own complaint with."""


def bench(url: str, plan: ServerPlan, runs: Sequence[Row], out: Path) -> None:
    """Run vLLM's benchmark client for a list of runs (`inside/plimsoll_bench.py`); results that are there are kept.

    Raises:
        InputError: the client failed; its last line says why.
    """
    request = {
        "url": url,
        "model": str(plan.model),
        "tokenizer": str(plan.tokenizer),
        "served_name": SERVED_NAME,
        "runs": list(runs),
        "out": str(out),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(request, file)
        file.flush()
        done = subprocess.run(
            [str(plan.python), str(INSIDE / "plimsoll_bench.py"), file.name],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, plan.other_cores),
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / CLIENT_LOG).write_text(done.stderr, encoding="utf-8")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        # Libraries talk after the error, when Python ends.
        errors = [line for line in lines if "Error" in line or line.startswith(FAILED)]
        said = (errors or lines)[-1][-300:]
        raise InputError("vllm bench serve", str(out / CLIENT_LOG), f"the client failed: {said}")


def calibration_runs(limits: Limits) -> list[Row]:
    """Batches that tell host time; none of them has the shape of a judged one. A first one warms up."""
    longest = limits.max_length - max(STEP_OUTPUTS)
    batches = [batch for batch in STEP_BATCHES if batch <= limits.max_seqs]
    prompts = [prompt for prompt in SINGLE_PROMPTS if prompt <= min(longest, limits.max_tokens)]
    short, burst = min(STEP_PROMPT, longest), min(BURST, limits.max_seqs)
    runs = [_run("warm-up", 4, short, 8, 0)]
    for repeat in range(REPEATS):
        for output in STEP_OUTPUTS:
            runs += [_run(f"steps{output}-{batch}-{repeat}", batch, short, output, 100 + repeat) for batch in batches]
        for batch in PROMPT_BATCHES:
            if batch <= limits.max_seqs:
                runs.append(_run(f"prompts-{batch}-{repeat}", batch, min(LONG_PROMPT, longest), 1, 400 + repeat))
        runs += [_run(f"single-{prompt}-{repeat}", 1, prompt, 4, 200 + repeat) for prompt in prompts]
        runs.append(_run(f"burst-{burst}-{repeat}", burst, min(BURST_PROMPT, longest), 4, 300 + repeat))
    return runs


def _run(name: str, batch: int, prompt: int, output: int, seed: int) -> Row:
    return {"name": name, "batch": batch, "prompt_tokens": prompt, "output_tokens": output, "seed": seed}


def add_host_time(store: Store, results: Path, limits: Limits) -> None:
    """Read the results of `calibration_runs` and put host times into the store's header and ``steps.csv``.

    Raises:
        InputError: a result is missing.
    """
    model = OwnProfiled(store.profile(), NO_OVERHEADS, allow_extrapolation=True)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in calibration_runs(limits):
        kind, _, rest = str(run["name"]).partition("-")
        if kind != "warm":
            found.setdefault(f"{kind}-{rest.rpartition('-')[0]}", []).append(_result(results, str(run["name"])))
    few, many = (f"steps{output}-" for output in STEP_OUTPUTS)
    batches = [batch for batch in STEP_BATCHES if f"{many}{batch}" in found]
    rows = [_step_row(model, batch, found[f"{few}{batch}"], found[f"{many}{batch}"]) for batch in batches]
    store.replace(STEPS, rows)
    step_s, sequence_s = line(rows)
    host = Overheads(per_step_s=step_s, per_sequence_s=sequence_s)
    token_s = _prompt_token_s(OwnProfiled(store.profile(), host, allow_extrapolation=True), found, limits)
    host = dataclasses.replace(host, per_prefill_token_s=token_s)
    store.header["host"] = {
        "per_step_us": step_s * US_PER_S,
        "per_sequence_us": sequence_s * US_PER_S,
        "per_prefill_token_us": token_s * US_PER_S,
        "source": "measured: steps of a running server less their operators (steps.csv, server/)",
    }
    store.header["server"] = _server(OwnProfiled(store.profile(), host, allow_extrapolation=True), found)
    store.write_header()


def _prompt_token_s(model: OwnProfiled, found: Mapping[str, list[Mapping[str, Any]]], limits: Limits) -> float:
    """Host seconds per prompt token: what more prompts take beyond the engine on the operators; never below zero."""
    batches = [batch for batch in PROMPT_BATCHES if f"prompts-{batch}" in found]
    if len(batches) < 2:
        return 0.0
    low, high = batches
    measured_s = [statistics.median(run["duration"] for run in found[f"prompts-{batch}"]) for batch in batches]
    prompt = min(LONG_PROMPT, limits.max_length - max(STEP_OUTPUTS))
    modelled_s = [_all_at_once_s(model, batch, prompt, limits) for batch in batches]
    more_s = (measured_s[1] - measured_s[0]) - (modelled_s[1] - modelled_s[0])
    return max(0.0, float(more_s) / (prompt * (high - low)))


def _all_at_once_s(model: OwnProfiled, batch: int, prompt: int, limits: Limits) -> float:
    """Seconds until all of `batch` prompts have their first token, sent a moment after the first one."""
    config = EngineConfig(
        num_blocks=batch * (prompt + 2),
        block_size=1,
        max_num_seqs=limits.max_seqs,
        max_num_batched_tokens=limits.max_tokens,
    )
    arrival_s = np.array([0.0, *[1e-6] * (batch - 1)])
    lengths = np.full(batch, prompt)
    workload = Workload(arrival_s=arrival_s, prompt_tokens=lengths, output_tokens=np.ones_like(lengths))
    return float(simulate(workload, config, model).finish_s.max())


def line(rows: Sequence[Row]) -> tuple[float, float]:
    """Host seconds per step and per sequence: least squares over the batches, neither below zero."""
    batches = np.array([row["num_decode"] for row in rows], float)
    host = np.array([row["step_us"] - row["operators_us"] for row in rows]) / US_PER_S
    if len(rows) < 2:
        return max(0.0, float(host[0])), 0.0
    slope, base = np.polyfit(batches, host, 1)
    if slope < 0:
        return max(0.0, float(host.mean())), 0.0
    if base < 0:
        return 0.0, max(0.0, float((batches * host).sum() / (batches**2).sum()))
    return float(base), float(slope)


def _step_row(
    model: OwnProfiled, batch: int, few: Sequence[Mapping[str, Any]], many: Sequence[Mapping[str, Any]]
) -> Row:
    """One batch: the mean step by which its longer runs are longer, beside the operators of those very steps."""
    low, high = STEP_OUTPUTS
    steps_s = [(long["duration"] - short["duration"]) / (high - low) for short, long in zip(few, many, strict=True)]
    # Token t is decoded at the length of the prompt and of the tokens before it.
    lengths = range(STEP_PROMPT + low, STEP_PROMPT + high)
    operators_s = statistics.fmean(model.operators_s(decodes(batch, length).step_shape()) for length in lengths)
    return {
        **decodes(batch, STEP_PROMPT + (low + high) // 2).row(),
        "step_us": max(statistics.median(steps_s), LEAST_STEP_S) * US_PER_S,
        "operators_us": operators_s * US_PER_S,
        "spread_frac": max(0.0, spread_frac(steps_s)),
        "num_samples": len(steps_s),
    }


def _server(model: OwnProfiled, found: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    """What requests wait for outside of steps: a fixed time, and a time per prompt token and per request of a burst."""
    prompts, waits = [], []
    for key, results in found.items():
        kind, _, prompt = key.partition("-")
        if kind == "single":
            first_s = statistics.median(result["ttfts"][0] for result in results)
            prompts.append(float(prompt))
            waits.append(first_s - model.step(chunks(1, int(prompt)).step_shape()).time_s)
    per_token_s = float(np.polyfit(prompts, waits, 1)[0]) if len(prompts) > 1 else 0.0
    per_token_s = max(0.0, per_token_s)
    fixed_s = max(0.0, float(np.mean(waits) - per_token_s * np.mean(prompts)))
    (burst_key,) = (key for key in found if key.startswith("burst"))
    burst = int(burst_key.partition("-")[2])
    first_s = statistics.median(min(result["ttfts"]) for result in found[burst_key])
    per_request_s = max(0.0, (first_s - fixed_s) / max(1, burst - 1) - per_token_s * BURST_PROMPT)
    return {
        "fixed_us": fixed_s * US_PER_S,
        "per_prompt_token_us": per_token_s * US_PER_S,
        "per_request_us": per_request_s * US_PER_S,
        "source": "measured: first tokens of single requests less their step, and of a burst (server/)",
    }


def _result(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for key in ("ttfts", "duration"):
            document[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(str(folder / f"{name}.json"), str(error), "it is no result of vllm bench serve") from error
    found: Mapping[str, Any] = document
    return found
