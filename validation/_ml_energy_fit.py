"""Fits what vLLM adds to a step, and the power model, to the tuning half of ML.ENERGY's rows.

    python -m validation._ml_energy_fit shared/data/ml-energy/llm_text.csv

All requests of a run are there from the start, so which tokens share a step does not depend on what steps cost: every
run is simulated once, and its steps are priced again and again. The constants are moved one at a time, as long as the
mean absolute log error of latencies and throughputs (each at most `WORST`) falls. Printed besides: the errors on models
that a fit has not seen (five folds of whole models). Rows with data-parallel ranks are left out. Nothing here reads a
figure of the judging half.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.run import Run
from plimsoll.perf import power
from plimsoll.perf.vllm_steps import VllmRoofline, VllmSteps, load_vllm_steps
from validation import _ml_energy_load as load
from validation import ml_energy

# Where a fit begins: what earlier fits to the whole half came to, rounded. From orders of magnitude a fit takes several
# times as long, and folds then stop short of the same place.
SHARED = {
    "per_step_s": 1.1e-3, "expert_layer_s": 7e-4, "latent_layer_s": 1e-3, "state_prompt_s": 1.35e-3,
    "expert_launch_s": 1.8e-5, "expert_tile_s": 4e-5, "expert_rank_s": 1.5e-5, "expert_skew": 2.0,
    "sampler_s_per_logit": 2.6e-10,
}  # fmt: skip
OWN = {"hopper": {"two_stage_s": 0.0}, "blackwell": {"two_stage_s": 2.5e-5}}
FACTORS = (1.5, 0.67, 1.2, 0.83, 1.06, 0.94)
SAMPLES, FOLDS, ROUNDS, WORST = 80, 5, 2, 0.5
POWER_START = {"compute": 0.8, "memory": 0.7}
Constants = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A row, and a sample of the steps of its run.

    Attributes:
        row: as measured.
        shapes: arguments of `StepModel.step_s`, one tuple a step.
        weight: how many steps each stands for.
        inside: whether it lies in the benchmark's window.
        decoding: tokens that are no first ones.
        busy: shares of the window's time that compute, memory and a sorting sampler would be busy at full rate.
    """

    row: ml_energy.Row
    busy: tuple[float, float, float]
    shapes: tuple[tuple[int, ...], ...]
    weight: np.ndarray[Any, Any]
    inside: np.ndarray[Any, Any]
    decoding: np.ndarray[Any, Any]

    @property
    def num_gpus(self) -> int:
        """Of the row's deployment."""
        return ml_energy._cut(self.row).num_gpus

    @property
    def architecture(self) -> str:
        """Of the GPU."""
        return load_accelerator(ml_energy.GPUS.get(self.row["gpu"], self.row["gpu"])).architecture


def case_of(row: ml_energy.Row) -> Case:
    """Simulate a row and sample the steps of its run."""
    gpu, cut = ml_energy.GPUS.get(row["gpu"], row["gpu"]), ml_energy._cut(row)
    steps = ml_energy._steps(row["model"], gpu, cut, ml_energy._precision(row))
    run = ml_energy.run_of(row, steps)
    line, (begin, end) = load.steps_of(run), load.window(run, int(row["max_num_seqs"]))
    inside = (line.end_s > begin) & (line.end_s <= end)
    shape, step_s = ml_energy.mean_step(run, steps, line, inside)
    compute_s, memory_s = power.busy_seconds(steps.operators, steps._pricing, shape)
    sorting_s = steps.sampler_s(shape.num_prefill_done + shape.num_decode)
    table = _step_table(run, steps.attention_layers)
    chosen, weight = _sample(table[:, 0] > 0)
    return Case(
        row=row,
        busy=(compute_s / step_s, memory_s / step_s, sorting_s / step_s),
        shapes=tuple(tuple(int(value) for value in values) for values in table[chosen]),
        weight=weight,
        inside=inside[chosen],
        decoding=line.decoding[chosen],
    )


def _step_table(run: Run, layers: Sequence[tuple[int, int | None]]) -> np.ndarray[Any, Any]:
    """``[steps, 7]``: the arguments of `StepModel.step_s` of every step; a prompt counts where its last chunk ran."""
    line = run.timeline
    assert line is not None
    num = line.num_steps
    begin, finish, request = line.slice_begin, line.slice_end, line.slice_request
    lengths = finish - begin
    first = np.concatenate(([True], request[1:] != request[:-1]))
    # Tokens that a request had got before each of its slices.
    total = np.cumsum(lengths) - lengths
    before = total - np.maximum.accumulate(np.where(first, total, 0))
    prompt = run.prompt_tokens[request] + before
    new = prompt - np.where(first, run.cached_tokens[request], 0)
    table = np.zeros((num + 1, 7))
    np.add.at(table[:, 0], begin, new)
    np.add.at(table[:, 1], begin, 1)
    weight = sum(share for share, _ in layers)
    np.add.at(table[:, 2], begin, weight * new * (prompt - new / 2))
    np.add.at(table[:, 4], begin, 1)
    for share, window in layers:
        table[:, 6] += share * _read(begin, finish, prompt, window, num)
    decoding = np.zeros(num + 1)
    np.add.at(decoding, begin + 1, 1)
    np.add.at(decoding, finish, -1)
    table[:, 5] = np.cumsum(decoding)
    return table[:num]


