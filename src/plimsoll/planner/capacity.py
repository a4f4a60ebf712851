"""Capacity: the highest load whose run meets all targets, as an interval over several seeds.

How it is found
---------------
One search a seed. A probe runs the workload of that seed at one rate; all rates of a seed share their random numbers
(the same unit-rate gaps and lengths, scaled), so within a seed a higher rate is the same story told faster and pass or
fail is almost monotone. Each search brackets geometrically from a starting guess, then bisects the logarithm of the
rate (interpolating where the figures allow) until ``fail / pass <= 1 + tolerance``, and then asks again on both sides.
Where verdicts contradict each other (a pass above a failure), the capacity is the threshold that the fewest of them
speak against (`seed_search.fit_threshold`).

The result is the geometric mean over the seeds with a Student t interval over their logarithms, widened by what
bisection left open: runs of different seeds are independent, neighbours within a run are not. One seed gives its
bracket and says so (`confidence` is None).

A probe fails when a target is missed, when a request did not finish (it counts as infinitely late), or when its queue
grows, however short it is. Probes are as long as needed: `CapacityOptions.min_requests`, or `turnovers` times the
requests in flight (Little's law) where that is more; the warm-up is left out. While the search is still looking for a
bracket, a probe of a quarter of the length comes first and settles the clear failures. A probe that meets its targets
while the system is still filling up is doubled until it is conclusive.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

from plimsoll.core.errors import InputError
from plimsoll.metrics import Targets, seeds_interval
from plimsoll.planner.probes import judge_by
from plimsoll.planner.seed_search import Asker, CapacityOptions, InFlight, Probe, ProbeRecord, SeedCapacity, SeedSearch

__all__ = [
    "CapacityOptions",
    "CapacityResult",
    "Probe",
    "ProbeRecord",
    "SeedCapacity",
    "find_capacity",
    "find_whole_capacity",
]

CONFIDENCE = 0.95
RATE, USERS, IN_FLIGHT, AT_ONCE = "requests/s", "users", "requests in flight", "requests at once"
"""What a search counts. All but the rate are whole numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapacityResult:
    """The capacity and its interval, with every probe that speaks for it.

    Attributes:
        max_load: geometric mean over the seeds, in `unit`; 0 where no load passes.
        interval: (low, high); high is infinite where no probe failed up to the highest load allowed.
        confidence: 0.95 with two or more seeds; None with one, where the interval is its bracket only.
        limited_by: ``ttft``, ``tpot``, ``itl``, ``e2e``, ``stationarity``, or ``none`` where nothing failed.
        note: one sentence where the figure needs one (nothing passes, nothing fails, seeds disagree).
        unit: ``requests/s``, or what is counted: ``users``, ``requests in flight`` or ``requests at once``.
        by_seed: each seed's own search.
        probes: all probes, in order.
    """

    max_load: float
    interval: tuple[float, float]
    confidence: float | None
    limited_by: str
    note: str
    unit: str
    by_seed: tuple[SeedCapacity, ...]
    probes: tuple[ProbeRecord, ...]

    @property
    def max_rate_per_s(self) -> float | None:
        """`max_load` where it is a rate, else None."""
        return self.max_load if self.unit == RATE else None


def find_capacity(
    probe: Probe,
    targets: Targets,
    options: CapacityOptions | None = None,
    start_rate_per_s: float | None = None,
    in_flight: InFlight | None = None,
) -> CapacityResult:
    """The highest rate in requests per second whose runs meet `targets`.

    Args:
        probe: ``(rate_per_s, seed, num_requests) -> Run``; the first requests of a longer probe are the shorter one.
        targets: percentiles and what they may be.
        options: how hard to look; `CapacityOptions` documents the defaults.
        start_rate_per_s: a guess that saves probes; None starts at one per second.
        in_flight: an estimate of the requests in the system at a rate, so that the first probe has the right length
            already; without it, or where it is infinite, the last probe's mean latency tells.
    """
    options = options or CapacityOptions()
    asker = Asker(probe, judge_by(targets), options, whole=False, in_flight=in_flight)
    return _find(asker, start_rate_per_s or 1.0, RATE)


