"""The least of a short list: by a loop where that is compiled, by what Python has built in where not."""

from __future__ import annotations

from plimsoll.engine.policy import COMPILED


def least_of(loads: list[int]) -> int:
    """The place of the first of those that have the least."""
    if not COMPILED:
        return loads.index(min(loads))
    chosen, least = 0, loads[0]
    for number in range(1, len(loads)):
        load = loads[number]
        if load < least:
            chosen, least = number, load
    return chosen


def soonest(times_s: list[float]) -> float:
    """The least."""
    least_s = times_s[0]
    for time_s in times_s:
        if time_s < least_s:
            least_s = time_s
    return least_s


def place_of(times_s: list[float], wanted_s: float) -> int:
    """The place of the first that is equal; there must be one."""
    for number in range(len(times_s)):
        if times_s[number] == wanted_s:
            return number
    raise ValueError(wanted_s)


if not COMPILED:
    globals().update(soonest=min, place_of=list.index)  # the same, without a call of ours
