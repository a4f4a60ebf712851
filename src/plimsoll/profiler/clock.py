"""The clock of a device: all that differs between timing on a CPU and on CUDA, and CUDA's watts.

On CUDA the time between two events is what the device worked (`torch.cuda.Event`). So that it does not wait for Python
in between, a kernel that waits goes first, for as long as Python needed to launch the same calls a moment before:
engines launch graphs. On a CPU calls return when they are done; operators of one step take turns there, so that each
finds the caches as the others leave them.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from plimsoll.perf.profiles.own_format import Row
from plimsoll.profiler.samples import Effort, collect, figures

Call = Callable[[int], Any]
Copied = tuple[Call, int]
"""A call by the number of a copy of its weights, and how many copies there are."""
CLOCK_HZ = 2.2e9
"""Of a GPU that boosts; `torch.cuda._sleep` counts cycles. Too long a wait costs only time."""
LAUNCH_MARGIN = 1.5
MOST_WAIT_S = 0.05
TOGETHER_WAIT_S = 1e-3
LEAST_TIMED_S = 200e-6
"""Calls between two events, whose resolution is about half a microsecond, take this much together."""
MOST_REPEATS = 64
POWER_SETTLE_S, POWER_SAMPLES = 1.5, 5
"""NVML reports the mean of up to one second."""


class CpuClock:
    """Wall time."""

    def samples(self, calls: Sequence[Copied], effort: Effort) -> list[list[float]]:
        """Seconds of one call of each, all copies of the weights having their turn in every sample."""
        found: list[list[float]] = [[] for _ in calls]
        turns = max(copies for _, copies in calls)

        def once() -> float:
            spent = [0.0] * len(calls)
            for turn in range(turns):
                for number, (call, copies) in enumerate(calls):
                    if turn < copies:
                        began_s = self.now_s()
                        call(turn)
                        spent[number] += self.now_s() - began_s
            means = [seconds / copies for seconds, (_, copies) in zip(spent, calls, strict=True)]
            for samples, mean in zip(found, means, strict=True):
                samples.append(mean)
            return sum(means)

        collect(once, effort)
        return [seconds[effort.warm_ups :] for seconds in found]

    def together(self, call: Call, turns: int) -> float:
        """Seconds of one of exactly `turns` calls, after one that is not counted: devices then begin together."""
        call(0)
        began_s = self.now_s()
        for turn in range(turns):
            call(turn)
        return (self.now_s() - began_s) / turns

    @staticmethod
    def now_s() -> float:
        """A clock's reading."""
        return time.perf_counter()


class CudaClock:
    """Time between two events on the current device's current stream.

    Args:
        torch: the module.
    """

    def __init__(self, torch: Any) -> None:
        self._cuda = torch.cuda

    def samples(self, calls: Sequence[Copied], effort: Effort) -> list[list[float]]:
        """Seconds of one call of each, one operator after the other."""
        return [collect(functools.partial(self.seconds, call, copies), effort) for call, copies in calls]

    def seconds(self, call: Call, copies: int) -> float:
        """Of one call, all copies of its weights having their turn; small calls are made several times."""
        cuda = self._cuda
        cuda.synchronize()
        began_s = time.perf_counter()
        for copy in range(copies):
            call(copy)
        launch_s = time.perf_counter() - began_s
        cuda.synchronize()
        worked_s = time.perf_counter() - began_s
        turns = max(1, min(math.ceil(MOST_REPEATS / copies), math.ceil(LEAST_TIMED_S / worked_s)))
        cuda._sleep(int(CLOCK_HZ * min(MOST_WAIT_S, LAUNCH_MARGIN * turns * launch_s)))
        return self._between(lambda turn: call(turn % copies), turns * copies)

    def together(self, call: Call, turns: int) -> float:
        """As `CpuClock.together`; the waiting kernel has a fixed length, so that all devices do the same."""
        self._cuda.synchronize()
        self._cuda._sleep(int(CLOCK_HZ * TOGETHER_WAIT_S))
        call(0)
        return self._between(call, turns)

    def _between(self, call: Call, turns: int) -> float:
        """Seconds of one of `turns` calls by the device's own clock."""
        began, ended = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
        began.record()
        for turn in range(turns):
            call(turn)
        ended.record()
        ended.synchronize()
        milliseconds = float(began.elapsed_time(ended))
        return milliseconds / 1e3 / turns


Clock = CpuClock | CudaClock


def clock_of(torch: Any, device: str) -> Clock:
    """The clock of ``cpu`` or ``cuda``."""
    return CudaClock(torch) if device == "cuda" else CpuClock()


def power_rows(torch: Any, work: Callable[[], Any]) -> list[Row]:
    """Watts of the current CUDA device, idle and busy, where NVML answers; nothing elsewhere.

    Args:
        torch: the module.
        work: launches some milliseconds of work.
    """
    cuda = torch.cuda
    try:
        cuda.synchronize()
        time.sleep(POWER_SETTLE_S)
        idle = [_watts(cuda) for _ in range(POWER_SAMPLES)]
    # no CUDA, no nvidia-ml-py, or a driver whose NVML does not tell: pynvml's errors are exceptions of its own
    except Exception:
        return []
    busy: list[float] = []
    began_s = time.perf_counter()
    while len(busy) < POWER_SAMPLES:
        work()
        cuda.synchronize()
        # read while the last second was all work, not after a pause
        if time.perf_counter() - began_s >= POWER_SETTLE_S * (1 + len(busy) / POWER_SAMPLES):
            busy.append(_watts(cuda))
    idle_row = {"load": "idle", **figures(idle, "power_w", 1.0)}
    return [idle_row, {"load": "busy", **figures(busy, "power_w", 1.0)}]


def _watts(cuda: Any) -> float:
    return float(cuda.power_draw()) / 1e3
