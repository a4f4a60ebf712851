"""What one replica holds: queues, KV blocks, who runs, and what becomes of a request in it.

`plimsoll.engine.replicas.replica` adds the clock and the steps.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from mypy_extensions import mypyc_attr

from plimsoll.core.step import ChunkLine, StepModel, chunk_line_of
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Chunk, Policy, StepPlan
from plimsoll.engine.replicas.longest import WithLongest, lane_for, needs_longest
from plimsoll.engine.requests import NEVER, Requests

if TYPE_CHECKING:
    from plimsoll.engine.replicas.replica import Replica

INFINITE = float("inf")
NOBODY: Sequence[int] = ()
"""Not a tuple to the reader: what is assigned narrows an attribute, and calls in between change it."""


class Observer(Protocol):
    """Watches every single step, at the price of speed: for recorded schedules and traces."""

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        """Called when a step's memory is taken, before its results are."""
        ...

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        """Called after a step, with the requests that got their last token in it."""
        ...


@mypyc_attr(allow_interpreted_subclasses=True)
class ReplicaState:
    """The state of one replica. Policies read it (see `plimsoll.engine.policy`); only its own methods write it.

    NOTE: slots, because Python 3.11 reads the attributes of an object with more than thirty of them, as some of the
    subclasses have, several times slower.
    """

    __slots__ = (
        "block_size", "chunk_line", "chunk_lines", "config", "free_blocks", "lane", "lanes", "last_finished",
        "layers", "log", "model", "next_arrival_s", "now_s", "num_arrived", "num_blocks", "number", "observer",
        "paused", "pipelined", "plain_attention", "policy", "preempted", "prefilling", "requests", "running", "seated",
        "sent", "sent_s", "step_s", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.requests = requests
        self.config = config
        self.model = WithLongest(model, self) if needs_longest(model) else model
        self.step_s = self.model.step_s
        self.policy = policy
        self.number = number
        self.observer = observer
        self.block_size = config.block_size
        self.num_blocks = self.free_blocks = config.num_blocks
        self.layers = model.attention_layers
        self.plain_attention = self.layers == ((1, None),)
        self.chunk_line = chunk_line_of(self.model) if self.plain_attention else None
        self.chunk_lines: dict[tuple[int, int], ChunkLine] = {}
        self.lane = lane_for(model)(requests, number, config.block_size, self.layers)
        self.lanes = [self.lane]
        self.waiting: deque[int] = deque()
        self.running: dict[int, None] = {}
        self.seated = self.running
        self.prefilling: dict[int, int] = {}
        self.sent: list[int] = []
        self.sent_s: list[float] = []
        self.num_arrived = 0
        self.next_arrival_s = INFINITE
        self.now_s = 0.0
        self.last_finished: Sequence[int] = NOBODY
        self.preempted: Sequence[int] = ()
        self.paused: Sequence[int] = ()
        self.pipelined = model.num_stages > 1
        self.log: tuple[array[float], array[int], array[int], array[int]] | None = None
        if config.keep_step_log:
            self.log = (array("d"), array("q"), array("q"), array("q"))

    # -- what policies and routers may ask -------------------------------------------------------------------------

    def cached_tokens(self, request: int) -> int:
        """KV tokens in place of a running request."""
        if request in self.prefilling:
            return self.prefilling[request]
        return self.requests.final[request] - self.lane.remaining(request)

    def held_blocks(self, request: int) -> int:
        """KV blocks that a running request holds."""
        return -(-self.cached_tokens(request) // self.block_size)

    def outstanding(self, now_s: float) -> int:
        """Requests sent here and not answered by `now_s`. A step under way has not answered anybody yet."""
        unseen = len(self.last_finished) if self.now_s > now_s else 0
        return len(self.sent) - self.num_arrived + len(self.waiting) + len(self.seated) + unseen

    # -- who comes ------------------------------------------------------------------------------------------------

    def push(self, requests: Sequence[int], arrival_s: Sequence[float]) -> None:
        """Hand over requests, in order of arrival and after those handed over before."""
        if not requests:
            return
        column, number = self.requests.replica, self.number
        for request in requests:
            column[request] = number
        self.sent.extend(requests)
        self.sent_s.extend(arrival_s)
        self.next_arrival_s = self.sent_s[self.num_arrived]

    def _take_arrivals(self) -> None:
        times, now_s = self.sent_s, self.now_s
        begin = end = self.num_arrived
        num_sent = len(times)
        while end < num_sent and times[end] <= now_s:
            end += 1
        # Not an IndexError: behind a router that is the rule, and as slow as a step.
        self.next_arrival_s = times[end] if end < num_sent else INFINITE
        self.waiting.extend(self.sent[begin:end])
        self.num_arrived = end

    # -- the life of a request -------------------------------------------------------------------------------------

    def _admit(self, request: int) -> None:
        if self.waiting[0] == request:
            self.waiting.popleft()
        else:
            self.waiting.remove(request)
        self.running[request] = None
        if not self.requests.preemptions[request]:
            self.requests.scheduled_s[request] = self.now_s

    def _take_finished(self) -> None:
        """Let go of everybody whose last token the steps so far have brought."""
        self.last_finished, blocks = self.lane.take_finished()
        self.free_blocks += blocks
        for request in self.last_finished:
            del self.running[request]

    def _preempt(self, request: int) -> None:
        requests = self.requests
        self.free_blocks += self.held_blocks(request)
        if request in self.prefilling:
            del self.prefilling[request]
        else:
            cached = self.cached_tokens(request)
            requests.left[request] = self.lane.remaining(request)
            requests.target[request] = requests.prompt[request] + requests.output[request] - requests.left[request]
            self._end_slice(request)
            self.lane.stop(request, cached)
        del self.running[request]
        requests.preemptions[request] += 1
        self.waiting.appendleft(request)

    def _end_slice(self, request: int) -> None:
        begin, end = self.requests.slice_begin[request], len(self.lane.ends)
        if begin < end:
            self.requests.early_slices.append((request, self.lane.number, begin, end))
        self.requests.slice_begin[request] = NEVER

    # -- attention windows -----------------------------------------------------------------------------------------

    def _fold(self, chunks: list[Chunk], part_way: int = 0) -> tuple[int, int]:
        """Attention pairs and context read of the chunks of a step, folded over the attention windows of prefills."""
        layers = getattr(self.model, "prefill_attention_layers", self.layers)
        pairs = read = 0
        for request, chunk in chunks:
            have = part_way or self.prefilling.get(request, 0)
            for weight, window in layers:
                pairs += weight * window_pairs(chunk, have, window)
                read += weight * (have if window is None else min(have, window))
        return pairs, read

    def _write_log(self) -> None:
        assert self.log is not None
        times, running, waiting, used = self.log
        times.append(self.now_s)
        running.append(len(self.seated))
        waiting.append(len(self.waiting))
        used.append(self.num_blocks - self.free_blocks)


def window_pairs(chunk: int, context: int, window: int | None) -> int:
    """Attention pairs of `chunk` new tokens after `context`: the sum of ``min(position, window)`` over positions."""
    if window is None or context + chunk <= window:
        return chunk * context + chunk * (chunk + 1) // 2
    if context >= window:
        return chunk * window
    free = window - context
    return free * context + free * (free + 1) // 2 + (chunk - free) * window