def find_whole_capacity(
    probe: Probe,
    targets: Targets,
    options: CapacityOptions | None = None,
    start: float | None = None,
    unit: str = USERS,
) -> CapacityResult:
    """The most users, requests in flight or requests at once whose runs meet `targets`.

    Loads are whole numbers. Nothing arrives faster than it is answered, so no queue can grow and only the targets
    count. A closed loop of more users than a probe has requests is no closed loop, so loads stop there.

    Args:
        probe: ``(load, seed, num_requests) -> Run``; a probe of requests at once has as many requests as its load.
        targets: percentiles and what they may be.
        options: how hard to look.
        start: a guess that saves probes.
        unit: `USERS`, `IN_FLIGHT` or `AT_ONCE`.
    """
    options = options or CapacityOptions()
    most = options.max_load if unit == AT_ONCE else min(options.max_load, options.length.max_requests)
    options = dataclasses.replace(options, min_load=1.0, max_load=most)
    asker = Asker(probe, judge_by(targets, open_loop=False), options, whole=True)
    return _find(asker, start or 8.0, unit)


def _find(asker: Asker, start: float, unit: str) -> CapacityResult:
    options = asker.options
    if not (math.isfinite(start) and start > 0):
        raise InputError("capacity start", start, "give a rate above zero")
    found: list[SeedCapacity] = []
    guess, ratio = start, options.first_ratio
    for seed in options.seeds:
        found.append(SeedSearch(asker, seed).run(guess, ratio))
        loads = [one.load for one in found if 0 < one.load < math.inf]
        if loads:
            guess, ratio = math.exp(statistics.fmean(map(math.log, loads))), options.next_ratio
        elif len(found) >= 2:
            break  # two seeds that find nothing settle it
    return _combine(found, asker.records, unit)


def _combine(found: list[SeedCapacity], records: list[ProbeRecord], unit: str) -> CapacityResult:
    by_cause = [one.limited_by for one in found]
    limited_by = max(dict.fromkeys(by_cause), key=by_cause.count)
    loads = [one.load for one in found]
    confidence = CONFIDENCE if len(found) > 1 else None
    if min(loads) == 0.0:
        load, interval = 0.0, (0.0, max(one.lowest_fail if one.load == 0.0 else one.load for one in found))
        zeros = sum(one == 0.0 for one in loads)
        note = f"no load meets the targets, down to {interval[1]:.3g} {unit}: {limited_by} fails"
        if zeros < len(loads):
            note = f"{zeros} of {len(loads)} seeds pass at no load at all: {limited_by} fails"
    elif max(loads) == math.inf:
        lowest = min(one.highest_pass for one in found)
        load, interval, limited_by = lowest, (lowest, math.inf), "none"
        note = f"nothing failed up to {lowest:.6g} {unit}, the highest load tried: a lower bound"
    else:
        logs = [math.log(one) for one in loads]
        load, note = loads[0] if len(set(loads)) == 1 else math.exp(statistics.fmean(logs)), ""
        spread = seeds_interval(logs, CONFIDENCE)
        if spread is None or spread.low is None or spread.high is None:
            interval, note = (found[0].highest_pass, found[0].lowest_fail), "one seed: the interval is its bracket only"
        else:
            left_open = statistics.fmean(math.log(one.lowest_fail / one.highest_pass) / 2 for one in found)
            interval = (math.exp(spread.low - left_open), math.exp(spread.high + left_open))
    return CapacityResult(
        max_load=load,
        interval=interval,
        confidence=confidence,
        limited_by=limited_by,
        note=note,
        unit=unit,
        by_seed=tuple(found),
        probes=tuple(records),
    )
