"""`simulate`: what would every request see on this deployment under this load?"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import numpy as np

from plimsoll._version import __version__
from plimsoll.api.documents import deployment_json, sources_json
from plimsoll.api.kinds import kinds_json, kinds_of, resolve_kinds
from plimsoll.api.refused import refused_notes
from plimsoll.api.resolve import Resolved, resolve, targets_of, workload_spec
from plimsoll.api.scenario import SimulateScenario, build
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import simulate as run_engine
from plimsoll.engine.plugins import policy_named
from plimsoll.engine.replicas.replica import Observer
from plimsoll.metrics import RunMetrics, Verdict, meets, summarise
from plimsoll.metrics import to_json_dict as metrics_json
from plimsoll.perf.profiles.outside import CountedSteps
from plimsoll.planner.probes import queue_growth
from plimsoll.workload import WorkloadSummary, describe
from plimsoll.workload.spec import WorkloadSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a simulation answers.

    Attributes:
        scenario: what was asked.
        resolved: the deployment.
        workload: what the load turned out to be, next to what was asked.
        run: every request, with every token's time.
        metrics: of the run.
        verdict: against the targets, None where none were given.
        queue_grows: whether the queue kept growing, so that percentiles only tell how long the run was.
        wall_s: of the engine alone, from parsed requests to finished timelines.
        notes: sentences for the user.
        kinds: every kind of replica, where there are several behind the router; `resolved` is the first of them.
    """

    scenario: SimulateScenario
    resolved: Resolved
    workload: WorkloadSummary
    run: Run
    metrics: RunMetrics
    verdict: Verdict | None
    queue_grows: bool
    wall_s: float
    notes: tuple[str, ...]
    kinds: tuple[Resolved, ...] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """The document that ``plimsoll simulate --json`` prints."""
        figures = metrics_json(self.metrics)
        counts = figures.pop("counts")
        return {
            "deployment": deployment_json(self.resolved),
            "workload": dataclasses.asdict(self.workload),
            "load": {
                "kind": str(self.run.load_kind),
                "asked_rate_per_s": self.workload.asked_rate_per_s,
                "realised_rate_per_s": self.workload.rate_per_s,
                "concurrency": self.run.concurrency,
                "duration_s": self.scenario.duration_s,
                "seed": self.scenario.seed,
            },
            "metrics": figures,
            "prefix_cache": prefix_cache_json(self.run),
            "counts": counts,
            "verdict": None if self.verdict is None else self.verdict.to_json_dict(),
            "queue_grows": self.queue_grows,
            "num_steps": self.run.num_steps,
            "simulated_s": self.run.end_s,
            "wall_s": self.wall_s,
            "sources": sources_json(self.resolved),
            **({"kinds": kinds_json(self.kinds, self.run)} if self.kinds else {}),
            "notes": list(self.notes),
            "version": __version__,
        }


def simulate(
    scenario: SimulateScenario | None = None, *, observer: Observer | None = None, **fields: Any
) -> SimulationResult:
    """Simulate one deployment under one load.

    Args:
        scenario: what is asked; or give its fields as keywords: ``simulate(model="Llama-3.1-8B", gpu="H100-SXM",
            workload="chat", rate_per_s=4)``.
        observer: watches every step of a second run, which is the same but slower (see `report.perfetto`).
        **fields: of `SimulateScenario`.

    Raises:
        InputError, UnknownNameError: a field that cannot be used.
        InfeasibleError: the deployment would not start.
    """
    asked = scenario if scenario is not None else build(SimulateScenario, fields)
    spec = workload_spec(asked, asked.duration_s)
    several = kinds_of(asked)
    if several:
        kinds, workload, spec = resolve_kinds(several, spec)
        return evaluate(asked, kinds[0], workload, spec, observer, kinds)
    resolved, workload, spec = resolve(asked, spec)
    return evaluate(asked, resolved, workload, spec, observer)


def prefix_cache_json(run: Run) -> dict[str, Any]:
    """Prompt tokens that were found in a prefix cache, of those of all requests that a step worked on."""
    started = np.isfinite(run.scheduled_s)
    prompt, hit = (int(tokens[started].sum()) for tokens in (run.prompt_tokens, run.cached_tokens))
    return {"prompt_tokens": prompt, "hit_tokens": hit, "hit_frac": hit / prompt if prompt else None}


def evaluate(
    asked: SimulateScenario,
    resolved: Resolved,
    workload: Workload,
    spec: WorkloadSpec,
    observer: Observer | None = None,
    kinds: tuple[Resolved, ...] = (),
) -> SimulationResult:
    """Run a resolved deployment, or `kinds` of it, on its workload and look at what came out; see `simulate`."""
    targets = targets_of(asked)
    started_s = time.perf_counter()
    config = dataclasses.replace(resolved.config, keep_step_log=True)
    members = [(dataclasses.replace(kind.config, keep_step_log=True), kind.step_model) for kind in kinds] or None
    engine = functools.partial(
        run_engine, workload, config, resolved.step_model, duration_s=asked.duration_s, seed=asked.seed, members=members
    )
    with policy_named(config.policy):
        run = engine()
        wall_s = time.perf_counter() - started_s
        if observer is not None:
            engine(observer=observer)
    if not len(run):
        raise InputError("--duration-s", asked.duration_s, "no request arrives before the cut; give more seconds")
    outside = _outside(asked, resolved, workload)
    if outside is not None and outside.num_steps:
        facts = {**resolved.step_model_facts, "outside_frac": outside.outside_frac}
        resolved = dataclasses.replace(resolved, step_model_facts=facts)
    open_loop = workload.concurrency is None
    grows = open_loop and len(run) > 1 and bool(run.arrival_s[-1] > run.arrival_s[0]) and queue_growth(run).growing
    return SimulationResult(
        scenario=asked,
        resolved=resolved,
        workload=describe(workload, spec),
        run=run,
        metrics=summarise(run, targets if targets.named() else None),
        verdict=meets(run, targets) if targets.named() else None,
        queue_grows=grows,
        wall_s=wall_s,
        notes=(
            *dict.fromkeys(note for one in kinds or (resolved,) for note in one.notes),
            *refused_notes(run, workload, kinds or (resolved,)),
            *([] if outside is None else [outside.sentence()]),
        ),
        kinds=kinds,
    )


def _outside(asked: SimulateScenario, resolved: Resolved, workload: Workload) -> CountedSteps | None:
    """Where a profile may be extrapolated: the steps that lie outside it, counted in a second run."""
    if not resolved.step_model_facts.get("extrapolates"):
        return None
    counted = CountedSteps(resolved.step_model)
    if counted.can_count:
        run_engine(workload, resolved.config, counted, duration_s=asked.duration_s, seed=asked.seed)
    return counted
