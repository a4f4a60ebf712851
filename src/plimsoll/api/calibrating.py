"""`calibrate`: what do measured runs say of a deployment, beside what its step model says?"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll._version import __version__
from plimsoll.api.calibrations import circumstances, gpu_figures, host_time_record, model_shape, step_model_identity
from plimsoll.api.checks import load_gpu
from plimsoll.api.documents import deployment_json, sources_json
from plimsoll.api.measured_checks import check_origin, check_times, usable_error
from plimsoll.api.resolve import Resolved, resolve_for
from plimsoll.api.scenario import CalibrateScenario, build
from plimsoll.calibration import FACTORS, Calibration, Fit, MeasuredRun, Seen, fit, flag_name, read_measured
from plimsoll.calibration.snapshots import KvCache, is_snapshot, read_kv_cache
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.source import Source
from plimsoll.engine import EngineConfig
from plimsoll.engine import simulate as run_engine
from plimsoll.perf.calibrated import calibrated
from plimsoll.perf.factors import RATIO_LIMITS, Factors

Progress = Callable[[int], None]
DISAGREE = 1.5
"""Runs that, with the factors, still stand this far from one another (measured over modelled TPOT) are named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """What a calibration answers.

    Attributes:
        scenario: what was asked.
        resolved: the deployment without factors.
        runs: what was measured.
        fit: factors, and errors of the part held back.
        calibration: the file's content.
        wall_s: of the fit.
        notes: sentences for the user.
    """

    scenario: CalibrateScenario
    resolved: Resolved
    runs: tuple[MeasuredRun, ...]
    fit: Fit
    calibration: Calibration
    wall_s: float
    notes: tuple[str, ...]

    @property
    def improved(self) -> bool:
        """Whether the factors bring the figures held back closer."""
        return self.fit.error_after < self.fit.error_before

    @property
    def usable_error(self) -> float:
        """The error held back up to which the factors are of use, see `measured_checks.usable_error`."""
        return usable_error(self.resolved)

    @property
    def usable(self) -> bool:
        """Whether they bring them closer, and close enough."""
        return self.improved and self.fit.error_after <= self.usable_error

    @property
    def refusal(self) -> str | None:
        """Why no file of these factors is kept, in a few words; None where they are of use."""
        if self.usable:
            return None
        before, after = self.fit.error_before, self.fit.error_after
        if not self.fit.values:
            return "the data carries no factor"
        if not self.improved:
            return f"its factors do not help what was held back ({before:.1%} before, {after:.1%} after)"
        return f"{after:.1%} off what was held back is too far (usable: up to {self.usable_error:.0%})"

    def to_json_dict(self) -> dict[str, Any]:
        """The document that ``plimsoll calibrate --json`` prints."""
        return {
            "improved": self.improved,
            "usable": self.usable,
            "refusal": self.refusal,
            "usable_error": self.usable_error,
            "factors": dict(self.calibration.factors),
            "deviations": dict(self.fit.deviations),
            "not_carried": dict(self.fit.not_carried),
            "fitted_on": self.fit.fitted_on,
            "held_back": self.fit.held_back,
            "error_before": self.fit.error_before,
            "error_after": self.fit.error_after,
            "before": {run: dict(figures) for run, figures in self.fit.before.items()},
            "after": {run: dict(figures) for run, figures in self.fit.after.items()},
            "runs": [_run_json(run) for run in self.runs],
            "deployment": deployment_json(self.resolved),
            "sources": sources_json(self.resolved),
            "wall_s": self.wall_s,
            "notes": list(self.notes),
            "version": __version__,
        }


def _run_json(run: MeasuredRun) -> dict[str, Any]:
    """One run: its requests, those of them that are judged, and its load: users, or requests a second."""
    span_s = float(run.sent_s[-1])
    return {
        "name": run.name,
        "num_requests": len(run),
        "num_judged": int(run.counted.sum()),
        "concurrency": run.concurrency,
        "rate_per_s": len(run) / span_s if run.concurrency is None and span_s > 0 else None,
    }


