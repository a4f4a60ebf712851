"""Requests as they enter: by the clock, or one after another as users become free."""

from __future__ import annotations

import heapq
import math

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.columns import Floats
from plimsoll.core.workload import Workload

INFINITE = float("inf")


@mypyc_attr(allow_interpreted_subclasses=True)
class Arrivals:
    """What is to come of a workload.

    Args:
        workload: all requests.
        accepted: numbers of those that a server takes; the others are refused as soon as they could be sent.

    Attributes:
        closed: whether users send, each `think_s` after an answer, rather than the clock.
        next_s: when the next request is sent, as far as is known; infinite where nobody is about to.
        sent_s: ``float64[n]``: when each request was sent, NaN where it was not (yet).
    """

    def __init__(self, workload: Workload, accepted: list[int]) -> None:
        self._accepted = accepted
        self._earliest_s: list[float] = workload.arrival_s.tolist()
        self._think_s = workload.think_s
        self._upcoming = iter(accepted)
        self._sends: list[tuple[float, int]] = []
        self.closed = workload.concurrency is not None
        self.next_s = INFINITE
        self.sent_s: Floats = workload.arrival_s
        if self.closed:
            self.sent_s = np.full(len(workload), math.nan)
            refused = np.setdiff1d(np.arange(len(workload)), accepted)
            self.sent_s[refused] = workload.arrival_s[refused]
        for _ in range(1 if workload.concurrency is None else workload.concurrency):
            self._line_up(0.0)

    def _line_up(self, free_s: float) -> None:
        request = next(self._upcoming, None)
        if request is not None:
            heapq.heappush(self._sends, (max(free_s, self._earliest_s[request]), request))
        self.next_s = self._sends[0][0] if self._sends else INFINITE

    def take(self) -> tuple[float, int]:
        """The next request: when it is sent, and its number. There must be one."""
        now_s, request = heapq.heappop(self._sends)
        self.next_s = self._sends[0][0] if self._sends else INFINITE
        if self.closed:
            self.sent_s[request] = now_s
        else:
            self._line_up(0.0)
        return now_s, request

    def answered(self, now_s: float) -> None:
        """A user has got an answer, and will send another request."""
        if self.closed:
            self._line_up(now_s + self._think_s)

    def all_before(self, until_s: float) -> tuple[list[int], list[float]]:
        """Of an open loop, all requests that are sent before `until_s`, and when, in one go."""
        indices = np.array(self._accepted, dtype=np.int64)
        indices = indices[self.sent_s[indices] < until_s]
        return indices.tolist(), self.sent_s[indices].tolist()
