"""Runs made by hand and by textbook queues, for the tests of the metrics."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from plimsoll.core.run import Run, Status, StepLog, TokenTimeline


def run_of(arrival_s: Any, first_token_s: Any, finish_s: Any, **columns: Any) -> Run:
    """A run of plain request times; what is not given is one token each, finished where there is a finish."""
    arrival = np.asarray(arrival_s, np.float64)
    n, finish = len(arrival), np.asarray(finish_s, np.float64)
    values: dict[str, Any] = {
        "scheduled_s": arrival,
        "prompt_tokens": np.ones(n, np.int64),
        "output_tokens": np.ones(n, np.int64),
        "cached_tokens": np.zeros(n, np.int64),
        "preemptions": np.zeros(n, np.int64),
        "replica": np.zeros(n, np.int64),
        "status": np.where(np.isnan(finish), Status.UNFINISHED, Status.FINISHED).astype(np.int8),
        "timeline": None,
        **columns,
    }
    for name in ("prompt_tokens", "output_tokens", "preemptions"):
        values[name] = np.asarray(values[name], np.int64)
    values["status"] = np.asarray(values["status"], np.int8)
    values["scheduled_s"] = np.asarray(values["scheduled_s"], np.float64)
    first = np.asarray(first_token_s, np.float64)
    return Run(arrival_s=arrival, first_token_s=first, finish_s=finish, **values)


def timeline_of(lanes: Sequence[Sequence[float]], slices: Sequence[tuple[int, int, int]]) -> TokenTimeline:
    """A timeline of lanes of step ends, and of slices (request, begin, end) with absolute step numbers."""
    rows = np.asarray(slices, np.int64).reshape(-1, 3)
    return TokenTimeline(
        step_end_s=np.concatenate([np.asarray(lane, np.float64) for lane in lanes]) if lanes else np.empty(0),
        lane_offsets=np.cumsum([0, *(len(lane) for lane in lanes)]),
        slice_request=rows[:, 0],
        slice_begin=rows[:, 1],
        slice_end=rows[:, 2],
    )


def small_run() -> Run:
    """Four requests worked out by hand.

    step ends   0.8   1.0   1.5   2.0   3.0   3.2       (the first is a prefill chunk: no token)
    request 0         x     x     x     x               arrives 0.0, 10 prompt tokens
    request 1                     x           x         arrives 1.2, 20 prompt tokens, preempted once
    request 2                                 x         arrives 2.5, 30 prompt tokens
    request 3                                           arrives 2.6, rejected
    """
    nan = float("nan")
    return run_of(
        [0.0, 1.2, 2.5, 2.6],
        [1.0, 2.0, 3.2, nan],
        [3.0, 3.2, 3.2, nan],
        scheduled_s=[0.0, 1.5, 3.0, nan],
        prompt_tokens=[10, 20, 30, 40],
        output_tokens=[4, 2, 1, 0],
        preemptions=[0, 1, 0, 0],
        status=[Status.FINISHED, Status.FINISHED, Status.FINISHED, Status.REJECTED],
        timeline=timeline_of([[0.8, 1.0, 1.5, 2.0, 3.0, 3.2]], [(0, 1, 5), (1, 3, 4), (1, 5, 6), (2, 5, 6)]),
        num_steps=6,
        end_s=3.2,
    )


def step_log(rows: Sequence[tuple[float, int, int, int, int]], total_blocks: int) -> StepLog:
    """A step log of rows (time_s, replica, running, waiting, used blocks)."""
    time_s, replica, running, waiting, used = zip(*rows, strict=True)
    return StepLog(
        time_s=np.asarray(time_s, np.float64),
        replica=np.asarray(replica),
        num_running=np.asarray(running),
        num_waiting=np.asarray(waiting),
        used_blocks=np.asarray(used),
        total_blocks=total_blocks,
    )


def single_server(rng: np.random.Generator, num_requests: int, load: float, service_cv: float = 1.0) -> Run:
    """A first-come-first-served queue with one server, Poisson arrivals at 1/s and gamma service, started empty."""
    arrival_s = np.cumsum(rng.exponential(1.0, num_requests))
    service_s = rng.gamma(1.0 / service_cv**2, load * service_cv**2, num_requests)
    done_s = np.cumsum(service_s)
    finish_s = done_s + np.maximum.accumulate(arrival_s - (done_s - service_s))
    start_s = finish_s - service_s
    return run_of(arrival_s, start_s, finish_s, scheduled_s=start_s, end_s=float(finish_s[-1]))


def unhurried_batch(rng: np.random.Generator, num_requests: int, stays_long: float) -> Run:
    """Light load: nobody waits or slows anybody down, 25 ms a token, and lengths are lognormal.

    Args:
        rng: fixed by the caller.
        num_requests: Poisson arrivals.
        stays_long: the arrivals last that many times as long as a request stays on average.
    """
    tokens = np.maximum(1, rng.lognormal(4.9, 1.0, num_requests)).astype(np.int64)
    ttft_s = rng.gamma(4.0, 0.025, num_requests)
    stay_s = ttft_s + 0.025 * rng.gamma(100.0, 0.01, num_requests) * (tokens - 1)
    mean_stay_s = 0.1 + 0.025 * float(np.exp(4.9 + 0.5))
    arrival_s = np.cumsum(rng.exponential(mean_stay_s * stays_long / num_requests, num_requests))
    finish_s = arrival_s + stay_s
    return run_of(
        arrival_s,
        arrival_s + ttft_s,
        finish_s,
        scheduled_s=arrival_s + 0.01,
        output_tokens=tokens,
        end_s=float(finish_s.max()),
    )


def shared_server(rng: np.random.Generator, num_requests: int, load: float, half_full: float = 0.0) -> Run:
    """Processor sharing: all who are there get tokens at the same pace, and nobody waits; Poisson arrivals at 1/s.

    Args:
        rng: fixed by the caller.
        num_requests: Poisson arrivals.
        load: of the server at its fastest.
        half_full: so many requests get half of what the server can give, as a batch reads ever more of a mixture's
            experts until it has read them all: a step takes as long as `half_full` requests more would take.
    """
    tokens = np.maximum(2, rng.lognormal(4.9, 0.8, num_requests)).astype(np.int64)
    tokens_per_s = float(tokens.mean()) / load
    arrival_s = np.cumsum(rng.exponential(1.0, num_requests))
    first_s, finish_s = np.empty(num_requests), np.empty(num_requests)
    served, now_s, active, sent = 0.0, 0.0, 0, 0  # served: tokens that somebody has who was there from the start
    due: list[tuple[float, int, bool]] = []
    while sent < num_requests or due:
        at_s = now_s + (due[0][0] - served) * (active + half_full) / tokens_per_s if due else np.inf
        if sent < num_requests and arrival_s[sent] <= at_s:
            served += (arrival_s[sent] - now_s) * tokens_per_s / (active + half_full) if due else 0.0
            now_s = float(arrival_s[sent])
            heapq.heappush(due, (served + 1.0, sent, False))
            heapq.heappush(due, (served + float(tokens[sent]), sent, True))
            active, sent = active + 1, sent + 1
        else:
            served, request, is_last = heapq.heappop(due)
            now_s = float(at_s)
            (finish_s if is_last else first_s)[request] = now_s
            active -= is_last
    return run_of(arrival_s, first_s, finish_s, scheduled_s=arrival_s, output_tokens=tokens, end_s=now_s)


def behind_a_link(rng: np.random.Generator, num_requests: int, load: float, link_s: float = 1.0) -> Run:
    """Two pools: one token after 10 ms, one at a time over a link of `link_s`, nine more tokens of 10 ms each.

    Poisson arrivals at `load` a second and link time; nobody waits for a scheduler.
    """
    arrival_s = np.cumsum(rng.exponential(link_s / load, num_requests))
    first_s = arrival_s + 0.01
    busy_s = link_s * np.arange(1, num_requests + 1)
    second_s = busy_s + np.maximum.accumulate(first_s - (busy_s - link_s))
    ends_s = np.column_stack([first_s, second_s, *(second_s + 0.01 * k for k in range(1, 9))])
    # One lane a request: ten steps each.
    timeline = timeline_of(list(ends_s), [(k, 10 * k, 10 * (k + 1)) for k in range(num_requests)])
    return run_of(
        arrival_s,
        first_s,
        ends_s[:, -1],
        scheduled_s=arrival_s,
        output_tokens=np.full(num_requests, 10),
        timeline=timeline,
        end_s=float(ends_s.max()),
    )


def waits_s(rng: np.random.Generator, num_requests: int, load: float, warmup: int) -> np.ndarray:
    """Waits of an M/M/1 queue (arrivals at 1/s) after `warmup` requests: Lindley's recursion."""
    n = num_requests + warmup
    steps = rng.exponential(load, n)[:-1] - rng.exponential(1.0, n)[1:]
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    return (walk - np.minimum.accumulate(walk))[warmup:]
