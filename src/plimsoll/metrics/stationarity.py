"""Is the queue growing? Over a run that is too short for its latencies to show it, capacity would be a fiction.

At 1.1 times its capacity a system falls behind by one request in eleven. A run of a few hundred requests may still
meet every target, since the queue has not had the time to become long. So the question is not how long the queue
was, but whether it kept growing while requests arrived.

How often `is_queue_growing` says "growing", on 200 seeded M/M/1 queues each, started empty
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
A batch at light load that fills up over a fifth of the arrivals (lognormal lengths, 100 to 400 requests) is called
growing in none of 200 runs (without comparing with the early requests: in 26 to 56 of 100), three L40S at 4 chats/s
and 100 requests in none of 80 (27 in 100); a link at 7 times what it can carry in all of 100.

Of 200 chats a mixture of experts (Qwen3-30B-A3B on one H100, which carries 11 a second at most), whose steps read
ever more experts as the batch fills, is called growing at 5 a second in 3 runs of 200 (with half of the growth
instead of 0.7, and without its test, in 16), at 6 in 8 of 100 (28), at 8 in 14 of 100 (45); Llama-3.1-8B on one
L40S at 0.7 of its load in 12 of 100 (32). The price is at loads just above 1, where a batch still fills after 600
or 1,000 requests: Llama-3.1-8B on one H100 at 1.04 of its load is found in 39 runs of 60 (48), Mixtral on two at
1.06 in 15 of 40 (28); what is lost is called too short to tell. That the growth has to go on in the later half of
the windows was tried instead: it left 6 in 100 at 5 a second, and found processor sharing at a load of 1.1 in 82 %
of the runs of 1,000 requests instead of 91 %.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from plimsoll.core.columns import Floats, Ints
from plimsoll.core.run import Run, Status, TokenTimeline
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
_SLOWER_SHARE = 0.7  # of the growth, what has to come from requests that take longer


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
        between_tokens: trend of requests that wait for their second token: for KV on its way, or after a preemption;
            looked at where the number in the system grows and the run knows every token's time, else None.
        slower_frac: growth of the number in the system, as a share of the arrivals, beyond what the same requests would
            come to if none took longer than the early ones (see `is_queue_growing`); looked at where it grows, else
            None.
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
    between_tokens: Trend | None = None
    slower_frac: float | None = None
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

    Growth of the waiting count condemns a run of any length. Growth in the system needs a reason, since a batch that
    fills up grows too, and so does a number of long requests that happen to come late. Either

    - requests wait for their second token, and that count grows as well: the prompt is done, and its KV queues for the
      link between two pools. Again a run of any length is condemned; or
    - requests take longer. Beside the count stands that of the same requests at the same times, each staying as long
      as its tokens took the first tenth of the requests (their median time to the first token, and per token after
      it). The difference of both has to rise from window to window as well (the test of 1.), by 2 % of the arrival
      rate too, and by 0.7 of what the count itself does: what fills up, or comes in clumps, is in both counts, and a
      fuller batch is slower without being overloaded. At its limit a server gives twice as many half the pace each,
      so that all growth is requests that take longer; one with room left gives them more than half, and a part of the
      growth is that more are there. And the arrivals have to last five times as long as that tenth stayed (median).

    Rejected and failed requests are no part of any count; unfinished ones never leave. How often it is right says the
    text of this module.

    NOTE: a queue that something bounds grows until it is full. Splitwise with a link 7 times too slow fills the
    memory of its prompt machines, then serves the rest without the link: a run of a few such fillings says growing,
    one that is much longer says stationary, and both are right.

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
    return _judged(run, counted, arrival_s, significance)


def _judged(run: Run, counted: npt.NDArray[np.bool_], arrival_s: Floats, significance: float) -> StationarityResult:
    """The trends of a run long enough to have some, and what follows from them."""
    served_s = run.scheduled_s if not bool(np.isnan(run.scheduled_s[counted]).all()) else run.first_token_s
    finish_s = np.where(run.finished, run.finish_s, np.inf)[counted]
    waiting = _trend(arrival_s, _leave_times(served_s[counted]), significance)
    in_system = _trend(arrival_s, np.sort(finish_s), significance)
    filled = _batch_had_time_to_fill(run, counted, float(arrival_s[-1] - arrival_s[0]))
    between, slower_frac, slower_p_value = None, None, 1.0
    if in_system.growing and not waiting.growing:
        between = _between_tokens(run, counted, arrival_s, significance)
        slower_frac, slower_p_value = _slower(run, counted)
    needed_frac = max(MIN_GROWTH_FRAC, _SLOWER_SHARE * in_system.growth_frac)
    slower = filled and slower_frac is not None and slower_frac >= needed_frac and slower_p_value < significance
    growing = waiting.growing or slower or (between is not None and between.growing)
    reason = _reason(waiting, between, in_system, filled, slower)
    counts = _without_trend(arrival_s, run, counted, growing or (filled and not in_system.growing), reason)
    return dataclasses.replace(
        counts, growing=growing, waiting=waiting, in_system=in_system, between_tokens=between, slower_frac=slower_frac
    )


def _reason(waiting: Trend, between: Trend | None, in_system: Trend, filled: bool, slower: bool) -> str:
    if waiting.growing:
        return f"the queue grows: {waiting.growth_frac:.0%} of the arrivals pile up waiting"
    if between is not None and between.growing:
        return f"the queue grows: {between.growth_frac:.0%} of the arrivals pile up between their first two tokens"
    if slower:
        return f"the load grows: {in_system.growth_frac:.0%} of the arrivals pile up unfinished"
    if not filled:
        return "too short to tell: arrivals end before the first requests' stay is over several times"
    if in_system.growing:
        return "too short to tell: ever more requests are in the system, but they hardly take longer"
    return "stationary: the number of requests does not grow"


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
    early = order[: _num_early(len(order))]
    stay_s = (np.where(run.finished, run.finish_s, np.inf) - run.arrival_s)[counted][early]
    return bool(np.median(stay_s) * _SOJOURNS_NEEDED <= period_s)


def _between_tokens(run: Run, counted: npt.NDArray[np.bool_], arrival_s: Floats, significance: float) -> Trend | None:
    """The trend of how many have their first token and not their second; None without every token's time."""
    if run.timeline is None:
        return None
    begun = counted & ~np.isnan(run.first_token_s)
    if not bool(begun.any()):
        return None
    leave_s = np.where(run.finished, run.finish_s, np.inf)
    requests, second_s = _second_token_s(run.timeline)
    leave_s[requests] = second_s
    return _trend(arrival_s, np.sort(leave_s[begun]), significance, np.sort(run.first_token_s[begun]))


