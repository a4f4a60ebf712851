"""Splitwise's machines: what one of them does in its next step (rule 5 of `plimsoll.engine.clusters.splitwise`)."""

from __future__ import annotations

import dataclasses

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.fleets.fleet import expected_tokens
from plimsoll.engine.policy import UNLIMITED
from plimsoll.engine.pools.disaggregated import Machine
from plimsoll.engine.pools.machine_cache import MachineCache
from plimsoll.engine.replicas.replica import Observer
from plimsoll.engine.requests import Requests

PROMPT, TOKEN, MIXED = 0, 1, 2
"""The pools."""

NEVER_STUCK = (-1, -1, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What all machines know.

    Attributes:
        whole_blocks: by request, KV blocks of the whole sequence, as long as it is expected to be.
        has_room: by request, whether memory is set aside for it.
        max_preemptions: how often a decode is left out before it goes first.
        decodes_at: by request, the machine where it will decode.
    """

    decodes_at: list[SplitMachine] = dataclasses.field(default_factory=list)
    whole_blocks: list[int]
    has_room: bytearray
    max_preemptions: int


def needs_of(requests: Requests, config: EngineConfig, machine: SplitMachine, max_preemptions: int) -> Needs:
    """The needs of a run's requests, before anybody has been given a place; `machine` stands for all of these."""
    longest = expected_tokens(requests.workload, requests.output)
    expected = [max(told, true) for told, true in zip(longest, requests.final, strict=True)]
    return Needs(
        decodes_at=[machine] * len(requests),
        whole_blocks=[min(-(-told // config.block_size), config.num_blocks) for told in expected],
        has_room=bytearray(len(requests)),
        max_preemptions=max_preemptions,
    )


class SplitMachine(Machine):
    """A machine of any pool.

    Attributes:
        home, pool: the pool where it belongs, and where it is.
        running: requests with KV here that decode or could, in order of arrival.
        paused_at: those of them that are not in the lane: KV tokens, and tokens to come.
        blocked: those of these that were in it before, in the order in which they were left out.
        left_out: how often each was; `starving`: those who go first by now.
        pending_tokens: prompts until their first token, and one for each decoding request.
        awaited: requests that will decode here, whose prompts are not computed yet elsewhere.
        stuck_at: when no prompt could begin: with so many free blocks, prompts waiting, and decodes that go first.
        in_line: whether prompts that came after these would not even have been looked at.
        began_s: start of the last step with prompts.
    """

    __slots__ = (
        "awaited", "began_s", "blocked", "home", "in_line", "left_out", "limit", "needs", "paused_at",
        "pending_tokens", "pool", "starving", "stuck_at",
    )  # fmt: skip

    sets_aside = True

    def __init__(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None
    ) -> None:
        super().__init__(requests, config, model, number, observer)
        self.needs = Needs(whole_blocks=[], has_room=bytearray(), max_preemptions=0)
        self.home = self.pool = MIXED
        self.limit = min(config.max_num_seqs, config.max_num_batched_tokens)
        self.pending_tokens = self.awaited = 0
        self.blocked: dict[int, None] = {}
        self.left_out: dict[int, int] = {}
        self.starving: set[int] = set()
        self.paused_at: dict[int, tuple[int, int]] = {}
        self.began_s = 0.0
        self.stuck_at = NEVER_STUCK
        self.in_line = False

    def is_stuck_behind(self, request: int) -> bool:
        """Whether a prompt that has just come cannot begin as things are, like those before it."""
        free, num, num_starved = self.stuck_at
        if free != self.free_blocks or not num or num != len(self.waiting) - 1:
            return False
        if self.in_line or (not self.needs.has_room[request] and self.needs.whole_blocks[request] > free):
            self.stuck_at = free, num + 1, num_starved
            return True
        return False

    def begin(self, now_s: float, until_s: float) -> bool:
        """Begin a step, or decodes up to `until_s`; whether there is anything to begin."""
        coming, running, waiting = self.coming, self.running, self.waiting
        if coming and coming[0][0] <= now_s:
            self._receive(now_s)
        if not self.pending_tokens:
            self.pool = self.home
        if not waiting:
            if not running:
                return False
            if len(running) <= self.limit:
                if self.paused_at:
                    self._resume_all()
                if coming and coming[0][0] < until_s:
                    until_s = coming[0][0]
                self.begin_decodes(now_s, UNLIMITED, until_s)
                return True
        elif not running and self.cache is None:
            request, lengths = waiting[0], self.requests.prompt
            if self.needs.has_room[request] and (
                len(waiting) == 1 or lengths[request] + lengths[waiting[1]] > self.config.max_num_batched_tokens
            ):
                self.began_s = now_s
                self.stuck_at = NEVER_STUCK
                self.begin_mixed([waiting.popleft()], now_s)
                return True
        return self._begin_both(now_s, until_s)

    def _receive(self, now_s: float) -> None:
        """KV is here: its requests could decode, and do so at once where nobody can be in their way."""
        coming, running, paused_at, lane, requests = self.coming, self.running, self.paused_at, self.lane, self.requests
        at_once = not self.waiting and not paused_at and len(running) + len(coming) <= self.limit
        step = len(lane.ends)
        while coming and coming[0][0] <= now_s:
            request = coming.popleft()[1]
            cached, remaining = requests.prompt[request], requests.output[request] - 1
            running[request] = None
            if at_once:
                lane.start(request, cached, remaining)
                requests.slice_begin[request] = step
            else:
                paused_at[request] = (cached, remaining)

    def _begin_both(self, now_s: float, until_s: float) -> bool:
        """The same where prompts and decodes are in each other's way."""
        coming, running, releases = self.coming, self.running, self.releases
        starved: list[int] = []
        if self.starving:
            starved = [request for request in running if request in self.starving][: self.limit]
        prompts: list[int] = []
        room = self.limit - len(starved)
        if self.waiting:
            if releases:
                self.take_releases(now_s)
            if self.stuck_at != (self.free_blocks, len(self.waiting), len(starved)):
                if self.cache is None:
                    prompts, left = self._prompts(len(starved))
                else:
                    prompts, left = self._prompts_looked_up(self.cache, len(starved), now_s)
                if prompts:
                    room = left
        if len(running) > room + len(starved):
            self._choose_decodes(starved, room)
        elif self.paused_at:
            self._resume_all()
        if prompts:
            self.began_s = now_s
            self.begin_mixed(prompts, now_s)
        elif self.lane.num:
            if coming and coming[0][0] < until_s:
                until_s = coming[0][0]
            if self.waiting and releases and releases[0][0] < until_s:
                until_s = releases[0][0]
            self.begin_decodes(now_s, 1 if self.paused_at else UNLIMITED, until_s)
        return self.busy

    def _resume_all(self) -> None:
        """Everybody decodes again, or for the first time."""
        lane, slice_begin = self.lane, self.requests.slice_begin
        step = len(lane.ends)
        for request, (cached, remaining) in self.paused_at.items():
            lane.start(request, cached, remaining)
            slice_begin[request] = step
        self.paused_at.clear()
        self.blocked.clear()

    def _prompts_looked_up(self, cache: MachineCache, num_starved: int, now_s: float) -> tuple[list[int], int]:
        """As `_prompts`, where they or parts of them may be found in the prefix cache."""
        cache.receive(now_s, including=True)
        needs, lengths = self.needs, self.requests.prompt
        seats = self.config.max_num_seqs - num_starved
        budget = self.config.max_num_batched_tokens - num_starved
        chosen: list[int] = []
        for request in self.waiting:
            tokens = lengths[request] - cache.found_tokens(request)
            if not seats or (tokens > budget and (chosen or num_starved)):
                break
            whole = needs.whole_blocks[request]
            if not needs.has_room[request]:
                if whole > self.free_blocks:
                    continue
                self.free_blocks -= whole
                needs.has_room[request] = True
            here = needs.decodes_at[request] is self
            self.starts[request] = cache.compute(request, whole if here else self.blocks(lengths[request]))
            chosen.append(request)
            seats -= 1
            budget -= tokens
        for request in chosen:
            self.waiting.remove(request)
        return chosen, max(0, min(seats, budget))

    def accept(self, request: int, now_s: float) -> int:
        """KV begins to move to this machine, which has a cache; returns the tokens that do."""
        assert self.cache is not None
        self.settle(now_s)
        return self.cache.accept(request, self.needs.whole_blocks[request])

    def _prompts(self, num_starved: int) -> tuple[list[int], int]:
        """Prompts of the step, and for how many more decodes there is room."""
        seats = self.config.max_num_seqs - num_starved
        budget = self.config.max_num_batched_tokens - num_starved
        chosen: list[int] = []
        has_room, lengths = self.needs.has_room, self.requests.prompt
        self.in_line = False
        for request in self.waiting:
            prompt = lengths[request]
            if not seats or (prompt > budget and (chosen or num_starved)):
                self.in_line = True
                break
            if not has_room[request]:
                need = self.needs.whole_blocks[request]
                if need > self.free_blocks:
                    continue
                self.free_blocks -= need
                has_room[request] = True
            chosen.append(request)
            seats -= 1
            budget -= prompt
        for request in chosen:
            self.waiting.remove(request)
        self.stuck_at = NEVER_STUCK if chosen else (self.free_blocks, len(self.waiting), num_starved)
        return chosen, max(0, min(seats, budget))

    def _choose_decodes(self, starved: list[int], room: int) -> None:
        """Let the lane hold who decodes in this step, and count who does not."""
        first = set(starved)
        others = [*self.blocked, *(r for r in self.running if r not in self.blocked)]
        chosen = first.union([r for r in others if r not in first][:room])
        for request in self.running:
            if request in chosen:
                self.blocked.pop(request, None)
                if request in self.paused_at:
                    self.lane.resume(request, *self.paused_at.pop(request))
            else:
                if request not in self.paused_at:
                    self.paused_at[request] = self.stop_decoding(request)
                    self.blocked[request] = None
                times = self.left_out[request] = self.left_out.get(request, 0) + 1
                if times >= self.needs.max_preemptions:
                    self.starving.add(request)

    def take_finished(self) -> list[int]:
        """Who got their last token from the lane; their memory is free."""
        finished = self.lane.take_finished()[0]
        if self.cache is not None:
            for request in [one for one in self.running if one in finished]:
                self.let_go(request, self.needs.whole_blocks[request])
        for request in finished:
            self.free_blocks += self.needs.whole_blocks[request]
            del self.running[request]
        self.pending_tokens -= len(finished)
        if self.left_out:
            for request in finished:
                self.left_out.pop(request, None)
                self.starving.discard(request)
        return finished