def calibrate(
    scenario: CalibrateScenario | None = None, *, on_simulation: Progress | None = None, **fields: Any
) -> CalibrationResult:
    """Fit a few physical factors to measured runs, and judge them on a part that was held back.

    Args:
        scenario: what is asked; or give its fields as keywords: ``calibrate(results="measured.csv",
            model="Llama-3.1-8B", gpu="RTX-4090")``.
        on_simulation: called with the number of simulations done so far.
        **fields: of `CalibrateScenario`.

    Raises:
        InputError, UnknownNameError: a file or a field that cannot be used, a factor that the data does not carry.
        InfeasibleError: the deployment would not start.
    """
    asked = scenario if scenario is not None else build(CalibrateScenario, fields)
    if asked.calibration is not None:
        raise InputError("--calibration", asked.calibration, "leave it out: calibrate writes such a file")
    runs, printed_blocks = _read(asked)
    doubts = _doubts(asked, runs)
    resolved = resolve_for(asked, runs[0].workload())
    fixed, notes = _blocks(resolved, runs, printed_blocks)
    started_s = time.perf_counter()
    simulate = _Simulation(resolved, fixed, asked.seed, on_simulation)
    for run in runs:
        check_times(run, simulate(run, {}), resolved)
    found = fit(runs, simulate, _wanted(asked.fit))
    return CalibrationResult(
        scenario=asked,
        resolved=resolved,
        runs=tuple(runs),
        fit=found,
        calibration=_calibration(asked, resolved, found, fixed),
        wall_s=time.perf_counter() - started_s,
        notes=(*resolved.notes, *doubts, *notes, *(note for run in runs for note in run.notes), *_disagreement(found)),
    )


def _doubts(asked: CalibrateScenario, runs: Sequence[MeasuredRun]) -> list[str]:
    """Whether the files are of what was asked for; before anything else is wrong with them for another GPU."""
    if asked.model is None or asked.gpu is None:
        return []  # refused in one line by what follows
    return check_origin(runs, load_model(asked.model), load_gpu("--gpu", asked.gpu))


def _wanted(names: str | None) -> list[str] | None:
    """Factors as the fit calls them, from what the user wrote: ``per-step``, or ``per_step_s`` as in documents."""
    if names is None:
        return None
    keys = {flag_name(factor): factor for factor in FACTORS}
    plain = [flag_name(name.strip().replace("-", "_")) for name in names.split(",")]
    return [keys.get(name, name) for name in plain]


class _Simulation:
    """What the requests of a measured run would see under factors; counts how often it was asked."""

    def __init__(
        self, resolved: Resolved, fixed: Mapping[str, float], seed: int, on_simulation: Progress | None
    ) -> None:
        self._resolved, self._fixed, self._seed, self._tell = resolved, fixed, seed, on_simulation
        self._count = 0
        self._seen: dict[tuple[str, Factors], Seen] = {}

    def __call__(self, measured: MeasuredRun, values: Mapping[str, float]) -> Seen:
        factors = Factors(**{**self._fixed, **values})
        key = (measured.name, factors)
        if key not in self._seen:
            self._seen[key] = self._simulated(measured, factors)
        return self._seen[key]

    def _simulated(self, measured: MeasuredRun, factors: Factors) -> Seen:
        self._count += 1
        if self._tell is not None:
            self._tell(self._count)
        resolved = self._resolved
        num_blocks = max(2, round(resolved.config.num_blocks * factors.kv_blocks))
        config = dataclasses.replace(resolved.config, num_blocks=num_blocks, frontend_s=factors.per_request_s)
        run = run_engine(measured.workload(), config, calibrated(resolved.step_model, factors), seed=self._seed)
        _check_served(measured, run, config)
        return seen(run)


def _check_served(measured: MeasuredRun, run: Run, config: EngineConfig) -> None:
    """Refuse a replay without some of the requests: its percentiles would be of others than the measured ones.

    Raises:
        InputError: the deployment rejects requests that the server answered, or never ends them.
    """
    lacking = ~run.finished | (run.output_tokens < measured.output_tokens)
    if not lacking.any():
        return
    longest = int((measured.prompt_tokens + measured.output_tokens)[lacking].max())
    takes = f"up to {config.max_model_len} tokens, in {config.num_blocks} KV blocks of {config.block_size}"
    reason = f"the server answered these, of up to {longest} tokens, and this deployment takes requests of {takes}"
    remedy = f"{reason}: give --max-model-len and --kv-blocks as the server had them"
    raise InputError(measured.name, f"{int(lacking.sum())} of {len(measured)} requests", remedy)


def seen(run: Run) -> Seen:
    """TTFT, TPOT and end-to-end latency of every request; NaN where it never came."""
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot_s = (run.finish_s - run.first_token_s) / (run.output_tokens - 1)
    return Seen(
        ttft_s=run.first_token_s - run.arrival_s,
        tpot_s=np.where(run.output_tokens > 1, tpot_s, np.nan),
        e2e_s=run.finish_s - run.arrival_s,
    )


