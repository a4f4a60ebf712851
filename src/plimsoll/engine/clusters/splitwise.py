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

Where the workload has content ids, all machines have prefix caches (`plimsoll.engine.pools.machine_cache`), and keep to
the clock; a prompt's pending tokens are those that were left to compute when it came. NOTE: memory is set aside for
whole prompts and sequences all the same, so what is shared saves work, not room.

A machine that only decodes matters to nobody before somebody asks for its room: it is left behind until then, and
brought up by all its steps at once (`Splitwise._bring_up`). Machines with prompts keep to the clock; and all of them do
where users wait for their answers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from plimsoll.core.step import StepModel
from plimsoll.engine.arrivals import Arrivals
from plimsoll.engine.pools.disaggregated import Link, Machine
from plimsoll.engine.pools.pooled import PooledEngine, check_pools
from plimsoll.engine.pools.split_machine import MIXED, PROMPT, TOKEN, SplitMachine, needs_of
from plimsoll.engine.replicas.replica import INFINITE, Observer
from plimsoll.engine.requests import Requests


def _pending_tokens(machine: SplitMachine) -> int:
    return machine.pending_tokens


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
        self.link = Link(
            s_per_token=self.transfer_s_per_token,
            latency_s=self.transfer_latency_s,
            layers=self.transfer_layers,
            overlap_min_tokens=self.overlap_min_tokens,
        )
        self.awake: set[int] = set()
        self.in_order = False

    def replicas(self, requests: Requests, model: StepModel, observer: Observer | None, /) -> Sequence[Machine]:
        """Prompt machines, then token machines, then mixed ones."""
        self.requests = requests
        self.prompt_blocks = [-(-prompt // self.config.block_size) for prompt in requests.prompt]
        homes = [PROMPT] * self.prefill + [TOKEN] * self.decode + [MIXED] * self.mixed
        made = (requests, self.config, model)
        self.splitters = [SplitMachine(*made, number, observer) for number in range(len(homes))]
        needs = needs_of(requests, self.config, self.splitters[0], self.max_preemptions)
        self.whole_blocks = needs.whole_blocks
        for machine, home in zip(self.splitters, homes, strict=True):
            machine.home = machine.pool = home
            machine.needs = needs
        self.due = [INFINITE] * len(self.splitters)
        self.add_caches(self.splitters, keeps=self.decode_prefix_cache)
        self.in_order = self.splitters[0].attended or self.prefix_cache
        return self.splitters

    # -- the clock -------------------------------------------------------------------------------------------------

    def run(self, arrivals: Arrivals, until_s: float, /) -> None:
        """Serve every request that arrives, in steps that begin before `until_s`."""
        self.expect(arrivals, until_s)
        self.in_order = self.in_order or self.closed
        due = self.due
        while True:
            now_s = min(due)
            if self.next_s < now_s:
                now_s = self.next_s
                if now_s >= until_s:
                    break
                self._let_in(now_s)
                continue
            if now_s >= until_s:
                break
            if due.count(now_s) > 1 or self.next_s == now_s:
                self._tick(now_s)
            else:
                self._turn(self.splitters[due.index(now_s)], now_s)
        if not self.in_order:
            for machine in self.splitters:
                self._bring_up(machine, until_s)
        for machine in self.splitters:  # tokens that come at the very end count, as on a single replica
            if machine.busy and machine.now_s == until_s:
                self._take_results(machine, until_s)

    def _turn(self, machine: SplitMachine, now_s: float) -> None:
        """All that happens at an instant that is one machine's alone."""
        if machine.busy:
            if machine.lane.num or self.in_order:
                self._take_results(machine, now_s)
            else:
                machine.busy = False
                self._end_prompts(machine, now_s)
            if self.awake or self.next_s == now_s:
                self._tick(now_s)
                return
        machine.begin(now_s, self.until_s)
        self.due[machine.number] = machine.now_s if machine.computing else self._due_s(machine)

    def _tick(self, now_s: float) -> None:
        """All that happens at one instant."""
        due = self.due
        while now_s in due:  # a result may wake somebody who is between two steps just now
            number = due.index(now_s)
            due[number] = INFINITE
            if self.splitters[number].busy:
                self._take_results(self.splitters[number], now_s)
            self.awake.add(number)
        self._let_in(now_s)

    def _let_in(self, now_s: float) -> None:
        """Arrivals, then new steps."""
        awake, due = self.awake, self.due
        while self.next_s == now_s:
            self._arrive(self.take_next(), now_s)
        if awake:
            for number in awake if len(awake) == 1 else sorted(awake):
                machine = self.splitters[number]
                if not machine.busy:
                    machine.begin(now_s, self.until_s)
                    due[number] = machine.now_s if machine.computing else self._due_s(machine)
            awake.clear()

    def _due_s(self, machine: SplitMachine) -> float:
        """When a machine has to be looked at; infinite if it can be left behind."""
        if machine.busy:
            return machine.now_s if machine.computing or machine.waiting or self.in_order else INFINITE
        due_s = INFINITE
        if machine.waiting or self.in_order:
            if machine.coming:
                due_s = machine.coming[0][0]
            if machine.waiting and machine.releases and machine.releases[0][0] < due_s:
                due_s = machine.releases[0][0]
        return due_s

    def _wake(self, machine: SplitMachine, now_s: float) -> None:
        """Let a machine act as soon as it can."""
        if not machine.busy:
            self.awake.add(machine.number)
        elif not machine.computing:
            machine.cut(now_s)
            self.due[machine.number] = machine.now_s

    def _bring_up(self, machine: SplitMachine, now_s: float) -> None:
        """All that a machine has done up to now, if it was left behind."""
        if machine.now_s > now_s or machine.waiting or machine.computing or self.in_order:
            return
        begin_s, coming = machine.now_s, machine.coming
        if not machine.busy:  # nobody decodes
            if not coming:
                return
            if coming[0][0] > begin_s:
                begin_s = coming[0][0]
        lane = machine.lane
        while begin_s < now_s:
            machine.busy = False
            if lane.due <= len(lane.ends):
                machine.take_finished()
            if machine.begin(begin_s, self.until_s):
                begin_s = machine.now_s
            elif coming:
                begin_s = coming[0][0]
            else:
                return
        if machine.busy and machine.now_s == now_s:
            self._take_results(machine, now_s)
            self.awake.add(machine.number)

    # -- at the arrival --------------------------------------------------------------------------------------------

    def _arrive(self, request: int, now_s: float) -> None:
        """Rules 1 to 3."""
        alone = self.decode == 1 and not (self.mixed or self.prefix_cache)
        found = self._find_behind(request, now_s) if alone else None
        at, then = found or self._find(request, now_s)
        if at is not None and then is not None and (found or self._room(request, at, then)):
            then.free_blocks -= self.whole_blocks[request]
            if at is not then:
                at.free_blocks -= self.prompt_blocks[request]
            then.needs.has_room[request] = True
        else:
            at = then = min(self.splitters, key=_pending_tokens)
        then.needs.decodes_at[request] = then
        if self.prefix_cache:
            self.counted[request] = self.costs(request, [at], now_s)[0]
        at.pending_tokens += self.counted[request]
        then.pending_tokens += 1
        if at is not then:
            then.awaited += 1
        at.waiting.append(request)
        self.requests.replica[request] = at.number
        if not at.busy:
            self.awake.add(at.number)
        elif not at.computing and not at.is_stuck_behind(request):
            at.cut(now_s)
            self.due[at.number] = at.now_s

    def _find_behind(self, request: int, now_s: float) -> tuple[SplitMachine, SplitMachine] | None:
        """Who gets a request if the only token machine has room, and a prompt machine does; None in other cases.

        It can stay behind if it had room when it was left (it has as much now), and does not go home before now.
        """
        then, need = self.splitters[-1], self.whole_blocks[request]
        if (
            then.now_s <= now_s
            and (need > then.free_blocks or not (then.pool == TOKEN or then.awaited))
            and not then.waiting
        ):
            self._bring_up(then, now_s)
        if need > then.free_blocks:
            return None
        best: SplitMachine | None = None
        for machine in self.splitters[:-1]:
            if machine.pool != PROMPT:
                return None
            if machine.now_s <= now_s and (machine.busy or machine.coming):
                self._bring_up(machine, now_s)
            if machine.releases and machine.releases[0][0] <= now_s:
                machine.take_releases(now_s)
            if best is None or machine.pending_tokens < best.pending_tokens:
                best = machine
        best = self._not_full(best, request, now_s)
        return None if best is None or self.prompt_blocks[request] > best.free_blocks else (best, then)

    def _find(self, request: int, now_s: float) -> tuple[SplitMachine | None, SplitMachine | None]:
        """A machine for the prompt and one for the tokens."""
        least: list[SplitMachine | None] = [None, None, None]
        most: list[SplitMachine | None] = [None, None, None]
        for machine in self.splitters:
            if machine.now_s <= now_s and (machine.busy or machine.coming):
                self._bring_up(machine, now_s)
            if machine.releases and machine.releases[0][0] <= now_s:
                machine.take_releases(now_s)
            pool = machine.pool
            best = least[pool]
            if best is None or machine.pending_tokens < best.pending_tokens:
                least[pool] = machine
            best = most[pool]
            if best is None or machine.free_blocks > best.free_blocks:
                most[pool] = machine
        if self.prefix_cache:
            self._find_prefix(request, least, now_s)
        need = self.whole_blocks[request]
        then = most[TOKEN]
        if then is None or need > then.free_blocks:
            then = most[MIXED]
            if then is not None and need > then.free_blocks:
                then = None
        at = self._not_full(least[PROMPT], request, now_s) or self._not_full(least[MIXED], request, now_s)
        if at is None:
            at = least[TOKEN]
            self._join_mixed(at)
        if then is None:
            then = most[PROMPT]
            self._join_mixed(then)
        return at, then

    def _find_prefix(self, request: int, least: list[SplitMachine | None], now_s: float) -> None:
        """Where a prompt would leave the fewest tokens to compute, of machines that do so."""
        for pool in (PROMPT, MIXED):
            if members := [machine for machine in self.splitters if machine.pool == pool]:
                pending = [machine.pending_tokens for machine in members]
                least[pool] = members[self.least_to_compute(request, members, pending, now_s)]

    def _not_full(self, machine: SplitMachine | None, request: int, now_s: float) -> SplitMachine | None:
        if machine is None or not machine.waiting:
            return machine
        tokens = self.costs(request, [machine], now_s)[0] if self.prefix_cache else self.requests.prompt[request]
        return None if machine.pending_tokens + tokens > self.max_pending_tokens else machine

    def _join_mixed(self, machine: SplitMachine | None) -> None:
        if machine is not None:
            machine.pool = MIXED
            if not machine.pending_tokens:
                self.awake.add(machine.number)  # it goes home at once, if it gets nothing to do after all

    def _room(self, request: int, at: SplitMachine, then: SplitMachine) -> bool:
        if self.whole_blocks[request] > then.free_blocks:
            return False
        return at is then or self.prompt_blocks[request] <= at.free_blocks

    def _take_results(self, machine: SplitMachine, now_s: float) -> None:
        """First tokens set KV on its way, last tokens free their memory."""
        machine.busy = False
        finished = machine.take_finished() if machine.lane.due <= len(machine.lane.ends) else []
        if machine.computing:
            finished += self._end_prompts(machine, now_s)
        if self.closed:
            for _ in finished:
                self.answered(now_s)
        if machine.attended:
            machine.take_releases(math.nextafter(now_s, 0.0))  # what leaves just now does so after the results
            machine.stepped(finished)

    def _end_prompts(self, machine: SplitMachine, now_s: float) -> list[int]:
        """Prompts are computed; returns whoever needs no more than that."""
        requests, lane, step, counted = self.requests, machine.lane, len(machine.lane.ends), self.counted
        finished: list[int] = []
        for request in machine.computing:
            prompt, output, then = requests.prompt[request], requests.output[request], machine.needs.decodes_at[request]
            machine.pending_tokens -= counted[request]
            if then is not machine:
                then.awaited -= 1
            if output == 1:
                lane.start(request, prompt, 0)
                finished.append(request)
                self._forget(request, machine, then, now_s)
            elif then is machine:
                lane.start(request, prompt, output - 1)
                machine.running[request] = None
            else:
                requests.early_slices.append((request, lane.number, step - 1, step))
                self._push(request, machine, then, now_s)
        machine.computing = []
        if finished:
            lane.take_finished()
        return finished

    def _forget(self, request: int, machine: SplitMachine, then: SplitMachine, now_s: float) -> None:
        """A request that does not decode needs no room for it."""
        machine.let_go(request, (self.whole_blocks if then is machine else self.prompt_blocks)[request])
        if then is not machine:
            self._bring_up(then, now_s)
        then.pending_tokens -= 1
        then.free_blocks += self.whole_blocks[request]
        if then is not machine:
            machine.free_blocks += self.prompt_blocks[request]
            if then.waiting or not then.pending_tokens:
                self._wake(then, now_s)

    def _push(self, request: int, source: SplitMachine, then: SplitMachine, now_s: float) -> None:
        """Set the KV of a prompt on its way."""
        begin_s = now_s
        if source.link_free_s > begin_s:
            begin_s = source.link_free_s
        if then.link_free_s > begin_s:
            begin_s = then.link_free_s
        prompt, link = self.requests.prompt[request], self.link
        if source.cache is not None:
            source.cache.leaving.append(request)
            prompt = then.accept(request, now_s)
        rest_s = prompt * link.s_per_token if link.layers == 1 else link.rest_s(prompt, now_s - source.began_s)
        source.link_free_s = then.link_free_s = done_s = begin_s + rest_s
        there_s = done_s + link.latency_s
        if there_s < self.until_s:
            self.requests.replica[request] = then.number
        source.releases.append((there_s, self.prompt_blocks[request]))
        then.coming.append((there_s, request))
        if then.cache is not None:
            then.cache.expect(request, there_s)
        if then.busy:
            if there_s < then.now_s:
                then.cut(there_s)
                self.due[then.number] = self._due_s(then)
        elif there_s < self.due[then.number] and (then.waiting or self.in_order):
            self.due[then.number] = there_s
