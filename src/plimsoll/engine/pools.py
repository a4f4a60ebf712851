"""What engines with prefill and decode pools have in common: options, checks, and their run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.engine.arrivals import Arrivals
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.disaggregated import Clock, Machine
from plimsoll.engine.requests import Requests


@dataclasses.dataclass(eq=False)
class PooledEngine:
    """A `plimsoll.engine.cluster.ClusterEngine`: its options as fields, to which a subclass adds its own.

    Attributes:
        config: sizes of every machine.
        prefill, decode: how many machines begin in which pool.
        transfer_s_per_token, transfer_latency_s: the link.
    """

    config: EngineConfig
    _: dataclasses.KW_ONLY
    prefill: int = 1
    decode: int = 1
    transfer_s_per_token: float = 0.0
    transfer_latency_s: float = 0.0

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.machines: list[Machine] = []
        self.requests: Requests

    def run(self, arrivals: Arrivals, until_s: float, /) -> None:
        """Serve every request that arrives, in steps that begin before `until_s`."""
        self.clock.run(self, arrivals, until_s)

    def arrive(self, request: int, now_s: float, /) -> None:
        """As `disaggregated.Scheduler` says; so do the others."""
        raise NotImplementedError

    def step_over(self, machine: Machine, now_s: float, /) -> list[int]:
        """Results of a step."""
        raise NotImplementedError

    def begin_step(self, machine: Machine, now_s: float, until_s: float, /) -> bool:
        """The next step."""
        raise NotImplementedError

    def look_around(self, machine: Machine, now_s: float, /) -> None:
        """Nothing to see, unless a subclass says so."""


def check_pools(config: EngineConfig, pools: Mapping[str, int]) -> None:
    """Refuse pools that nobody could serve with, and numbers that contradict each other.

    Raises:
        InputError: a negative number of machines, or another sum than the deployment's replicas.
        InfeasibleError: no machine to compute prompts, or none to decode.
    """
    for name, count in pools.items():
        if count < 0:
            raise InputError(f"option {name} of {config.policy}", count, "give zero or more machines")
    mixed = pools.get("mixed", 0)
    for name, work in (("prefill", "compute prompts"), ("decode", "decode: whoever got a first token would wait")):
        if not pools[name] and not mixed:
            reason = f"{config.policy} with {name}=0 has no {name} pool, so nobody could {work}"
            raise InfeasibleError(f"{reason}; give {name}=1 or more", "engine")
    total = sum(pools.values())
    if total != config.replicas:
        parts = " + ".join(f"{name} {count}" for name, count in pools.items())
        raise InputError("--replicas", config.replicas, f"{config.policy} has {parts} = {total} replicas; leave it out")