def _second_token_s(timeline: TokenTimeline) -> tuple[Ints, Floats]:
    """The requests that have two tokens, and when the second came."""
    requests, low = np.unique(timeline.slice_request, return_index=True)
    high = np.append(low[1:], len(timeline.slice_request))
    long = timeline.slice_end[low] - timeline.slice_begin[low] > 1
    has_two = long | (high - low > 1)
    after = np.where(long, low, np.minimum(low + 1, len(timeline.slice_begin) - 1))
    step = timeline.slice_begin[after] + long
    return requests[has_two], timeline.step_end_s[step[has_two]]


def _slower(run: Run, counted: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Growth of the number in the system beyond that of the same requests, none slower than the early ones.

    Returns:
        As a share of the arrivals, and the chance of such a rise without growth.
    """
    order = np.flatnonzero(counted)[np.argsort(run.arrival_s[counted], kind="stable")]
    arrival_s, tokens = run.arrival_s[order], run.output_tokens[order]
    early = slice(0, _num_early(len(order)))
    ttft_s = run.first_token_s[order] - arrival_s
    more = np.maximum(tokens - 1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot_s = np.where(
            run.finished[order] & (more > 0), (run.finish_s[order] - run.first_token_s[order]) / more, np.nan
        )
    stay_s = _median(ttft_s[early]) + _median(tpot_s[early]) * more
    leave_s = np.where(run.finished[order], run.finish_s[order], np.inf)
    edges_s = _edges(arrival_s)
    held = mean_in_system(arrival_s, np.sort(leave_s), edges_s)
    held -= mean_in_system(arrival_s, np.sort(arrival_s + stay_s), edges_s)
    slope, p_value = _slope(held, float(edges_s[1] - edges_s[0]))
    return slope * float(arrival_s[-1] - arrival_s[0]) / len(arrival_s), p_value


def _num_early(num_requests: int) -> int:
    return max(num_requests // 10, 10)


def _median(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else 0.0


def _edges(arrival_s: Floats) -> Floats:
    start_s, end_s = float(arrival_s[0]), float(arrival_s[-1])
    return np.linspace(start_s + _WARMUP_FRAC * (end_s - start_s), end_s, _WINDOWS + 1)


def _trend(arrival_s: Floats, leave_s: Floats, significance: float, enter_s: Floats | None = None) -> Trend:
    """The trend of how many have entered (by default: arrived) but not left; all arguments ascending."""
    period_s = float(arrival_s[-1] - arrival_s[0])
    edges_s = _edges(arrival_s)
    enter_s = arrival_s if enter_s is None else enter_s
    slope, p_value = _slope(mean_in_system(enter_s, leave_s, edges_s), float(edges_s[1] - edges_s[0]))
    growth_frac = slope * period_s / len(arrival_s)
    returned = _returned(arrival_s, leave_s, enter_s)
    return Trend(
        growth_per_s=slope,
        growth_frac=growth_frac,
        p_value=p_value,
        returned=returned,
        growing=p_value < significance and growth_frac >= MIN_GROWTH_FRAC and not returned,
    )


def _returned(arrival_s: Floats, leave_s: Floats, enter_s: Floats) -> bool:
    """Whether the count just before arrivals of the last third falls to its median in the first third."""
    n = len(arrival_s)
    entered = np.arange(n) if enter_s is arrival_s else np.searchsorted(enter_s, arrival_s, side="right")
    before = entered - np.searchsorted(leave_s, arrival_s, side="right")
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
