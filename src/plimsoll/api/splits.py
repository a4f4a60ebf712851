"""The prefill:decode ratio of a capacity search: as given, or the best split of so many machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from plimsoll.api.resolve import DEFAULT_ENGINE, split_engine
from plimsoll.api.scenario import CapacityScenario
from plimsoll.core.errors import InputError
from plimsoll.planner import pools
from plimsoll.planner.pools import Pools, list_pool_engines, parse_split


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitTried:
    """One split of the machines and the load that it carries by a quick look, in the unit of the search."""

    prefill: int
    decode: int
    max_load: float


def choose_split(
    asked: CapacityScenario, quick_look: Callable[[CapacityScenario], float]
) -> tuple[CapacityScenario, tuple[SplitTried, ...]]:
    """The scenario with its split among the engine's options, and the splits that were tried for ``auto``.

    More prefill machines compute prompts faster and leave fewer to decode, so the capacity has one peak over the split
    (but for noise): the search halves the range that holds it, and asks for each split once.

    Args:
        asked: with a `split`; for ``auto`` its `replicas` are the machines of both pools.
        quick_look: the load that a scenario carries, roughly.

    Raises:
        InputError: a split without pools, or too few machines to split.
    """
    assert asked.split is not None
    given = parse_split(asked.split)
    if given is not None:
        if asked.replicas not in (1, sum(given)):
            raise InputError("--replicas", asked.replicas, f"the split {asked.split} has {sum(given)}; leave it out")
        return with_split(asked, *given), ()
    if asked.replicas < 2:
        raise InputError("--replicas", asked.replicas, "give the machines of both pools together, at least 2")
    found: dict[int, float] = {}

    def load_of(prefill: int) -> float:
        if prefill not in found:
            found[prefill] = quick_look(with_split(asked, prefill, asked.replicas - prefill))
        return found[prefill]

    low, high = 1, asked.replicas - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if load_of(middle) >= load_of(middle + 1) else (middle + 1, high)
    load_of(low)
    best = max(found, key=lambda prefill: found[prefill])
    tried = tuple(
        SplitTried(prefill=prefill, decode=asked.replicas - prefill, max_load=found[prefill])
        for prefill in sorted(found)
    )
    return with_split(asked, best, asked.replicas - best), tried


def with_split(asked: CapacityScenario, prefill: int, decode: int) -> CapacityScenario:
    """The same scenario on so many prefill and decode machines."""
    name, options = split_engine(asked.engine)
    if name not in list_pool_engines():
        if asked.engine != DEFAULT_ENGINE:
            raise InputError("--split", asked.split, f"{name} has no pools; use {', '.join(list_pool_engines())}")
        name = pools.DEFAULT_ENGINE
    checked = Pools(prefill=prefill, decode=decode, engine=name)
    words = {**options, "prefill": checked.prefill, "decode": checked.decode}
    engine = ",".join([name, *(f"{key}={value}" for key, value in words.items())])
    return dataclasses.replace(asked, engine=engine, replicas=1, split=None)
