"""What engines with prefill and decode pools have in common: options, checks, and their run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.engine.arrivals import Arrivals
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.pools.disaggregated import Machine
from plimsoll.engine.pools.machine_cache import MachineCache
from plimsoll.engine.replicas.replica import INFINITE
from plimsoll.engine.requests import Requests


@dataclasses.dataclass(eq=False)
class PooledEngine:
    """A `plimsoll.engine.cluster.ClusterEngine`: its options as fields, to which a subclass adds its own.

    Attributes:
        config: sizes of every machine. prefill, decode: how many machines begin in which pool. transfer_s_per_token,
        transfer_latency_s: the link. prefix_cache: whether machines have a prefix cache
        (`plimsoll.engine.pools.machine_cache`); false in the run of a
            workload without content ids, where nobody would find anything.
        decode_prefix_cache: whether KV that has come over the link can be found again, and need not come twice.
        prefix_aware: whether a prompt is sent where the fewest tokens are left to compute, rather than pending.
        due: by machine, when it next has to be looked at; infinite where nothing is known to happen to it.
        until_s: no step begins from then on.
        next_s: when the next request comes, as far as is known; infinite where none does.
        closed: whether users send one request after the other.
        counted: by request, for how many tokens its prompt counts where it waits.
    NOTE: thirty attributes at most with those of a subclass; Python 3.11 reads those of an object with more several
    times slower.

    Raises:
        InputError: KV is to be found again where nothing is kept.
    """

    config: EngineConfig
    _: dataclasses.KW_ONLY
    prefill: int = 1
    decode: int = 1
    transfer_s_per_token: float = 0.0
    transfer_latency_s: float = 0.0
    prefix_cache: bool = True
    decode_prefix_cache: bool = True
    prefix_aware: bool = True

    def __post_init__(self) -> None:
        if not self.prefix_cache and self.config.options.get("decode_prefix_cache"):
            remedy = "with prefix_cache=false no machine keeps anything: leave it out, or prefix_cache=false"
            raise InputError(f"option decode_prefix_cache of {self.config.policy}", "true", remedy)
        self.requests: Requests
        self.arrivals: Arrivals
        self.until_s = self.next_s = INFINITE
        self.due: list[float] = []
        self.closed = False
        self.counted: list[int] = []
        self._sent: list[int] = []
        self._sent_s: list[float] = []
        self._num_sent = 0

    def add_caches(self, machines: Sequence[Machine], keeps: bool) -> None:
        """Give machines a prefix cache each, if the workload has content; what comes over the link is kept or not."""
        requests = self.requests
        self.counted = requests.prompt
        self.prefix_cache = self.prefix_cache and requests.workload.prompt_block_ids is not None
        if self.prefix_cache:
            self.counted = requests.prompt.copy()
            for machine in machines:
                machine.cache = MachineCache(requests, self.config, keeps=keeps)

    def least_to_compute(self, request: int, machines: Sequence[Machine], pending: Sequence[int], now_s: float) -> int:
        """Which machine, with so many tokens pending, has the fewest with those of this prompt; the first of them."""
        sums = [tokens + cost for tokens, cost in zip(pending, self.costs(request, machines, now_s), strict=True)]
        return sums.index(min(sums))

    def costs(self, request: int, machines: Sequence[Machine], now_s: float) -> list[int]:
        """For how many tokens a prompt would wait at each machine, were it sent there."""
        prompt = self.requests.prompt[request]
        if not (self.prefix_cache and self.prefix_aware):
            return [prompt] * len(machines)
        caches = [machine.cache for machine in machines if machine.cache is not None]
        chain = caches[0].contents.chain(request)
        for cache in caches:
            cache.receive(now_s, including=True)
        return [prompt - cache.match(request, chain) for cache in caches]

    def expect(self, arrivals: Arrivals, until_s: float) -> None:
        """These requests will come, as far as they are sent before `until_s`."""
        self.arrivals, self.until_s, self.closed = arrivals, until_s, arrivals.closed
        self.next_s = arrivals.next_s
        if not self.closed:
            self._sent, self._sent_s = arrivals.all_before(until_s)
            self._sent_s.append(INFINITE)

    def all_sent(self) -> tuple[list[int], list[float]]:
        """All requests that come, and when, where they do so by the clock; an infinite time at the end."""
        return self._sent, self._sent_s

    def take_next(self) -> int:
        """The request that comes at `next_s`."""
        if self.closed:
            request = self.arrivals.take()[1]
            self.next_s = self.arrivals.next_s
            return request
        self._num_sent = place = self._num_sent + 1
        self.next_s = self._sent_s[place]
        return self._sent[place - 1]

    def answered(self, now_s: float) -> None:
        """A user has got an answer."""
        if self.closed:
            self.arrivals.answered(now_s)
            self.next_s = self.arrivals.next_s


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
