"""One probe of a capacity search: how long it has to be, which part of it counts, and whether it passes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, TokenTimeline
from plimsoll.core.workload import LoadKind
from plimsoll.metrics import Targets, meets
from plimsoll.metrics.stationarity import is_queue_growing
from plimsoll.planner.horizon import HorizonRun, judge_target

FALLING_BEHIND_FRAC = 0.05
"""Share of the arrivals that may pile up over a probe, where the queue never returns to what it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeLength:
    """How many requests a probe has, and how many of them are warm-up.

    A probe lasts ``max(min_requests, turnovers × requests in flight)`` requests, so that the system fills and empties
    several times; in flight are rate × mean end-to-end latency (Little's law), or the users of a closed loop. The
    first `warmup_turnovers` × in flight (at least `warmup_frac` of the probe, at most half of it) are served but not
    judged: they met an empty system.

    Attributes:
        min_requests: 600 by default: 99th percentiles need 459 judged requests (`metrics.num_samples_needed`).
        max_requests: however many are in flight.
        turnovers, warmup_turnovers, warmup_frac: as above.
        most_lengthening: a probe that is too short to tell whether its queue grows is doubled, up to this many times
            its length.
        fixed: every probe has `min_requests`, because the user said so.
    """

    min_requests: int = 600
    max_requests: int = 20_000
    turnovers: float = 6.0
    warmup_turnovers: float = 1.0
    warmup_frac: float = 0.1
    most_lengthening: int = 8
    fixed: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.min_requests <= self.max_requests:
            raise InputError("--num-requests", self.min_requests, "give at least 2 requests a probe")
        if not (0.0 <= self.warmup_frac <= 0.5 and self.turnovers > 0.0 and self.warmup_turnovers >= 0.0):
            raise InputError("warm-up", self.warmup_frac, "give a share from 0 to 0.5")

    def num_requests(self, in_flight: float | None) -> int:
        """Requests of a full probe with `in_flight` requests in the system; None where that is not known yet."""
        if self.fixed or in_flight is None:
            return self.min_requests
        return int(min(max(self.min_requests, math.ceil(self.turnovers * in_flight)), self.max_requests))

    def num_warmup(self, num_requests: int, in_flight: float) -> int:
        """Requests at the start of a probe that are not judged."""
        wanted = max(self.warmup_frac * num_requests, self.warmup_turnovers * in_flight)
        return int(min(wanted, num_requests // 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one run says about its load.

    Attributes:
        passed: all targets are met and the queue does not grow.
        failed_by: ``ttft``, ``tpot``, ``itl``, ``e2e`` or ``stationarity``; empty on a pass.
        worst_ratio: the worst figure over its target; 0 without targets.
        figures: the judged percentile by metric name, in seconds; infinite where unfinished requests reach into it.
        residence_s: mean end-to-end latency of the judged requests, NaN where none finished.
        num_measured: judged requests.
        num_censored: of a run with a horizon, by metric: requests whose deadline lies beyond it.
        conclusive: False where the targets are met but the run was too short to tell whether its queue grows.
    """

    passed: bool
    failed_by: str
    worst_ratio: float
    figures: dict[str, float]
    residence_s: float
    num_measured: int
    conclusive: bool = True
    num_censored: dict[str, int] = dataclasses.field(default_factory=dict)


Judge = Callable[[Run, ProbeLength], Judgement]


def judge_by(targets: Targets, *, open_loop: bool = True) -> Judge:
    """The judge of a capacity search. In a closed loop no queue can grow, so only the targets count."""

    def judge(run: Run, length: ProbeLength) -> Judgement:
        measured = measured_part(run, length, with_timeline=targets.itl_s is not None)
        growth = queue_growth(run) if open_loop else Growth(growing=False, conclusive=True)
        if isinstance(measured, HorizonRun):
            figures, censored = _within_horizon(measured, targets, growth)
            passed = all(value <= targets.named()[name] for name, value in figures.items())
        else:
            verdict, censored = meets(measured, targets), {}
            figures = {one.name: one.value_s for one in verdict.targets if one.value_s is not None}
            passed = verdict.passed
        ratios = {name: value / targets.named()[name] for name, value in figures.items()}
        worst = max(ratios, key=lambda name: ratios[name], default="")
        failed_by = ""
        if not passed:
            # Without targets the only way to miss is that nothing finished at all.
            failed_by = worst.removesuffix("_s") or "stationarity"
        elif growth.growing:
            failed_by = "stationarity"
        return Judgement(
            passed=not failed_by,
            failed_by=failed_by,
            worst_ratio=max(ratios.values(), default=0.0),
            figures=figures,
            residence_s=mean_residence_s(measured),
            num_measured=len(measured),
            conclusive=growth.conclusive or not passed,
            num_censored=censored,
        )

    return judge


def _within_horizon(run: HorizonRun, targets: Targets, growth: Growth) -> tuple[dict[str, float], dict[str, int]]:
    """Judged percentiles and censored requests by metric.

    Raises:
        InputError: the queue does not grow, and still nobody's deadline lies within the horizon.
    """
    figures, censored = {}, {}
    for name, target_s in targets.named().items():
        judged = judge_target(run, targets, name)
        censored[name] = judged.num_censored
        if judged.value_s is not None:
            figures[name] = judged.value_s
        elif judged.num_censored and not growth.growing:
            what = f"no request's {name.removesuffix('_s').upper()} deadline ({target_s:g} s"
            remedy = f"{what}{' a token' if name == 'tpot_s' else ''}) lies within it; give more seconds"
            raise InputError("--duration-s", run.horizon_s, remedy)
    return figures, censored


class Growth(NamedTuple):
    """Whether a queue grows, and whether the run was long enough to say so."""

    growing: bool
    conclusive: bool


def queue_growth(run: Run) -> Growth:
    """Whether the run's queue grows, by `metrics.is_queue_growing` or because it plainly falls behind.

    Requests *waiting* that pile up condemn a run of any length. Requests *in the system* that pile up while none waits
    are a batch that is still filling, or an overload that shows in the latencies later: growing, but not conclusive.

    NOTE: the trend test of metrics asks for significance with autocorrelation allowed for, and so misses one overload
    of 1.5 times the capacity in four (100 M/D/1 runs of 600 requests). A search knows more: a load that lets
    `FALLING_BEHIND_FRAC` of its arrivals pile up and never comes back down is beyond capacity. On the same runs that
    finds every overload from 1.5 up, 98 in 100 at 1.2, and calls 2 in 100 at a load of 0.95 growing.
    """
    result = is_queue_growing(run)
    waiting = result.waiting
    behind = waiting is not None and (
        waiting.growing
        or (waiting.growth_frac >= FALLING_BEHIND_FRAC and waiting.p_value < 0.5 and not waiting.returned)
    )
    return Growth(growing=result.growing or behind, conclusive=behind or (result.conclusive and not result.growing))


def mean_residence_s(run: Run) -> float:
    """Mean seconds from arrival to last token of the requests that finished; NaN where none did."""
    finished = run.finished
    if not bool(finished.any()):
        return math.nan
    return float(np.mean(run.finish_s[finished] - run.arrival_s[finished]))


def measured_part(run: Run, length: ProbeLength, *, with_timeline: bool = False) -> Run:
    """`run` without its warm-up (see `ProbeLength`)."""
    if run.load_kind == LoadKind.CLOSED:
        in_flight = float(run.concurrency or 1)
    else:
        first, last = float(run.arrival_s.min()), float(run.arrival_s.max())
        rate_per_s = (len(run) - 1) / (last - first) if last > first else 0.0
        residence_s = mean_residence_s(run)
        in_flight = rate_per_s * residence_s if math.isfinite(residence_s) else len(run)
    num_warmup = length.num_warmup(len(run), in_flight)
    keep = np.zeros(len(run), dtype=bool)
    keep[np.argsort(run.arrival_s, kind="stable")[num_warmup:]] = True
    return select(run, keep, with_timeline=with_timeline)


def select(run: Run, keep: npt.NDArray[np.bool_], *, with_timeline: bool) -> Run:
    """The requests of `run` where `keep` (``bool[n]``) holds, as a run of their own."""
    columns = {
        field.name: getattr(run, field.name)[keep]
        for field in dataclasses.fields(run)
        if isinstance(getattr(run, field.name), np.ndarray)
    }
    timeline = _select_timeline(run.timeline, keep) if with_timeline and run.timeline is not None else None
    return dataclasses.replace(run, **columns, timeline=timeline, step_log=None)


def _select_timeline(timeline: TokenTimeline, keep: npt.NDArray[np.bool_]) -> TokenTimeline:
    number = np.cumsum(keep) - 1
    kept = keep[timeline.slice_request]
    return TokenTimeline(
        step_end_s=timeline.step_end_s,
        lane_offsets=timeline.lane_offsets,
        slice_request=number[timeline.slice_request[kept]],
        slice_begin=timeline.slice_begin[kept],
        slice_end=timeline.slice_end[kept],
    )
