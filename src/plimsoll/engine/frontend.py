"""Between a client and the scheduler: the API server parses, tokenises and hands over before a request counts.

The same seconds for every request. A client waits them, the engine does not see them: requests reach it later, users of
a closed loop send their next one after the pause and reach it those seconds later still.
"""

from __future__ import annotations

import dataclasses

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
