"""Between a client and the scheduler: the API server parses, tokenises and hands over before a request counts.

Either the same seconds for every request, or a server that takes them one after another and longer for longer prompts.
A client waits them, the engine does not see them: requests reach it later, users of a closed loop send their next one
after the pause and reach it those seconds later still.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from plimsoll.core.columns import floats
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload


def delayed(workload: Workload, frontend_s: float) -> Workload:
    """The workload as the engine sees it."""
    closed = workload.concurrency is not None
    return dataclasses.replace(
        workload,
        arrival_s=workload.arrival_s + frontend_s,
        think_s=workload.think_s + frontend_s if closed else workload.think_s,
    )


def as_sent(run: Run, frontend_s: float) -> Run:
    """The run of a delayed workload as its clients see it: everything they sent, they sent earlier."""
    return dataclasses.replace(run, arrival_s=run.arrival_s - frontend_s)


def served_one_by_one(workload: Workload, request_s: float, token_s: float) -> Workload:
    """The workload as it leaves an API server that serves one request after another, in order of arrival.

    Exact for an open loop. Users of a closed loop wait for each other at the start, where they send at once, and find
    the server free later on: then each waits the mean of all services.
    """
    service_s = request_s + token_s * workload.prompt_tokens
    done_s = np.cumsum(service_s)
    # Request i leaves at the latest, over k, of: k arrives and all from k to i are served.
    left_s = done_s + np.maximum.accumulate(workload.arrival_s - (done_s - service_s))
    pause_s = 0.0 if workload.concurrency is None else float(service_s.mean())
    return dataclasses.replace(workload, arrival_s=floats(left_s), think_s=workload.think_s + pause_s)


def as_sent_to_server(run: Run, workload: Workload, served: Workload) -> Run:
    """The run of a workload that an API server delayed, as its clients see it."""
    sent_s = workload.arrival_s[: len(run)]
    if workload.concurrency is not None:
        first = np.arange(len(run)) < workload.concurrency
        sent_s = np.where(first, sent_s, run.arrival_s - (served.think_s - workload.think_s))
    return dataclasses.replace(run, arrival_s=floats(sent_s))
