"""The replicas of a cluster as a router sees them, brought up to date only as far as it looks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.engine.general.radix import RadixReplica
from plimsoll.engine.general.replica import GeneralReplica
from plimsoll.engine.general.reuse import ReuseReplica
from plimsoll.engine.replicas.caching import CachingReplica
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.late_caching import LateCachingReplica
from plimsoll.engine.replicas.lockstep import RanksTogether
from plimsoll.engine.replicas.lookahead import LookaheadReplica
from plimsoll.engine.replicas.planned import PlannedReplica
from plimsoll.engine.requests import NEVER

if TYPE_CHECKING:
    from plimsoll.core.workload import Workload
    from plimsoll.engine.cluster import Router
    from plimsoll.engine.replicas.replica import Replica
    from plimsoll.engine.requests import Requests

ONE_LANE = (PlannedReplica, CachingReplica, GeneralReplica, RadixReplica, ReuseReplica)
"""Kinds of replicas that hold all who decode in one lane, without stages, and nobody who is over."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Fleet(Sequence["Replica"]):
    """A sequence of replicas: whoever takes one out gets it as it is at `now_s`.

    Every replica has a time at which what is to be seen of it may change next: the end of its step under way, or of
    its stretch of steps in which nobody ends. Until then it is left alone.

    Attributes:
        now_s: the arrival's time.
    """

    def __init__(self, replicas: Sequence[Replica], requests: Requests) -> None:
        self.replicas = list(replicas)
        self.now_s = -math.inf
        self._requests = requests
        self._loads = [0] * len(replicas)
        self._due_s = [math.inf] * len(replicas)
        self._known: list[int] | None = None
        self._sent_tokens = [0] * len(replicas)
        self._fast_tokens = self._enough = False
        self._ahead: list[LookaheadReplica] = []
        self._lows = [0] * len(replicas)  # of pending tokens
        self._left: list[int | None] = [None] * len(replicas)  # None: to be counted anew
        self._has_sums = [False] * len(replicas)

    def __len__(self) -> int:
        return len(self.replicas)

    @overload
    def __getitem__(self, number: int) -> Replica: ...
    @overload
    def __getitem__(self, number: slice) -> list[Replica]: ...
    def __getitem__(self, number: int | slice) -> Replica | list[Replica]:
        self.refresh()
        return self.replicas[number]

    def __iter__(self) -> Iterator[Replica]:
        self.refresh()
        return iter(self.replicas)

    # -- what routers ask ------------------------------------------------------------------------------------------

    def loads(self) -> list[int]:
        """For each replica the requests sent to it and not answered by `now_s`; not to be changed."""
        due_s, now_s = self._due_s, self.now_s
        if min(due_s) <= now_s:
            for number, time_s in enumerate(due_s):
                if time_s <= now_s:
                    self._refresh(number)
        return self._loads

    def load(self, number: int) -> int:
        """The same of one replica; the others are left alone."""
        if self._due_s[number] <= self.now_s:
            self._refresh(number)
        return self._loads[number]

    def fewer(self, first: int, second: int) -> int:
        """Which of two replicas has fewer requests; at a tie the first."""
        return second if self.load(second) < self.load(first) else first

    def pending_tokens(self) -> list[int]:
        """For each replica the tokens that its requests still have to get into the cache, as far as a router can know.

        A request counts with its prompt and the answer it is expected to get (predicted, else the maximum that the
        engine is told, else its true length), less what is in place or in the step under way; never below zero.
        """
        self._known_tokens()
        self.refresh()
        if not self._fast_tokens:
            return [self._pending_of(number) for number in range(len(self.replicas))]
        return [low + one.tokens_ahead(self.now_s) for low, one in zip(self._lows, self._ahead, strict=True)]

    def least_pending(self) -> int:
        """The replica with the fewest `pending_tokens`; of several the first.

        When the steps that were run ahead are over, a replica has at least so many tokens left as it will have then.
        Who has more than another has now is not looked at closer.
        """
        self._known_tokens()
        self.refresh()
        if not self._fast_tokens:
            pending = [self._pending_of(number) for number in range(len(self.replicas))]
            return pending.index(min(pending))
        lows, now_s = self._lows, self.now_s
        chosen = lows.index(min(lows))
        least = lows[chosen] + self._ahead[chosen].tokens_ahead(now_s)
        for number, low in enumerate(lows):
            if low < least or (low == least and number < chosen):
                pending_tokens = low + self._ahead[number].tokens_ahead(now_s)
                if pending_tokens < least or (pending_tokens == least and number < chosen):
                    chosen, least = number, pending_tokens
        return chosen

    # -- what the cluster does -------------------------------------------------------------------------------------

    def serve(self, router: Router, sent: list[int], times: list[float]) -> None:
        """Route arrivals, in order of time."""
        for at, request in enumerate(sent):
            self.now_s = now_s = times[at]
            self.send(router.choose(self, request, now_s), request)

    def send(self, number: int, request: int) -> None:
        """Hand over an arrival."""
        replica, now_s = self.replicas[number], self.now_s
        replica.push((request,), (now_s,))
        self._loads[number] += 1
        self._left[number] = None
        if self._known is not None:
            self._sent_tokens[number] += self._known[request]
            if self._fast_tokens:
                self._note_low(number)
        self._due_s[number] = replica.now_s if replica.now_s > now_s else math.nextafter(now_s, math.inf)

    def finish(self, until_s: float) -> None:
        """Run everything that begins before `until_s`: nobody will look any more."""
        for replica in self.replicas:
            replica.advance(until_s)

    def advanced(self, number: int) -> None:
        """A replica was advanced by somebody else: look at it again."""
        self._due_s[number] = -math.inf

    def refresh(self) -> None:
        """Bring every replica up to `now_s`."""
        self.loads()

    def _refresh(self, number: int) -> None:
        """Bring one replica up to `now_s`, and say when to look at it again: after that."""
        replica, now_s = self.replicas[number], self.now_s
        replica.advance(now_s)
        self._loads[number] = replica.outstanding(now_s)
        self._left[number] = None
        if self._fast_tokens:
            self._note_low(number)
        if replica.now_s > now_s:
            self._due_s[number] = replica.now_s
        else:
            self._due_s[number] = max(replica.next_step_s(), math.nextafter(now_s, math.inf))

    def _note_low(self, number: int) -> None:
        """What a replica has left when all is over that was run ahead."""
        replica = self._ahead[number]
        self._lows[number] = self._sent_tokens[number] - replica.done_tokens - replica.tokens_in_place()

    def _pending_of(self, number: int) -> int:
        """What one replica has left, as it was when something happened to it last."""
        pending, replica = self._left[number], self.replicas[number]
        if pending is None:
            if self._has_sums[number]:
                pending = self._sent_tokens[number] - replica.lane.over - _all_in_place(replica)
            else:
                pending = self._slow_pending(replica)
            if not isinstance(replica, LookaheadReplica):
                self._left[number] = pending
        return pending

    def _slow_pending(self, replica: Replica) -> int:
        """Counted anew: request by request, unless sums will do."""
        known = self._known_tokens()
        if isinstance(replica, RanksTogether):
            coming = sum(known[request] for request in (*replica.sent[replica.num_arrived :], *replica.waiting))
            return coming + sum(self._slow_pending(rank) for rank in replica.ranks)
        pending = sum(map(known.__getitem__, replica.sent[replica.num_arrived :]))
        pending += sum(map(known.__getitem__, replica.waiting))
        if self._enough and type(replica) in ONE_LANE and not replica.pipelined and not replica.lane.windows:
            return pending + sum(map(known.__getitem__, replica.seated)) - _all_in_place(replica)
        ahead = replica.steps_ahead(self.now_s) if isinstance(replica, LookaheadReplica) else 0
        return pending + sum(max(0, known[request] - _in_place(replica, request, ahead)) for request in replica.seated)

    def _known_tokens(self) -> list[int]:
        """For each request its expected tokens in the cache when it ends."""
        if self._known is None:
            requests = self._requests
            self._known = expected_tokens(requests.workload, requests.output)
            self._enough = all(known >= final for known, final in zip(self._known, requests.final, strict=True))
            ahead = [replica for replica in self.replicas if isinstance(replica, LookaheadReplica)]
            # Sums suffice where nobody outlives what was expected of them, and nothing was sent before the first look.
            if self._enough and len(ahead) == len(self.replicas) and not any(replica.sent for replica in ahead):
                self._fast_tokens, self._ahead = True, ahead
                for replica in ahead:
                    replica.known = self._known
            elif self._enough:
                self._keep_sums(self._known, self._known == requests.final)
        return self._known

    def _keep_sums(self, known: list[int], is_truth: bool) -> None:
        """The same for replicas that hold one lane and take blocks as they go.

        A late replica keeps requests seated that are over, so it is counted only where they have what was expected.
        """
        kinds = (PlannedReplica, CachingReplica, *((LateReplica, LateCachingReplica) if is_truth else ()))
        for number, replica in enumerate(self.replicas):
            if type(replica) in kinds and not replica.lane.windows and not replica.sent:
                self._has_sums[number] = True
                replica.lane.counted = known