def _read(
    begin: np.ndarray[Any, Any],
    finish: np.ndarray[Any, Any],
    prompt: np.ndarray[Any, Any],
    window: int | None,
    num: int,
) -> np.ndarray[Any, Any]:
    """``[steps + 1]``: KV tokens that the decodes of each step read in a layer with that window."""
    start = begin + 1
    full = np.clip(start + (np.inf if window is None else window - prompt - 1), start, finish).astype(np.int64)
    level, slope = np.zeros(num + 1), np.zeros(num + 1)
    # Step s of a slice reads prompt + (s - begin) tokens, until the window is full.
    np.add.at(level, start, prompt - begin)
    np.add.at(slope, start, 1)
    np.add.at(level, full, -(prompt - begin) + (0 if window is None else window))
    np.add.at(slope, full, -1)
    np.add.at(level, finish, 0 if window is None else -window)
    return np.cumsum(level) + np.cumsum(slope) * np.arange(num + 1)


def _sample(mixed: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Evenly spaced steps of either kind, and how many each stands for."""
    chosen, weights = [], []
    for kind in (mixed, ~mixed):
        places = np.flatnonzero(kind)
        if len(places):
            picked = places[np.unique(np.linspace(0, len(places) - 1, SAMPLES).astype(int))]
            chosen.append(picked)
            weights.append(np.full(len(picked), len(places) / len(picked)))
    return np.concatenate(chosen), np.concatenate(weights)


def first_constants(cases: Sequence[Case]) -> Constants:
    """Where a fit begins: what all GPUs share, and what differs by architecture."""
    own = {f"{name} {key}": value for name in _architectures(cases) for key, value in OWN[name].items()}
    return {**SHARED, **own}


def _architectures(cases: Sequence[Case]) -> list[str]:
    return sorted({case.architecture for case in cases})


def _steps(constants: Constants, architecture: str) -> VllmSteps:
    own = {name: constants[f"{architecture} {name}"] for name in OWN[architecture]}
    fields: dict[str, Any] = {**own, **{name: constants[name] for name in SHARED}}
    return dataclasses.replace(load_vllm_steps(architecture), **fields)


def model_of(case: Case, constants: Constants) -> VllmRoofline:
    """The step model of a case with other constants."""
    row = case.row
    gpu = load_accelerator(ml_energy.GPUS.get(row["gpu"], row["gpu"]))
    cut, steps = ml_energy._cut(row), _steps(constants, gpu.architecture)
    return VllmRoofline(ml_energy.find_model(row["model"]), gpu, cut, ml_energy._precision(row), steps=steps)


def ratios(cases: Sequence[Case], constants: Constants) -> np.ndarray[Any, Any]:
    """``[cases, 2]``: latency and throughput, predicted over measured."""
    models: dict[tuple[str, str, str], VllmRoofline] = {}
    found = []
    for case in cases:
        key = (case.row["model"], case.row["gpu"], case.row["num_gpus"])
        if key not in models:
            models[key] = model_of(case, constants)
        took = np.array([models[key].step_s(*shape) for shape in case.shapes])
        order = np.argsort(took)
        share = np.cumsum((case.decoding * case.weight)[order])
        itl_s = took[order][np.searchsorted(share, share[-1] / 2)]
        tokens = (case.decoding + np.array([shape[4] for shape in case.shapes])) * case.weight
        per_s = tokens[case.inside].sum() / (took * case.weight)[case.inside].sum()
        found.append((itl_s * 1e3 / float(case.row["median_itl_ms"]), per_s / float(case.row["output_tokens_per_s"])))
    return np.array(found)


def loss(found: np.ndarray[Any, Any]) -> float:
    """Mean absolute log error, each at most `WORST`."""
    return float(np.minimum(np.abs(np.log(found)), WORST).mean())


def fit(cases: Sequence[Case], start: Constants) -> Constants:
    """One constant after another, as long as the loss falls."""
    best, constants = loss(ratios(cases, start)), dict(start)
    for _ in range(ROUNDS):
        for name in start:
            for factor in FACTORS:
                tried = {**constants, name: constants[name] * factor}
                reached = loss(ratios(cases, tried))
                if reached < best - 1e-5:
                    best, constants = reached, tried
    return constants


def folds(rows: Sequence[ml_energy.Row]) -> np.ndarray[Any, Any]:
    """``int[rows]``: the fold of a row; all rows of models of one shape are in one."""
    groups = [ml_energy.find_model(row["model"]).groups for row in rows]
    shapes = list(dict.fromkeys(groups))
    place = np.random.default_rng(1).permutation(len(shapes)) % FOLDS
    return np.array([place[shapes.index(each)] for each in groups])


def held_out(cases: Sequence[Case], start: Constants) -> np.ndarray[Any, Any]:
    """`ratios` of every case by constants fitted without its model."""
    place, found = folds([case.row for case in cases]), np.ones((len(cases), 2))
    for fold in range(FOLDS):
        mine = [int(i) for i in np.flatnonzero(place == fold)]
        constants = fit([case for case, at in zip(cases, place, strict=True) if at != fold], start)
        found[mine] = ratios([cases[i] for i in mine], constants)
    return found


def watts_of(case: Case, coefficients: Mapping[str, float]) -> float:
    """Watts of one GPU with other coefficients of the power model, at the simulated pace."""
    gpu = load_accelerator(ml_energy.GPUS.get(case.row["gpu"], case.row["gpu"]))
    compute, memory, sorting = case.busy
    u_memory = memory + sorting * power.load_power()["sorting"]
    busy = coefficients["compute"] * math.sqrt(compute) + coefficients["memory"] * math.sqrt(u_memory)
    assert gpu.idle_w is not None
    assert gpu.tdp_w is not None
    return gpu.idle_w + (gpu.tdp_w - gpu.idle_w) * min(1.0, busy)


def fit_power(cases: Sequence[Case]) -> Constants:
    """Coefficients of the power model with the least mean absolute log error, each at most `WORST`."""

    def off(tried: Constants) -> float:
        found = [watts_of(case, tried) * case.num_gpus / float(case.row["avg_power_w"]) for case in cases]
        return loss(np.array(found))

    best = dict(POWER_START)
    for factor in (1.3, 1.1, 1.03, 1.01):
        moved = True
        while moved:
            tries = [{**best, name: best[name] * step} for name in best for step in (factor, 1 / factor)]
            nearest = min(tries, key=off)
            moved = off(nearest) < off(best) - 1e-6
            best = nearest if moved else best
    return best


def held_out_watts(cases: Sequence[Case]) -> np.ndarray[Any, Any]:
    """Watts over measured ones of every case, by coefficients of its architecture fitted without its model."""
    place = folds([case.row for case in cases])
    found = np.ones(len(cases))
    for architecture in _architectures(cases):
        for fold in range(FOLDS):
            ours = [(i, case) for i, case in enumerate(cases) if case.architecture == architecture]
            coefficients = fit_power([case for i, case in ours if place[i] != fold])
            for i, case in ours:
                if place[i] == fold:
                    found[i] = watts_of(case, coefficients) * case.num_gpus / float(case.row["avg_power_w"])
    return found


def main(path: Path, say: Callable[[str], None] = print) -> None:
    """Fit, and print constants and errors. Power is fitted at the pace of the constants in the data file."""
    rows = [row for row in ml_energy._read(path) if ml_energy.half(row) == "tune" and ml_energy._cut(row).dp == 1]
    cases = [case_of(row) for row in rows]
    watts = held_out_watts(cases)
    say(f"models left out: watts {np.median(np.abs(watts - 1)):.4f}")
    for architecture in (*_architectures(cases), ""):
        ours = [case for case in cases if architecture in ("", case.architecture)]
        own = np.array([i for i, case in enumerate(cases) if architecture in ("", case.architecture)])
        said = ", ".join(f"{name} = {value:.3g}" for name, value in fit_power(ours).items())
        say(f"power {architecture or 'of all'}: {said}; left out {np.median(np.abs(watts[own] - 1)):.3f}")
    start = first_constants(cases)
    say(_errors("models left out", held_out(cases, start)))
    constants = fit(cases, start)
    say(_errors("fitted to all", ratios(cases, constants)))
    for name, value in constants.items():
        say(f"{name} = {value:.3g}")


def _errors(what: str, found: np.ndarray[Any, Any]) -> str:
    off = np.abs(found - 1)
    itl, throughput = np.median(off, axis=0)
    return f"{what}: latency {itl:.4f}, throughput {throughput:.4f}, loss {loss(found):.4f}, {len(found)} rows"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
