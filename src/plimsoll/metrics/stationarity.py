"""Is the queue growing? Over a run that is too short for its latencies to show it, capacity would be a fiction.

At 1.1 times its capacity a system falls behind by one request in eleven. A run of a few hundred requests may still
meet every target, since the queue has not had the time to become long. So the question is not how long the queue
was, but whether it kept growing while requests arrived.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from plimsoll.core.columns import Floats
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import LoadKind
from plimsoll.metrics.student import t_upper_tail
from plimsoll.metrics.window import mean_in_system

SIGNIFICANCE = 0.2
"""Lenient, since to overlook a growing queue is the worse mistake, and two further conditions must hold."""

MIN_GROWTH_FRAC = 0.02
"""Falling behind by less than this share of the arrivals is not called growing."""

MIN_REQUESTS = 20
_WARMUP_FRAC = 0.25
_WINDOWS = 20
_SOJOURNS_NEEDED = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trend:
    """How a number of requests (waiting, or in the system) moved over the last three quarters of the arrivals.

    Attributes:
        growth_per_s: slope, requests per second.
        growth_frac: slope over the arrival rate: the share of the load that the system does not keep up with.
        p_value: chance of such a rise without growth, one-sided, autocorrelation allowed for.
        returned: in the last third it came back down to its median of the first third.
        growing: significant, material, and never returned.
    """

    growth_per_s: float
    growth_frac: float
    p_value: float
    returned: bool
    growing: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class StationarityResult:
    """Whether a run's queue kept growing.

    Attributes:
        growing: it did: latencies depend on how long the run was, and the rate is beyond capacity.
        conclusive: False where the run is too short to tell (and nothing grew as far as one can see): run longer.
        reason: one line for people.
        waiting: trend of requests that arrived and were not yet scheduled; None where it cannot be measured.
        in_system: trend of requests that arrived and did not yet finish; None where it cannot be measured.
        arrival_period_s: first to last arrival.
        backlog: requests in the system at the last arrival.
        completed_frac: requests finished by the last arrival, as a share of those that had arrived.
        drain_s: from the last arrival to the last finish; None where nothing finished after it.
    """

    growing: bool
    conclusive: bool
    reason: str
    waiting: Trend | None
    in_system: Trend | None
    arrival_period_s: float
    backlog: int
    completed_frac: float
    drain_s: float | None


def is_queue_growing(run: Run, *, significance: float = SIGNIFICANCE) -> StationarityResult:
    """Whether more arrived than was served, judged over the arrivals alone (the drain behind them says nothing).

    Two counts are followed over 20 equal windows of the last three quarters of the arrival period: requests waiting
    (not yet scheduled; without schedule times, without first token) and requests in the system. A count grows if

    1. it rises from window to window: a one-sided t test on the 19 differences of the window means. Neighbouring
       windows of a queue are correlated, close to a random walk; their differences are not, under growth, and
       correlate negatively in a stable queue, which makes the test stricter there;
    2. the least-squares line through the window means rises by at least 2 % of the arrival rate; and
    3. in the last third it never returned to its median of the first third: a stable queue does, again and again.

    Growth of the waiting count condemns a run of any length. Growth in the system alone does where the arrivals last
    five times as long as the first tenth of the requests stayed (their median): before that, the batch is still
    filling up. Rejected and failed requests are no part of either count; unfinished ones never leave.

    How often it says "growing", measured on 200 seeded M/M/1 queues each, started empty
    (``tests/theory/test_metrics_stationarity.py`` holds it to this):

        load    200 requests    1,000    3,000    10,000
        0.80            2 %       0 %      0 %       0 %
        0.90           12 %       2 %      1 %       0 %
        0.95           16 %      11 %      1 %       0 %
        1.00           23 %      29 %     25 %      17 %
        1.05           36 %      57 %     72 %      95 %
        1.10           49 %      84 %     97 %     100 %
        1.20           77 %      99 %    100 %     100 %
        1.50          100 %     100 %    100 %     100 %

    Many parallel servers and processor sharing behave alike; steadier service is told apart sooner, burstier later.
    A closed loop cannot grow beyond its users, and requests that come all at once have no trend: neither is growing.

    Args:
        run: of any length; below 20 requests the result is not conclusive.
        significance: of the trend test, inside (0, 1).
    """
    counted = np.asarray((run.status != Status.REJECTED) & (run.status != Status.FAILED))
    arrival_s = np.sort(run.arrival_s[counted])
    if run.load_kind is LoadKind.CLOSED:
        return _without_trend(arrival_s, run, counted, True, "closed loop: its users bound the queue")
    if len(arrival_s) < MIN_REQUESTS:
        return _without_trend(arrival_s, run, counted, False, f"fewer than {MIN_REQUESTS} requests cannot show a trend")
    if arrival_s[-1] <= arrival_s[0]:
        return _without_trend(arrival_s, run, counted, True, "all requests arrive at once: no rate to keep up with")
    served_s = run.scheduled_s if not bool(np.isnan(run.scheduled_s[counted]).all()) else run.first_token_s
    finish_s = np.where(run.finished, run.finish_s, np.inf)[counted]
    waiting = _trend(arrival_s, _leave_times(served_s[counted]), significance)
    in_system = _trend(arrival_s, np.sort(finish_s), significance)
    filled = _batch_had_time_to_fill(run, counted, float(arrival_s[-1] - arrival_s[0]))
    growing = waiting.growing or (filled and in_system.growing)
    if waiting.growing:
        reason = f"the queue grows: {waiting.growth_frac:.0%} of the arrivals pile up waiting"
    elif growing:
        reason = f"the load grows: {in_system.growth_frac:.0%} of the arrivals pile up unfinished"
    elif not filled:
        reason = "too short to tell: arrivals end before the first requests' stay is over several times"
    else:
        reason = "stationary: the number of requests does not grow"
    counts = _without_trend(arrival_s, run, counted, growing or filled, reason)
    return dataclasses.replace(counts, growing=growing, waiting=waiting, in_system=in_system)


def _without_trend(
    arrival_s: Floats, run: Run, counted: npt.NDArray[np.bool_], conclusive: bool, reason: str
) -> StationarityResult:
    last_s = float(arrival_s[-1]) if len(arrival_s) else 0.0
    finish_s = run.finish_s[counted & run.finished]
    num_done = int(np.count_nonzero(finish_s <= last_s))
    after = bool(len(finish_s)) and float(finish_s.max()) >= last_s
    return StationarityResult(
        growing=False,
        conclusive=conclusive,
        reason=reason,
        waiting=None,
        in_system=None,
        arrival_period_s=last_s - float(arrival_s[0]) if len(arrival_s) else 0.0,
        backlog=len(arrival_s) - num_done,
        completed_frac=num_done / len(arrival_s) if len(arrival_s) else 0.0,
        drain_s=float(finish_s.max()) - last_s if after else None,
    )


def _leave_times(times_s: Floats) -> Floats:
    return np.sort(np.where(np.isnan(times_s), np.inf, times_s))


def _batch_had_time_to_fill(run: Run, counted: npt.NDArray[np.bool_], period_s: float) -> bool:
    """Whether arrivals last long enough for the first of them to have been served several times over."""
    order = np.argsort(run.arrival_s[counted], kind="stable")
    early = order[: max(len(order) // 10, 10)]
    stay_s = (np.where(run.finished, run.finish_s, np.inf) - run.arrival_s)[counted][early]
    return bool(np.median(stay_s) * _SOJOURNS_NEEDED <= period_s)


def _trend(arrival_s: Floats, leave_s: Floats, significance: float) -> Trend:
    """The trend of how many have arrived but not left; both arguments ascending, of the same length."""
    start_s, end_s = float(arrival_s[0]), float(arrival_s[-1])
    period_s = end_s - start_s
    edges_s = np.linspace(start_s + _WARMUP_FRAC * period_s, end_s, _WINDOWS + 1)
    slope, p_value = _slope(mean_in_system(arrival_s, leave_s, edges_s), float(edges_s[1] - edges_s[0]))
    growth_frac = slope * period_s / len(arrival_s)
    returned = _returned(arrival_s, leave_s)
    return Trend(
        growth_per_s=slope,
        growth_frac=growth_frac,
        p_value=p_value,
        returned=returned,
        growing=p_value < significance and growth_frac >= MIN_GROWTH_FRAC and not returned,
    )


def _returned(arrival_s: Floats, leave_s: Floats) -> bool:
    """Whether the count just before arrivals of the last third falls to its median in the first third."""
    n = len(arrival_s)
    before = np.arange(n) - np.searchsorted(leave_s, arrival_s, side="right")
    third = max(n // 3, 1)
    return bool(before[-third:].min() <= np.median(before[:third]))


def _slope(means: Floats, spacing_s: float) -> tuple[float, float]:
    """Least-squares slope per second, and the chance of such differences from window to window without growth."""
    k = len(means)
    x = (np.arange(k) - (k - 1) / 2.0) * spacing_s
    slope = float(np.dot(x, means)) / float(np.dot(x, x))
    steps = np.diff(means)
    error = float(steps.std(ddof=1)) / math.sqrt(k - 1)
    if error == 0.0:
        return slope, 0.0 if slope > 0.0 else 1.0
    return slope, t_upper_tail(float(steps.mean()) / error, k - 2)
