"""`capacity`: how much load does this deployment carry before it breaks its targets?"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from plimsoll._version import __version__
from plimsoll.api.capacity_probes import Progress, SearchedLoad, make_probe, search_options, searched_load
from plimsoll.api.documents import deployment_json, requests_name, sources_json
from plimsoll.api.kinds import kinds_json, kinds_of, resolve_kinds
from plimsoll.api.refused import refused_notes
from plimsoll.api.resolve import Resolved, resolve, targets_of, workload_spec
from plimsoll.api.scenario import CapacityScenario, build
from plimsoll.api.splits import SplitTried, choose_split
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.metrics import Targets
from plimsoll.metrics.percentiles import num_samples_needed
from plimsoll.planner.capacity import RATE, CapacityOptions, CapacityResult, Probe, find_capacity, find_whole_capacity
from plimsoll.workload import WorkloadSpec, WorkloadSummary, describe


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapacityAnswer:
    """What a capacity search answers.

    Attributes:
        scenario: what was asked.
        resolved: the deployment.
        workload: which requests; its rate is only where the search looked first.
        load: what was searched: a rate, users, requests in flight or requests at once.
        splits: prefill and decode machines that were tried, for a split of ``auto``.
        targets: that were judged.
        options: how hard it looked.
        result: capacity, interval and every probe.
        wall_s: of the search.
        notes: sentences for the user.
        kinds: every kind of replica, where there are several behind the router; `resolved` is the first of them.
        held: the highest load of the first seed that holds, run on them once more; None where there is one kind, or
            nothing holds.
    """

    scenario: CapacityScenario
    resolved: Resolved
    workload: WorkloadSummary
    load: SearchedLoad
    splits: tuple[SplitTried, ...]
    targets: Targets
    options: CapacityOptions
    result: CapacityResult
    wall_s: float
    notes: tuple[str, ...]
    kinds: tuple[Resolved, ...] = ()
    held: Run | None = None

    def to_json_dict(self) -> dict[str, Any]:
        """The document that ``plimsoll capacity --json`` prints."""
        result = self.result
        return {
            "max_load": result.max_load,
            "max_rate_per_s": result.max_rate_per_s,
            "interval": [_finite(bound) for bound in result.interval],
            "confidence": result.confidence,
            "limited_by": result.limited_by,
            "note": result.note,
            "unit": result.unit,
            "load": {
                "kind": self.load.kind,
                "unit": result.unit,
                "think_s": self.scenario.think_s,
                "duration_s": self.scenario.duration_s,
            },
            "workload": {
                "name": requests_name(self.scenario),
                "prompt": dataclasses.asdict(self.workload.prompt),
                "output": dataclasses.asdict(self.workload.output),
            },
            "probe_length": dataclasses.asdict(self.options.length),
            "targets": {**self.targets.named(), "percentile": self.targets.percentile},
            "by_seed": [
                dataclasses.asdict(seed) | {"lowest_fail": _finite(seed.lowest_fail)} for seed in result.by_seed
            ],
            "probes": [
                dataclasses.asdict(probe) | {"figures": {k: _finite(v) for k, v in probe.figures.items()}}
                for probe in result.probes
            ],
            "splits": [dataclasses.asdict(split) for split in self.splits],
            "deployment": deployment_json(self.resolved),
            "sources": sources_json(self.resolved),
            **({"kinds": kinds_json(self.kinds, self.held)} if self.kinds else {}),
            "wall_s": self.wall_s,
            "notes": list(self.notes),
            "version": __version__,
        }


def capacity(
    scenario: CapacityScenario | None = None, *, on_probe: Progress | None = None, **fields: Any
) -> CapacityAnswer:
    """The highest load whose runs meet all targets.

    Args:
        scenario: what is asked; or give its fields as keywords: ``capacity(model="Llama-3.1-8B", gpu="H100-SXM",
            workload="chat", ttft_ms=1000, tpot_ms=50)``. Which load is searched follows from the fields: requests per
            second; with `users` users, with `concurrency` requests in flight (closed loops both, the first with
            `think_s` between requests); with `at_once` how many requests may come at time zero. A value that is given
            (a rate, users, a concurrency) is where the search starts. `duration_s` is a horizon for every probe (see
            `planner.horizon`); `split` makes prefill and decode pools, ``auto`` the best split of `replicas` machines.
            A `gpu` such as ``L40S:2,H100-SXM:1`` is a mixed fleet behind one router (`api.kinds`).
        on_probe: called before each probe with its number and its load.
        **fields: of `CapacityScenario`.

    Raises:
        InputError, UnknownNameError: a field that cannot be used; no target given.
        InfeasibleError: the deployment would not start.
    """
    asked = scenario if scenario is not None else build(CapacityScenario, fields)
    targets = _checked_targets(asked)
    load = searched_load(asked)
    options = search_options(asked, load)
    rate_per_s = 1.0 if load.unit == RATE and asked.rate_per_s is None else asked.rate_per_s
    asked_spec = workload_spec(dataclasses.replace(asked, rate_per_s=rate_per_s))
    started_s = time.perf_counter()

    several = kinds_of(asked)
    if several and asked.split is not None:
        raise InputError("--split", asked.split, f"pools take GPUs of one kind, not {asked.gpu}")
    look = functools.partial(_looked, several, asked_spec, targets, load, on_probe)

    deployed: CapacityScenario = asked
    splits: tuple[SplitTried, ...] = ()
    if asked.split is not None:
        quick = dataclasses.replace(options, seeds=options.seeds[:1], rel_tolerance=0.05, look_again=False)
        deployed, splits = choose_split(asked, lambda one: look(one, quick).result.max_load)
    found = look(deployed, options)
    notes = dict.fromkeys(note for kind in found.kinds for note in kind.notes)
    return CapacityAnswer(
        scenario=asked,
        resolved=found.kinds[0],
        workload=found.workload,
        load=load,
        splits=splits,
        targets=targets,
        options=options,
        result=found.result,
        wall_s=time.perf_counter() - started_s,
        notes=(*notes, *found.refused, *_too_few(found.result, targets)),
        kinds=found.kinds if several else (),
        held=found.held,
    )


def _looked(
    several: Sequence[CapacityScenario],
    spec: WorkloadSpec,
    targets: Targets,
    load: SearchedLoad,
    on_probe: Progress | None,
    deployed: CapacityScenario,
    how: CapacityOptions,
) -> _Look:
    """One search on a deployment, of several kinds of GPU where there are `several`."""
    if several:
        kinds, workload, spec = resolve_kinds(several, spec)
    else:
        resolved, workload, spec = resolve(deployed, spec)
        kinds = (resolved,)
    refused: list[str] = []

    def watch(run: Run, sent: Workload) -> None:
        if not refused:  # the first probe that refuses somebody tells why
            refused.extend(f"{note} (in one of the probes)" for note in refused_notes(run, sent, kinds))

    found = _search(make_probe(deployed, kinds, spec, load.unit, on_probe, watch), targets, how, load)
    held = _held(found, make_probe(deployed, kinds, spec, load.unit)) if several else None
    return _Look(kinds, describe(workload, spec), found, held, tuple(refused))


class _Look(NamedTuple):
    """One search: what was resolved, what it found, and why requests were refused on the way."""

    kinds: tuple[Resolved, ...]
    workload: WorkloadSummary
    result: CapacityResult
    held: Run | None
    refused: tuple[str, ...]


def _held(result: CapacityResult, probe: Probe) -> Run | None:
    """The longest passing probe at the highest load that the first seed holds, once more: probes keep no runs."""
    first = result.by_seed[0]
    passed = [
        p.num_requests for p in result.probes if p.seed == first.seed and p.load == first.highest_pass and p.passed
    ]
    return probe(first.highest_pass, first.seed, max(passed)) if passed else None


def _too_few(result: CapacityResult, targets: Targets) -> list[str]:
    """Says so where a percentile at the answer stands on fewer requests than it needs."""
    needed = num_samples_needed(targets.percentile)
    passing = [probe for probe in result.probes if probe.passed]
    held = max(passing, key=lambda probe: probe.load, default=None)
    if held is None:
        return []
    least = held.num_measured - max(held.num_censored.values(), default=0)
    if least >= needed:
        return []
    return [f"p{targets.percentile:g} stands on {least} judged requests at the answer and needs {needed} to be sure"]


def _checked_targets(asked: CapacityScenario) -> Targets:
    """The targets, once everything that a search needs was looked at."""
    targets = targets_of(asked)
    if not targets.named():
        raise InputError("targets", "none", "give at least one of --ttft-ms, --tpot-ms and --e2e-ms")
    if asked.num_seeds < 1:
        raise InputError("--num-seeds", asked.num_seeds, "give at least 1")
    if asked.num_requests is not None and asked.num_requests < 2:
        raise InputError("--num-requests", asked.num_requests, "give at least 2 requests a probe")
    horizon_s = asked.duration_s
    if horizon_s is not None:
        if not 0 < horizon_s < math.inf:
            raise InputError("--duration-s", horizon_s, "give seconds above zero")
        for name, target_s in targets.named().items():
            if target_s >= horizon_s:
                label = name.removesuffix("_s").upper()
                raise InputError("--duration-s", horizon_s, f"the {label} target is {target_s:g} s: give more seconds")
    return targets


def _search(probe: Probe, targets: Targets, options: CapacityOptions, load: SearchedLoad) -> CapacityResult:
    if load.unit == RATE:
        return find_capacity(probe, targets, options, load.start)
    return find_whole_capacity(probe, targets, options, load.start, load.unit)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
