"""Prefix aware: the replica that most likely has the longest prefix of the prompt in its cache, unless it is too busy.

The router does not ask the engines: it remembers which content it sent where, in a list as long as a replica's cache,
least recently used out first, as SGLang's router does with its approximate radix trees (sgl-router, policy
`cache_aware`: `cache_threshold` 0.3, `balance_abs_threshold` 64, `balance_rel_threshold` 1.5). Its rule:

1. If the most loaded replica leads the least loaded by more than `max_lead` requests and by more than `max_ratio`
   times, the least loaded gets the request.
2. Else, if one remembers at least the share `min_match` of the prompt, the one that remembers most of it.
3. Else the least loaded (SGLang: the one with the smallest tree).

Ties go to the less loaded, then to the lowest number. Workloads without content ids always end at 3.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from plimsoll.engine.fleets.smallest import least_of

if TYPE_CHECKING:
    from plimsoll.core.workload import Workload
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.fleets.fleet import Fleet


class PrefixAware:
    """A memory of content ids for each replica, and a guard against overload.

    Args:
        config: sizes of a replica's cache.
        workload: whose content ids are looked at.
        min_match: share of the prompt that must be remembered for it to count.
        max_lead, max_ratio: how far the loads may be apart before only they count.
    """

    needs_state = True
    counts_requests = True

    def __init__(
        self,
        *,
        config: EngineConfig,
        workload: Workload,
        min_match: float = 0.3,
        max_lead: int = 64,
        max_ratio: float = 1.5,
    ) -> None:
        self._min_match, self._max_lead, self._max_ratio = min_match, max_lead, max_ratio
        self._ids = workload.prompt_block_ids
        self.pick = least_of if self._ids is None else None
        self._capacity_ids = 0
        self._memories: list[Memory] = []
        if self._ids is not None:
            assert workload.prompt_block_offsets is not None
            assert workload.block_tokens is not None
            self._offsets = workload.prompt_block_offsets.tolist()
            self._capacity_ids = max(1, config.num_blocks * config.block_size // workload.block_tokens)

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """Where the prompt's beginning is, or where there is room."""
        del now_s
        loads = fleet.loads()
        if self._ids is None:
            return least_of(loads)
        least = min(loads)
        chosen = loads.index(least)
        if not self._memories:
            self._memories = [Memory(self._capacity_ids) for _ in loads]
        ids = self._ids[self._offsets[request] : self._offsets[request + 1]].tolist()
        most, first = max(loads), ids[0] if ids else -1
        if most - least <= self._max_lead or most <= self._max_ratio * least:
            matches = [memory.match(ids) if first in memory.last else 0 for memory in self._memories]
            longest = max(matches)
            if longest and longest >= self._min_match * len(ids):
                chosen = min((k for k, match in enumerate(matches) if match == longest), key=loads.__getitem__)
        self._memories[chosen].remember(ids)
        return chosen


class Memory:
    """What was sent to one replica: content ids, those that were sent last.

    Every time that an id is sent is a place in one long queue, of which an id's last place counts.

    Args:
        capacity_ids: how many ids are remembered.

    Attributes:
        last: for each id that is remembered its last place.
    """

    __slots__ = ("_capacity_ids", "_head", "_queue", "last")

    def __init__(self, capacity_ids: int) -> None:
        self._capacity_ids = capacity_ids
        self._queue: deque[int] = deque()
        self._head = 0  # place of the first in the queue
        self.last: dict[int, int] = {}

    def match(self, ids: list[int]) -> int:
        """How many of a prompt's first ids are remembered."""
        last = self.last
        for count, content in enumerate(ids):
            if content not in last:
                return count
        return len(ids)

    def remember(self, ids: list[int]) -> None:
        """A prompt is sent. Its end is forgotten before its beginning, so the latter counts as sent later."""
        queue, last, capacity_ids = self._queue, self.last, self._capacity_ids
        backwards, place = ids[::-1], self._head + len(queue)
        queue.extend(backwards)
        last.update(zip(backwards, range(place, place + len(ids)), strict=True))
        while len(last) > capacity_ids:
            content = queue.popleft()
            if last[content] == self._head:
                del last[content]
            self._head += 1
        if len(queue) > 4 * capacity_ids + 1000:  # what was sent again and again has left many places behind
            kept = sorted(last, key=last.__getitem__)
            self._head = place = self._head + len(queue)
            self._queue = deque(kept)
            self.last = dict(zip(kept, range(place, place + len(kept)), strict=True))
