"""A replica whose steps take their blocks while they are planned: for priorities, late results and prefix caching.

Where a step runs short of blocks, or a look-up depends on which blocks the step has taken before it, the order within
the step matters. So the policy calls `place`, `evict` and `admit` in its engine's order, between `catch_up` and
`planned`, and the plan it then returns has been carried out but for the passing of time. Most plans need none of that,
and are counted as in `Replica`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Policy
from plimsoll.engine.prefix.prefix_pool import Run
from plimsoll.engine.queues import PriorityQueue
from plimsoll.engine.replicas.replica import NOBODY, Observer, Replica
from plimsoll.engine.requests import Requests

NOTHING: tuple[Run, ...] = ()


@mypyc_attr(allow_interpreted_subclasses=True)
class PlannedReplica(Replica):
    """The queues and steps of a `Replica`, for policies that take blocks as they go.

    Attributes:
        lingering: running requests that get nothing more: their last token is under way (asynchronous scheduling).
        queue: the waiting queue, where it is in order of priority.
    """

    __slots__ = ("_ahead", "_left", "lingering", "queue")

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
        by_priority: bool = False,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer)
        self.lingering: Sequence[int] = NOBODY
        self.queue: PriorityQueue | None = None
        if by_priority:
            priority = requests.workload.priority
            self.queue = PriorityQueue([0] * len(requests) if priority is None else priority.tolist())
            self.waiting = self.queue  # type: ignore[assignment]  # as much of a deque as is used
        self._left = 0
        self._ahead = 0

    # -- taking blocks while a step is planned ---------------------------------------------------------------------

    def catch_up(self) -> None:
        """Begin to take blocks."""
        self._left, self._ahead = self.free_blocks, 0

    def num_left(self) -> int:
        """Free blocks, after what the step has taken so far."""
        return self._left

    def take(self, count: int) -> None:
        """Take blocks for the coming step."""
        self._left -= count
        self._ahead += count

    def give_back(self, request: int, tokens: int, findable: int) -> None:
        """Let go of the blocks of `tokens` tokens; full blocks of the first `findable` may be found again."""
        del request, findable
        self._left -= -tokens // self.block_size

    def take_for_decodes(self) -> None:
        """Take what the decode set needs in the coming step."""
        need = self.lane.hist[-len(self.lane.ends) % self.block_size]
        if need:
            self.take(need)

    def place(self, request: int, tokens: int) -> None:
        """Take what one running request needs for `tokens` more."""
        have, size = self.cached_tokens(request), self.block_size
        self.take(-(-(have + tokens) // size) - -(-have // size))

    def evict(self, request: int, placed: int = 0) -> None:
        """Drop the KV of a running request, which was given `placed` tokens in the step that is being planned."""
        lingers, size = request in self.lingering, self.block_size
        have = self.requests.final[request] if lingers else self.cached_tokens(request)
        self._ahead -= -(-(have + placed) // size) - -(-have // size)
        self.give_back(request, have + placed, have + placed - self._in_flight(request))
        if not lingers:
            super()._preempt(request)
            return
        del self.running[request]  # it will have all it wants before it could be seated again
        self.requests.preemptions[request] += 1

    def look_up(self, request: int) -> Sequence[Run]:
        """The cached runs that a waiting request's tokens begin with: none here."""
        del request
        return NOTHING

    def admit(self, found: Sequence[Run], tokens: int) -> None:
        """Seat the head of the queue, on the cached runs `found` for it, with a first chunk of `tokens`."""
        del found
        super()._admit(self.waiting[0])
        self.take(-(-tokens // self.block_size))

    def planned(self) -> None:
        """The plan is made. Its steps will count the blocks that it took already."""
        self.free_blocks = self.num_left() + self._ahead

    def _in_flight(self, request: int) -> int:
        """Tokens that `request` has been given and that have not been seen yet."""
        del request
        return 0

    # -- what `Replica` does otherwise -----------------------------------------------------------------------------

    def _admit(self, request: int) -> None:
        """Seat a request, if the plan was made without doing so."""
        if request not in self.running:
            Replica._admit(self, request)  # as super() does, but a million times

    def _preempt(self, request: int) -> None:
        """Done while the plan was made."""

    def let_go(self, finished: Sequence[int]) -> None:
        """Free the blocks and seats of requests whose last result has been taken."""
        final, size, running = self.requests.final, self.block_size, self.running
        for request in finished:
            if request in running:
                self.free_blocks -= -final[request] // size
                del running[request]

    def progress(self) -> int:
        """Tokens that all steps so far have put in place, with what was expected of those who ended."""
        lane = self.lane
        tokens = lane.over + lane.read // lane.full_weight - lane.num
        if self.prefilling:
            tokens += sum(self.prefilling.values())
        return tokens
