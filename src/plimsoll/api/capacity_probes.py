"""What a capacity search varies, and how one probe is run: rates, users, requests in flight, requests at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from plimsoll.api.kinds import kinds_of
from plimsoll.api.resolve import Resolved
from plimsoll.api.scenario import CapacityScenario
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import simulate as run_engine
from plimsoll.engine.plugins import policy_named
from plimsoll.planner.capacity import AT_ONCE, IN_FLIGHT, RATE, USERS, CapacityOptions
from plimsoll.planner.horizon import cut_at
from plimsoll.planner.probes import ProbeLength
from plimsoll.workload.build import build_workload
from plimsoll.workload.spec import WorkloadSpec

Progress = Callable[[int, float], None]
Watch = Callable[[Run, Workload], None]

MOST_AT_ONCE = 100_000
REPLICAS_OF_A_PROBE = 8
"""How many replicas a probe of the usual greatest length is long enough for."""
"""Requests at once beyond which nobody looks: a capacity there is a lower bound and says so."""

LEAST_IN_HORIZON, MOST_IN_HORIZON = 20, 1_000_000
"""Requests that a rate must bring within a horizon to be tried at all, and at most."""

_KINDS = {RATE: "rate", USERS: "users", IN_FLIGHT: "concurrency", AT_ONCE: "at_once"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchedLoad:
    """What is searched.

    Attributes:
        unit: a unit of `planner.capacity`.
        start: where the search looks first; None is its own first guess.
    """

    unit: str
    start: float | None

    @property
    def kind(self) -> str:
        """``rate``, ``users``, ``concurrency`` or ``at_once``: the field of a scenario that says such a load."""
        return _KINDS[self.unit]


def searched_load(asked: CapacityScenario) -> SearchedLoad:
    """The load that the given fields name: a rate as a rule; their values are where the search begins."""
    if asked.at_once:
        return SearchedLoad(unit=AT_ONCE, start=None)
    if asked.concurrency is not None:
        return SearchedLoad(unit=IN_FLIGHT, start=float(asked.concurrency))
    if asked.users is not None:
        return SearchedLoad(unit=USERS, start=float(asked.users))
    return SearchedLoad(unit=RATE, start=asked.rate_per_s)


def search_options(asked: CapacityScenario, load: SearchedLoad) -> CapacityOptions:
    """How hard to look, and how long a probe is.

    Raises:
        InputError: a number of requests that contradicts the load.
    """
    options = CapacityOptions(seeds=tuple(range(asked.seed, asked.seed + asked.num_seeds)), length=_length(asked))
    if load.unit == AT_ONCE:
        if asked.num_requests is not None:
            remedy = "leave it out: with --at-once the number of requests is what is searched"
            raise InputError("--num-requests", asked.num_requests, remedy)
        length = ProbeLength(min_requests=2, fixed=True, warmup_turnovers=0.0, warmup_frac=0.0)
        return dataclasses.replace(options, length=length, max_load=MOST_AT_ONCE)
    if asked.duration_s is None:
        return options
    options = dataclasses.replace(options, length=dataclasses.replace(options.length, fixed=True))
    if load.unit == RATE:
        least, most = LEAST_IN_HORIZON / asked.duration_s, MOST_IN_HORIZON / asked.duration_s
        options = dataclasses.replace(options, min_load=least, max_load=most)
    return options


def _length(asked: CapacityScenario) -> ProbeLength:
    """As long as needed, or the user's own length for every probe."""
    num_requests = asked.num_requests
    if num_requests is None:
        # As many for each replica as a fleet of eight has for each: more are in flight on a larger one.
        replicas = sum(kind.replicas for kind in kinds_of(asked)) or asked.replicas
        most = ProbeLength().max_requests
        return ProbeLength(max_requests=max(most, most * replicas // REPLICAS_OF_A_PROBE))
    return ProbeLength(min_requests=num_requests, max_requests=num_requests, fixed=True)


def make_probe(
    asked: CapacityScenario,
    kinds: Sequence[Resolved],
    spec: WorkloadSpec,
    unit: str,
    on_probe: Progress | None = None,
    on_run: Watch | None = None,
) -> Callable[[float, int, int], Run]:
    """``probe(load, seed, num_requests) -> Run`` on a resolved deployment, or on several kinds behind one router.

    With a horizon a probe has the requests that are sent within it (of `asked.num_requests`, if those were given) and
    is cut there. `on_run` gets every run, before the cut, with its workload.
    """
    count, first = 0, kinds[0]
    members = [(kind.config, kind.step_model) for kind in kinds] if len(kinds) > 1 else None

    def probe(load: float, seed: int, num_requests: int) -> Run:
        nonlocal count
        count += 1
        if on_probe is not None:
            on_probe(count, load)
        horizon_s = asked.duration_s
        num_sent = num_requests if horizon_s is None else asked.num_requests
        wanted = dataclasses.replace(_at_load(spec, load, seed, unit), duration_s=horizon_s)
        if unit != AT_ONCE:
            wanted = dataclasses.replace(wanted, num_requests=num_sent)
        workload = build_workload(wanted)
        with policy_named(first.config.policy):
            run = run_engine(workload, first.config, first.step_model, duration_s=horizon_s, seed=seed, members=members)
        if on_run is not None:
            on_run(run, workload)
        return run if horizon_s is None else cut_at(run, workload, horizon_s)

    return probe


def _at_load(spec: WorkloadSpec, load: float, seed: int, unit: str) -> WorkloadSpec:
    if unit == RATE:
        return spec.at_rate(load, seed)
    if unit == AT_ONCE:
        return dataclasses.replace(spec, num_requests=round(load), seed=seed)
    if unit == USERS:
        return dataclasses.replace(spec, users=round(load), seed=seed)
    return dataclasses.replace(spec, concurrency=round(load), seed=seed)
