"""Splitwise: prompt, token and mixed pools, and KV that is pushed when the prompt is done (Patel et al., ISCA 2024).

The rules are those of the paper's section 4 and of its simulator (github.com/Mutinifni/splitwise-sim,
`MixedPoolScheduler` and `SplitwiseInstance`):

1. At its arrival a request gets two machines. For the prompt: the one of the prompt pool with the fewest pending
   tokens, unless prompts wait there and it would have more than `max_pending_tokens`; else one of the mixed pool
   likewise; else the token machine with the fewest pending tokens joins the mixed pool.
2. For the tokens: the one of the token pool with the least memory set aside, if the whole sequence fits beside that;
   else one of the mixed pool likewise; else the prompt machine with the least memory set aside joins the mixed pool.
3. Where either finds nobody, both phases run on the machine with the fewest pending tokens, when there is room.
4. A mixed machine returns to its pool when everything that was assigned to it is done.
5. A step takes, up to `max_num_seqs` requests and `max_num_batched_tokens` tokens: decodes that were left out
   `max_preemptions` times; prompts first come first served, whole (a longer one goes alone); decodes left out before;
   other decodes. A decode that is left out keeps its KV.

Pending tokens: prompts until their first token, and one for each decoding request. Memory is set aside at the
assignment, for the prompt on one machine and for the whole sequence, as long as it is expected to be, on the other.

NOTE: the simulator lets a machine that changes pools take what does not fit; here rule 3 holds then. A prompt waiting
for room lets pass those whose room is set aside. KV goes layer by layer while the prompt is computed
(`transfer_layers`), for prompts of `overlap_min_tokens` and more; a machine's end of the link does one thing at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Sequence

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.disaggregated import Link, Machine
from plimsoll.engine.fleet import expected_tokens
from plimsoll.engine.policy import UNLIMITED
from plimsoll.engine.pools import PooledEngine, check_pools
from plimsoll.engine.replica import Observer
from plimsoll.engine.requests import Requests

PROMPT, TOKEN, MIXED = "prompt", "token", "mixed"


class _Splitter(Machine):
    """A machine of any pool; `home` is where it belongs, `pool` where it is.

    `running` holds requests with KV here that decode or could, in order of arrival; `blocked` those that were left out.
    """

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        number: int,
        observer: Observer | None,
        home: str,
    ) -> None:
        super().__init__(requests, config, model, number, observer)
        self.home = self.pool = home
        self.pending_tokens = 0
        self.blocked: dict[int, None] = {}
        self.arrived: deque[int] = deque()
        self.left_out: dict[int, int] = {}
        self.paused_at: dict[int, tuple[int, int]] = {}
        self.began_s = 0.0
        self.stuck_at = (-1, -1, -1)

    def is_stuck(self, num_starved: int) -> bool:
        """Whether the prompts waiting here were looked at as things are now, and none could begin."""
        return self.stuck_at == (self.free_blocks, len(self.waiting), num_starved)


@dataclasses.dataclass(eq=False)
class Splitwise(PooledEngine):
    """Pools of machines that push KV to each other; `prefill` is the prompt pool, `decode` the token pool.

    Attributes:
        mixed: how many machines begin in the mixed pool.
        transfer_layers, overlap_min_tokens: in how many pieces KV is sent, for prompts of how many tokens.
        max_pending_tokens: of a prompt machine that gets another prompt (`prompt_max_pending_batch_tokens`).
        max_preemptions: how often a decode is left out before it goes first.

    Raises:
        InputError, InfeasibleError: pools that cannot be, or a link that would be free.
    """

    _: dataclasses.KW_ONLY
    mixed: int = 0
    transfer_layers: int = 1
    overlap_min_tokens: int = 512
    max_pending_tokens: int = 8192
    max_preemptions: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pools(self.config, {"prefill": self.prefill, "decode": self.decode, "mixed": self.mixed})
        self.homes = [PROMPT] * self.prefill + [TOKEN] * self.decode + [MIXED] * self.mixed
        self.link = Link(
            s_per_token=self.transfer_s_per_token,
            latency_s=self.transfer_latency_s,
            layers=self.transfer_layers,
            overlap_min_tokens=self.overlap_min_tokens,
        )
        self.limit = min(self.config.max_num_seqs, self.config.max_num_batched_tokens)
        self.decodes_at: dict[int, _Splitter] = {}
        self.has_room: set[int] = set()

    def replicas(self, requests: Requests, model: StepModel, observer: Observer | None, /) -> Sequence[Machine]:
        """Prompt machines, then token machines, then mixed ones."""
        self.requests = requests
        longest = expected_tokens(requests.workload, requests.output)
        self.expected = [max(told, true) for told, true in zip(longest, requests.final, strict=True)]
        self.expected = [min(told, self.config.num_blocks * self.config.block_size) for told in self.expected]
        self.splitters = [
            _Splitter(requests, self.config, model, number, observer, home) for number, home in enumerate(self.homes)
        ]
        self.machines = [*self.splitters]
        return self.machines

    # -- at the arrival --------------------------------------------------------------------------------------------

    def arrive(self, request: int, now_s: float, /) -> None:
        """Rules 1 to 3."""
        prompt = self.requests.prompt[request]
        at = self._prompt_machine(request, PROMPT) or self._prompt_machine(request, MIXED)
        then = self._token_machine(request, TOKEN) or self._token_machine(request, MIXED)
        if at is None:
            at = self._least_pending(TOKEN)
            self._join_mixed(at, now_s)
        if then is None:
            then = self._most_free(PROMPT)
            self._join_mixed(then, now_s)
        if at is None or then is None or not self._room(request, at, then):
            at = then = min(self.splitters, key=lambda m: m.pending_tokens)
        else:
            self._set_aside(request, at, then)
        self.decodes_at[request] = then
        at.pending_tokens += prompt
        then.pending_tokens += 1
        at.waiting.append(request)
        self.requests.replica[request] = at.number
        self.clock.wake(at, now_s)

    def _join_mixed(self, machine: _Splitter | None, now_s: float) -> None:
        if machine is not None:
            machine.pool = MIXED
            if not machine.pending_tokens:
                self.clock.wake(machine, now_s)  # it goes home at once, if it gets nothing to do after all

    def _least_pending(self, pool: str) -> _Splitter | None:
        best: _Splitter | None = None
        for machine in self.splitters:
            if machine.pool == pool and (best is None or machine.pending_tokens < best.pending_tokens):
                best = machine
        return best

    def _most_free(self, pool: str) -> _Splitter | None:
        best: _Splitter | None = None
        for machine in self.splitters:
            if machine.pool == pool and (best is None or machine.free_blocks > best.free_blocks):
                best = machine
        return best

    def _prompt_machine(self, request: int, pool: str) -> _Splitter | None:
        best = self._least_pending(pool)
        if best is None:
            return None
        full = best.pending_tokens + self.requests.prompt[request] > self.max_pending_tokens
        return None if best.waiting and full else best

    def _token_machine(self, request: int, pool: str) -> _Splitter | None:
        best = self._most_free(pool)
        return None if best is None or best.blocks(self.expected[request]) > best.free_blocks else best

    def _room(self, request: int, at: _Splitter, then: _Splitter) -> bool:
        if then.blocks(self.expected[request]) > then.free_blocks:
            return False
        return at is then or at.blocks(self.requests.prompt[request]) <= at.free_blocks

    def _set_aside(self, request: int, at: _Splitter, then: _Splitter) -> None:
        then.free_blocks -= then.blocks(self.expected[request])
        if at is not then:
            at.free_blocks -= at.blocks(self.requests.prompt[request])
        self.has_room.add(request)

    # -- steps -----------------------------------------------------------------------------------------------------

    def begin_step(self, machine: Machine, now_s: float, until_s: float, /) -> bool:
        """Rule 5."""
        assert isinstance(machine, _Splitter)
        while machine.arrived:
            request = machine.arrived.popleft()
            machine.paused_at[request] = (self.requests.prompt[request], self.requests.output[request] - 1)
            machine.running[request] = None
        if not machine.pending_tokens:
            machine.pool = machine.home
        if not machine.waiting and not machine.running:
            return False
        starved: list[int] = []
        if machine.left_out:
            starved = [r for r in machine.running if machine.left_out.get(r, 0) >= self.max_preemptions]
            starved = starved[: self.limit]
        prompts: list[int] = []
        room = self.limit - len(starved)
        if machine.waiting and not machine.is_stuck(len(starved)):
            prompts, left = self._prompts(machine, len(starved))
            if prompts:
                room = left
        if len(machine.running) > room + len(starved):
            self._choose_decodes(machine, starved, room)
        elif machine.paused_at:
            for request in machine.running:
                if request in machine.paused_at:
                    machine.lane.resume(request, *machine.paused_at.pop(request))
            machine.blocked.clear()
        if prompts:
            machine.began_s = now_s
            machine.begin_mixed(prompts, now_s)
        elif machine.lane.num:
            machine.begin_decodes(now_s, 1 if machine.paused_at else UNLIMITED, until_s)
        else:
            return False
        return True

    def _prompts(self, machine: _Splitter, num_starved: int) -> tuple[list[int], int]:
        """Prompts of the step, and for how many more decodes there is room."""
        seats = self.config.max_num_seqs - num_starved
        budget = self.config.max_num_batched_tokens - num_starved
        chosen: list[int] = []
        for request in list(machine.waiting):
            prompt = self.requests.prompt[request]
            if not seats or (prompt > budget and (chosen or num_starved)):
                break
            if request not in self.has_room:
                need = machine.blocks(self.expected[request])
                if need > machine.free_blocks:
                    continue
                machine.free_blocks -= need
                self.has_room.add(request)
            machine.waiting.remove(request)
            chosen.append(request)
            seats -= 1
            budget -= prompt
        machine.stuck_at = (-1, -1, -1) if chosen else (machine.free_blocks, len(machine.waiting), num_starved)
        return chosen, max(0, min(seats, budget))

    def _choose_decodes(self, machine: _Splitter, starved: list[int], room: int) -> None:
        """Let the lane hold who decodes in this step, and count who does not."""
        first = set(starved)
        others = [*machine.blocked, *(r for r in machine.running if r not in machine.blocked)]
        chosen = first.union([r for r in others if r not in first][:room])
        for request in machine.running:
            if request in chosen:
                machine.blocked.pop(request, None)
                if request in machine.paused_at:
                    machine.lane.resume(request, *machine.paused_at.pop(request))
            else:
                if request not in machine.paused_at:
                    machine.paused_at[request] = machine.stop_decoding(request)
                    machine.blocked[request] = None
                machine.left_out[request] = machine.left_out.get(request, 0) + 1

    def step_over(self, machine: Machine, now_s: float, /) -> list[int]:
        """First tokens set KV on its way, last tokens free their memory."""
        assert isinstance(machine, _Splitter)
        requests, lane = self.requests, machine.lane
        computed, finished = machine.end_step()
        for request in computed:
            machine.pending_tokens -= requests.prompt[request]
            if self.decodes_at[request] is machine:
                lane.start(request, requests.prompt[request], requests.output[request] - 1)
                machine.running[request] = None
            elif requests.output[request] == 1:
                lane.start(request, requests.prompt[request], 0)
            else:
                machine.leave_first_token(request)
                self._push(request, machine, now_s)
        if lane.due <= len(lane.ends):
            finished += lane.take_finished()[0]
        for request in finished:
            self._forget(request, machine, now_s)
        return finished

    def _forget(self, request: int, machine: _Splitter, now_s: float) -> None:
        then = self.decodes_at.pop(request)
        then.pending_tokens -= 1
        then.free_blocks += then.blocks(self.expected[request])
        if then is not machine:
            machine.free_blocks += machine.blocks(self.requests.prompt[request])
            self.clock.wake(then, now_s)
        machine.running.pop(request, None)
        machine.left_out.pop(request, None)

    def _push(self, request: int, source: _Splitter, now_s: float) -> None:
        then = self.decodes_at[request]
        begin_s = max(now_s, source.link_free_s, then.link_free_s)
        done_s = begin_s + self.link.rest_s(self.requests.prompt[request], now_s - source.began_s)
        source.link_free_s = then.link_free_s = done_s

        there_s = done_s + self.link.latency_s
        self.clock.at(there_s, functools.partial(self._arrived, request, source, then, there_s))

    def _arrived(self, request: int, source: _Splitter, then: _Splitter, now_s: float) -> None:
        """The KV of a prompt is there."""
        source.free_blocks += source.blocks(self.requests.prompt[request])
        self.requests.replica[request] = then.number
        then.arrived.append(request)
        if source.waiting:
            self.clock.wake(source, now_s)
        self.clock.wake(then, now_s)