def _read(asked: CalibrateScenario) -> tuple[list[MeasuredRun], set[KvCache]]:
    """All runs of all files, and the KV caches that snapshots of the server's metrics name."""
    paths = [Path(part.strip()) for part in (asked.results or "").split(",") if part.strip()]
    if not paths:
        raise InputError("RESULTS", None, "name at least one result file of a load generator")
    runs: list[MeasuredRun] = []
    caches: set[KvCache] = set()
    for path in paths:
        if asked.results_format is None and is_snapshot(path):
            caches.add(read_kv_cache(path))
        else:
            runs += read_measured(path, asked.results_format)
    if not runs:
        raise InputError("RESULTS", str(paths[0]), "a metrics snapshot names the KV blocks; add a file with requests")
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("RESULTS", twice, "it is given twice: name every file once")
    if asked.concurrency is not None:
        if asked.concurrency < 1:
            raise InputError("--concurrency", asked.concurrency, "give at least one request in flight")
        runs = [dataclasses.replace(run, concurrency=asked.concurrency) for run in runs]
    return runs, caches


def _blocks(
    resolved: Resolved, runs: Sequence[MeasuredRun], printed: set[KvCache]
) -> tuple[dict[str, float], list[str]]:
    """The blocks that the server printed over those of the memory model: a ratio that nobody has to fit."""
    memory = resolved.memory
    caches = printed | {
        KvCache(num_blocks=run.num_kv_blocks, block_tokens=run.kv_block_tokens) for run in runs if run.num_kv_blocks
    }
    found = {(cache.num_blocks, cache.block_tokens or memory.block_size) for cache in caches}
    if not found:
        note = "the server's KV blocks are not in these files: the memory model's are used (--kv-blocks gives them)"
        return {}, [] if memory.source is Source.MEASURED else [note]
    if len(found) > 1:
        shown = ", ".join(f"{count} of {tokens} tokens" for count, tokens in sorted(found))
        raise InputError("RESULTS", f"KV blocks: {shown}", "these are of different servers: calibrate each by itself")
    ((count, tokens),) = found
    notes = []
    if tokens != memory.block_size:
        notes.append(
            f"the server's KV blocks hold {tokens} tokens, the deployment's {memory.block_size}: "
            f"give --block-size {tokens}; kv_blocks is the ratio of their tokens"
        )
    ratio = count * tokens / (memory.num_blocks * memory.block_size)
    if not RATIO_LIMITS[0] <= ratio <= RATIO_LIMITS[1]:
        modelled = f"the memory model has {memory.num_blocks} of {memory.block_size} tokens, far from it"
        remedy = f"{modelled}: give --kv-blocks {count} --block-size {tokens}, and check --model and --gpu"
        raise InputError("RESULTS", f"{count} KV blocks of {tokens} tokens", remedy)
    return {"kv_blocks": ratio}, notes


def _disagreement(found: Fit) -> list[str]:
    """A sentence where the runs contradict one another, which no factor can mend."""
    name = "tpot mean"
    ratios = {run: 1 / (1 + figures[name]) for run, figures in found.after.items() if figures.get(name, -1.0) > -1.0}
    if not ratios:
        return []
    low, high = min(ratios, key=lambda run: ratios[run]), max(ratios, key=lambda run: ratios[run])
    if ratios[high] < DISAGREE * ratios[low]:
        return []
    where = f"{ratios[high]:.2g} times the modelled one in {high}, {ratios[low]:.2g} times in {low}"
    why = "was the machine busy with something else, or are they of different servers?"
    return [f"the runs disagree: with these factors TPOT is {where}; {why}"]


def _calibration(asked: CalibrateScenario, resolved: Resolved, found: Fit, fixed: Mapping[str, float]) -> Calibration:
    deployment = resolved.deployment
    ordered = {name: found.values[name] for name in FACTORS if name in found.values}
    return Calibration(
        model=deployment.model,
        gpu=deployment.gpu,
        step_model=step_model_identity(asked.step_model),
        circumstances=circumstances(
            deployment.engine, deployment.parallelism, deployment.precision, deployment.kv_precision
        ),
        host_time=host_time_record(resolved.host_time, resolved.engine_version),
        factors={**ordered, **fixed},
        deviations=found.deviations,
        error_before=found.error_before,
        error_after=found.error_after,
        fitted_on=found.fitted_on,
        held_back=found.held_back,
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        plimsoll_version=__version__,
        model_shape=model_shape(resolved.model),
        gpu_figures=gpu_figures(resolved.gpu, deployment.parallelism.num_gpus),
    )
