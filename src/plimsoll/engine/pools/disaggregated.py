"""Prefill and decode on different replicas: machines, and the link between them.

    arrival ──► prompt machine ──► first token ──► KV over the link ──► token machine ──► the other tokens
                 holds the KV until it is over                            holds it from then on

An engine of ``engine/clusters`` says who gets which request, what a machine works on, and when KV moves. Here is what
they have in common. The first token lies in the lane of the prompt machine, the others in that of the token machine.

A machine begins a step as soon as it can, and its results come at the step's end. At one instant come results first, in
order of the machines, then transfers, then arrivals, then new steps.

Nobody keeps a clock that stops at all of that. A transfer is done when it is begun: the end of a link that sends notes
when its KV is let go of (`Machine.releases`), the one that receives when it is there (`Machine.coming`), and each looks
when it begins its next step. A machine that only decodes runs to its own next event at once: somebody's last token, KV
that comes, a shortage of blocks. Where something else concerns it meanwhile, what was run past the step under way is
taken back:

    ends   |----|----|----|----|----|----|        a stretch, run ahead
                      ^ a transfer to this machine is begun that will be there then
           |----|----|----|                       what is left of it; with the next step the new request decodes

So a request costs what happens to it, and not what happens elsewhere. Steps are pure additions left to right: what is
run again has the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections import deque

from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Policy, StepPlan
from plimsoll.engine.pools.machine_cache import MachineCache
from plimsoll.engine.replicas.replica import NOBODY, Observer, Replica
from plimsoll.engine.requests import Requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """How KV moves from one machine to another.

    Attributes:
        s_per_token: seconds for one token's KV of all layers.
        latency_s: before the first byte.
        layers: in how many pieces the KV is sent while the prompt is still being computed; 1: after it.
        overlap_min_tokens: shorter prompts are sent in one piece after they have been computed.
    """

    s_per_token: float
    latency_s: float
    layers: int = 1
    overlap_min_tokens: int = 512

    def __post_init__(self) -> None:
        if not (math.isfinite(self.s_per_token) and self.s_per_token > 0):
            raise InputError("transfer_s_per_token", self.s_per_token, "give seconds above zero: no transfer is free")
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise InputError("transfer_latency_s", self.latency_s, "give zero or more seconds")
        if self.layers < 1:
            raise InputError("transfer_layers", self.layers, "give at least 1")

    def rest_s(self, tokens: int, computed_in_s: float) -> float:
        """Seconds on the link once the prompt is computed.

        Layer by layer, computing and sending are two stages of a pipeline: what is left at the end is the last layer
        where computing is the slower of the two, and what did not fit beside the other layers where sending is.
        """
        whole_s = tokens * self.s_per_token
        if self.layers == 1 or tokens < self.overlap_min_tokens:
            return whole_s
        return max(whole_s / self.layers, whole_s - computed_in_s * (self.layers - 1) / self.layers)


class _NoPolicy:
    """Machines are told what to do by their engine."""

    def plan(self, replica: Replica, /) -> StepPlan:
        """Never asked."""
        raise NotImplementedError


class Machine(Replica):
    """A replica whose steps its engine begins and ends.

    Attributes:
        busy: whether results are to be taken, of steps up to `now_s`.
        link_free_s: when its end of the link has sent or received what was asked so far.
        releases: KV that leaves: (when it is gone, blocks that are free then), in order of time.
        coming: KV that is on its way here: (when it is there, request), in order of time.
        computing: the prompts of the step under way.
        by_page: whether decodes take their blocks as they grow; else they were set aside for whole sequences.
        stretch: the lane's first step of the decode steps under way; no step's number while others are.
        attended: whether somebody watches its steps.
        cache: its prefix cache, if it has one.
        starts: of each prompt of the coming step, tokens that were found in the cache.
        sets_aside: whether blocks are promised whole, so that what is shared leaves no more of them.
    """

    __slots__ = (
        "attended", "busy", "cache", "coming", "computing", "decode_line", "link_free_s", "releases", "starts",
        "stretch",
    )  # fmt: skip

    by_page = False
    sets_aside = False

    def __init__(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None
    ) -> None:
        if model.num_stages > 1:
            raise InfeasibleError("prefill and decode pools are simulated without pipeline stages yet", "engine")
        policy: Policy = _NoPolicy()
        super().__init__(requests, config, model, policy, number, observer)
        self.decode_line = self.model.decode_line
        self.busy = False
        self.link_free_s = 0.0
        self.releases: deque[tuple[float, int]] = deque()
        self.coming: deque[tuple[float, int]] = deque()
        self.computing: list[int] = []
        self.stretch = 0
        self.attended = observer is not None or self.log is not None
        self.cache: MachineCache | None = None
        self.starts: dict[int, int] = {}

    def blocks(self, tokens: int) -> int:
        """KV blocks of so many tokens."""
        return -(-tokens // self.block_size)

    def take_releases(self, now_s: float) -> None:
        """KV that has left by now is free."""
        releases = self.releases
        if self.cache is not None:
            while releases and releases[0][0] <= now_s:
                blocks, gained = releases.popleft()[1], self.cache.leave()
                self.free_blocks += blocks if self.sets_aside else gained
            return
        while releases and releases[0][0] <= now_s:
            self.free_blocks += releases.popleft()[1]

    def settle(self, now_s: float) -> None:
        """Of a machine with a cache: what came and left before now has done so. What does just now comes later."""
        assert self.cache is not None
        self.cache.receive(now_s, including=False)
        self.take_releases(math.nextafter(now_s, 0.0))

    def let_go(self, request: int, blocks: int) -> int:
        """Let go of the blocks of a request whose last token is out; returns how many are free by that."""
        if self.cache is None:
            return blocks
        self.settle(self.now_s)
        gained = self.cache.let_go(request, blocks, self.requests.final[request])
        return blocks if self.sets_aside else gained

    def begin_mixed(self, prompts: list[int], now_s: float, extra_s: float = 0.0) -> None:
        """Begin a step of whole prompts and of everybody in the lane."""
        requests, lane, num = self.requests, self.lane, len(prompts)
        lengths, scheduled_s = requests.prompt, requests.scheduled_s
        tokens = twice_pairs = read = 0
        for request in prompts:
            length = lengths[request]
            scheduled_s[request] = now_s
            tokens += length
            twice_pairs += length * (length + 1)
        if starts := self.starts:
            tokens, twice_pairs, read = self._without_found(prompts, tokens, twice_pairs)
            self.starts = {}
        pairs = twice_pairs // 2
        if self.attended or not self.plain_attention:
            chunks = [(request, lengths[request] - starts.get(request, 0)) for request in prompts]
            if not self.plain_attention:
                self.prefilling = starts  # where chunks begin
                pairs, read = self._fold(chunks)
                self.prefilling = {}
            if self.observer is not None:
                self.now_s = now_s
                self.observer.scheduled(self, StepPlan(chunks), now_s)
        ends = lane.ends
        now_s += self.step_s(tokens, num, pairs, read, num, lane.num, lane.read) + extra_s
        if lane.num:
            if self.by_page:
                self.free_blocks -= lane.hist[-len(ends) % self.block_size]
            lane.read += lane.grow
        ends.append(now_s)
        if lane.crossings:
            lane.settle()
        self.now_s = now_s
        self.computing = prompts
        self.stretch = len(ends)
        self.busy = True

    def _without_found(self, prompts: list[int], tokens: int, twice_pairs: int) -> tuple[int, int, int]:
        """Tokens, attention pairs (twice) and tokens read of a step of prompts, parts of which were found."""
        read, cached = 0, self.requests.cached
        for request in prompts:
            start = self.starts.get(request, 0)
            cached[request] = start
            tokens -= start
            twice_pairs -= start * (start + 1)
            read += start
        return tokens, twice_pairs, read

    def begin_decodes(self, now_s: float, steps: int, until_s: float) -> None:
        """Begin up to `steps` steps of the lane, the last of which begins before `until_s`.

        As `Lane.decode`, and up to the next last token or shortage of blocks. NOTE: every stretch passes through here.
        """
        lane, size = self.lane, self.block_size
        if lane.crossings or self.observer is not None:
            self._begin_carefully(now_s, steps, until_s)
            return
        ends, num, read, grow = lane.ends, lane.num, lane.read, lane.grow
        self.stretch = begin = len(ends)
        left = lane.steps_to_finish() if lane.stale else lane.due - begin
        if left < steps:
            steps = left
        if self.by_page and (steps // size + 1) * num > self.free_blocks:
            steps = max(1, lane.steps_within(self.free_blocks, steps))
        append = ends.append
        while steps > 0:
            base_s, per_token_s, below = self.decode_line(num, read)
            count = steps
            if grow and read + grow * (count - 1) >= below:
                count = (below - read + grow - 1) // grow
            for _ in range(count):
                now_s += base_s + per_token_s * read
                append(now_s)
                read += grow
                if now_s >= until_s:
                    steps = 0
                    break
            steps -= count
        lane.read = read
        self.now_s = now_s
        self.busy = True
        if self.by_page:
            steps, high = len(ends) - begin, -begin % size
            if steps <= high:
                self.free_blocks -= sum(lane.hist[high - steps + 1 : high + 1])
            else:
                self.free_blocks -= lane.blocks_for(begin, steps)

    def _begin_carefully(self, now_s: float, steps: int, until_s: float) -> None:
        """The same where steps are watched, or attention windows fill: what comes after that cannot be taken back."""
        lane, begin = self.lane, len(self.lane.ends)
        self.stretch = begin
        steps = min(steps, lane.steps_to_finish())
        if self.observer is not None:
            steps = 1
            self.now_s = now_s
            self.observer.scheduled(self, StepPlan([]), now_s)
        else:
            steps = min(steps, max(1, lane.crossings[0][0] - begin - 1))
        if self.by_page:
            steps = max(1, lane.steps_within(self.free_blocks, steps))
        self.now_s = lane.decode(self.model, now_s, steps, until_s)
        if self.by_page:
            self.free_blocks -= lane.blocks_for(begin, len(lane.ends) - begin)
        self.busy = True

    def next_end(self, now_s: float) -> int:
        """The lane's step that is under way, or just over; of a machine that is busy."""
        return bisect_left(self.lane.ends, now_s, self.stretch)

    def runs_ahead(self) -> bool:
        """Whether it is in the midst of several decode steps."""
        return self.busy and len(self.lane.ends) > self.stretch + 1

    def cut(self, now_s: float) -> None:
        """Take back the steps of the stretch that have not begun before `now_s`."""
        lane = self.lane
        ends = lane.ends
        kept = self.next_end(now_s) + 1
        dropped = len(ends) - kept
        if dropped > 0:
            if self.by_page:
                self.free_blocks += lane.blocks_for(kept, dropped)
            del ends[kept:]
            lane.read -= lane.grow * dropped
            self.now_s = ends[-1]

    def stepped(self, finished: list[int]) -> None:
        """Say so to who watches."""
        self.last_finished = finished or NOBODY
        if self.observer is not None:
            self.observer.stepped(self, finished, self.now_s)
        if self.log is not None:
            self._write_log()

    def stop_decoding(self, request: int) -> tuple[int, int]:
        """Take a request out of the lane; returns its KV tokens in place and its tokens to come."""
        remaining = self.lane.remaining(request)
        cached = self.requests.final[request] - remaining
        self._end_slice(request)
        self.lane.stop(request, cached)
        return cached, remaining