def expected_tokens(workload: Workload, output: Sequence[int]) -> list[int]:
    """For each request the tokens in the cache at its end, as far as a router can know."""
    told = workload.predicted_output_tokens
    if told is None:
        told = workload.max_output_tokens
    expected = np.array(output, dtype=np.int64) if told is None else told
    tokens: list[int] = (workload.prompt_tokens + expected - 1).tolist()
    return tokens


def _all_in_place(replica: Replica) -> int:
    """KV tokens of all running requests, where a lane's read tokens are their lengths."""
    lane = replica.lane
    tokens: int = lane.read // lane.full_weight - lane.num + sum(replica.prefilling.values())
    return tokens


def _in_place(replica: Replica, request: int, ahead: int) -> int:
    """KV tokens of a running request, but for those of so many steps that were run ahead."""
    if request in replica.prefilling:
        if ahead and isinstance(replica, LookaheadReplica) and replica.ahead_chunk[0] == request:
            return replica.prefilling[request] - ahead * replica.ahead_chunk[1]
        return replica.prefilling[request]
    requests = replica.requests
    if requests.finish_key[request] == NEVER:
        whole: int = requests.target[request]
        return whole  # on its way through a pipeline
    (lane,) = [lane for lane in replica.lanes if lane.number == requests.lane[request]]
    in_place: int = requests.final[request] - lane.remaining(request) - ahead
    return in_place
