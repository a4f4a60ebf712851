"""DistServe: prefill and decode instances; the decode side pulls KV when it has room (Zhong et al., OSDI 2024).

The rules are those of the paper's section 4.3 and of its implementation's schedulers (github.com/LLMServe/DistServe,
``context_stage_scheduler.py``, ``decoding_stage_scheduler.py``), the latter with one pipeline stage:

1. An arrival goes to the prefill instance with the fewest prompt tokens waiting or being computed.
2. A prefill batch takes prompts first come first served, whole, up to the token limit (a longer one goes alone), as
   long as there are blocks for it beside those of finished prompts that nobody has pulled yet.
3. A finished prompt waits at the bridge, first come first served. A decode instance looks there after each step, and
   whenever it is idle. It accepts while the KV that it has accepted and not yet begun to decode fills less than
   `waiting_frac` of its memory and the prompt fits into its free blocks. Of several, the one with most free blocks.
4. A decode instance out of blocks swaps out the last of its batch. Those come back first, in the order they left;
   meanwhile it accepts nothing, and begins with nobody new unless it would stand still.

NOTE: an instance's end of the link carries one transfer at a time. Swapping stops the step for as long as it takes.

Where the workload has content ids, all instances have prefix caches (`plimsoll.engine.pools.machine_cache`), and keep
to one clock. NOTE: a decode instance accepts where the whole prompt fits into its free blocks, also if it has part of
it.

While nobody waits at the bridge, decode instances do not matter to each other or to the prefill instances: then they
are left behind, and brought up when the next prompt is done (`Bridge.serve`). While somebody waits there, or
users wait for their answers, all instances keep to one clock (`Distserve.watched`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from plimsoll.core.errors import InputError
from plimsoll.core.step import StepModel
from plimsoll.engine.arrivals import Arrivals
from plimsoll.engine.pools.bridge import Bridge
from plimsoll.engine.pools.decode_instance import DecodeInstance
from plimsoll.engine.pools.disaggregated import Link, Machine
from plimsoll.engine.pools.machine_cache import MachineCache
from plimsoll.engine.pools.pooled import PooledEngine, check_pools
from plimsoll.engine.pools.prompts_ahead import PromptsAhead
from plimsoll.engine.replicas.replica import INFINITE, Observer
from plimsoll.engine.requests import Requests


@dataclasses.dataclass(eq=False)
class Distserve(PooledEngine):
    """Prefill and decode pools with a bridge between them.

    Attributes:
        swap_s_per_token: between a decode instance and host memory.
        waiting_frac: share of a decode instance's memory for KV that waits (`waiting_block_prop_threshold`).

    Raises:
        InputError, InfeasibleError: pools that cannot be, or a link that would be free.
    """

    swap_s_per_token: float = dataclasses.field(default=0.0, kw_only=True)
    waiting_frac: float = dataclasses.field(default=0.05, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pools(self.config, {"prefill": self.prefill, "decode": self.decode})
        if not 0 < self.waiting_frac <= 1:
            raise InputError("waiting_frac", self.waiting_frac, "give a share above 0 and up to 1")
        self.link = Link(s_per_token=self.transfer_s_per_token, latency_s=self.transfer_latency_s)
        self.watched = self.always_watched = False

    def replicas(self, requests: Requests, model: StepModel, observer: Observer | None, /) -> Sequence[Machine]:
        """Prefill instances first, then decode instances."""
        made = (requests, self.config, model)
        self.requests = requests
        self.prefills = [Machine(*made, number, observer) for number in range(self.prefill)]
        total = self.prefill + self.decode
        self.decoders = [DecodeInstance(*made, number, observer) for number in range(self.prefill, total)]
        for decoder in self.decoders:
            decoder.swap_s_per_token = self.swap_s_per_token
        self.pending = [0] * self.prefill
        self.due = [INFINITE] * total
        self.add_caches(self.prefills, keeps=False)
        if self.decode_prefix_cache:
            self.add_caches(self.decoders, keeps=True)
        self.always_watched = self.prefills[0].attended or self.prefix_cache
        return [*self.prefills, *self.decoders]

    # -- the clock -------------------------------------------------------------------------------------------------

    def run(self, arrivals: Arrivals, until_s: float, /) -> None:
        """Serve every request that arrives, in steps that begin before `until_s`."""
        self.expect(arrivals, until_s)
        self.watched = self.always_watched = self.always_watched or self.closed
        most_waiting = self.waiting_frac * self.config.num_blocks
        self.bridge = Bridge(self.decoders, self.due, self.link, most_waiting, until_s)
        if self.prefill > 1 or self.always_watched:
            self._run(until_s)
        else:
            self._run_behind(until_s)
        if not self.watched:
            for decoder in self.decoders:
                decoder.bring_up(until_s, until_s)
        self._end_at_the_cut(until_s)

    def _end_at_the_cut(self, until_s: float) -> None:
        """Tokens that come at the very end count, as on a single replica: their steps began before it."""
        for prefill in self.prefills:
            if prefill.busy and prefill.now_s == until_s:
                self._end_prompts(prefill, until_s)
        for decoder in self.decoders:
            if decoder.busy and decoder.now_s == until_s:
                decoder.take_results()

    def _run(self, until_s: float) -> None:
        """All instances together."""
        due, pending = self.due, self.pending
        while True:
            now_s = min(due)
            if self.next_s <= now_s:
                if 0 in pending:
                    now_s = self.next_s
                elif self.next_s < now_s < until_s:
                    self._route(now_s)
                if self.next_s == now_s < until_s:
                    self._tick(now_s)
                    continue
            if now_s >= until_s:
                break
            if due.count(now_s) > 1:
                self._tick(now_s)
            else:
                self._turn(due.index(now_s), now_s)
        self._route(until_s)

    def _run_behind(self, until_s: float) -> None:
        """One prefill instance ahead, and the decode instances behind it."""
        ahead = PromptsAhead(self.prefills[0], *self.all_sent(), until_s)
        for request in self.all_sent()[0]:
            self.requests.replica[request] = 0
        done, due, bridge = ahead.done, self.due, self.bridge
        while True:
            now_s = min(due) if self.watched else INFINITE
            while not done and ahead.next_s() < until_s and (not bridge.line or ahead.next_s() <= now_s):
                ahead.run()
            if done and done[0][0] <= now_s:
                now_s = done[0][0]
                if now_s >= until_s:
                    break
                while done and done[0][0] == now_s:
                    bridge.line.append((done.popleft()[1], ahead.machine))
                self._look_for(now_s)
            elif now_s >= until_s:
                break
            elif due.count(now_s) > 1:
                self._tick(now_s)
            else:
                self._turn(due.index(now_s), now_s)

    def _look_for(self, now_s: float) -> None:
        """Prompts are done: see who takes them."""
        if self.watched:
            self.bridge.look(-1, now_s)
        elif self.bridge.line:
            if self.bridge.serve(now_s):
                self._unwatch()
            else:
                self.watched = True

    def _turn(self, number: int, now_s: float) -> None:
        """All that happens at an instant that is one machine's alone."""
        if number >= self.prefill:
            decoder = self.decoders[number - self.prefill]
            if decoder.busy:
                self._end_decodes(decoder, now_s)
            if not decoder.busy:
                self._begin_decodes(decoder, now_s)
        else:
            prefill, watched = self.prefills[number], self.watched
            if prefill.busy:
                self._end_prompts(prefill, now_s)
                self._look_for(now_s)
            if self.watched != watched or self.next_s == now_s:
                self._tick(now_s)  # it is others' turn as well, or somebody who has just been answered asks again
                return
            self._begin_prompts(prefill, now_s)
        if self.watched and not self.bridge.line and not self.always_watched:
            self._unwatch()

    def _tick(self, now_s: float) -> None:
        """All that happens at one instant."""
        due = self.due
        turn = [prefill for prefill in self.prefills if due[prefill.number] == now_s]
        for prefill in turn:
            if prefill.busy and prefill.now_s == now_s:
                self._end_prompts(prefill, now_s)
        self._look_for(now_s)
        if self.watched:
            for decoder in self.decoders:
                if due[decoder.number] == now_s and decoder.busy:
                    self._end_decodes(decoder, now_s)
        if self.next_s == now_s:
            self._route(now_s, including=True)
            turn = self.prefills
        for prefill in turn:
            if not prefill.busy:
                self._begin_prompts(prefill, now_s)
        if self.watched:
            for decoder in self.decoders:
                if due[decoder.number] == now_s and not decoder.busy:
                    self._begin_decodes(decoder, now_s)
            if not self.bridge.line and not self.always_watched:
                self._unwatch()

    def _unwatch(self) -> None:
        """Nobody waits at the bridge: leave the decode instances behind."""
        self.watched = False
        for decoder in self.decoders:
            self.due[decoder.number] = INFINITE

    # -- decode instances ------------------------------------------------------------------------------------------

    def _end_decodes(self, decoder: DecodeInstance, now_s: float) -> None:
        """A step of a decode instance is over: its results, if there are any, and a look at the bridge."""
        if decoder.attended:
            decoder.cut(now_s)  # what is logged is how things are before anybody is accepted
        if decoder.now_s == now_s:
            for _ in range(decoder.take_results()):
                self.answered(now_s)
        else:
            self.due[decoder.number] = decoder.now_s
        self.bridge.look(decoder.number, now_s)

    def _begin_decodes(self, decoder: DecodeInstance, now_s: float) -> None:
        """The next steps of one that is on the clock."""
        decoder.begin(now_s, self.until_s)
        self.due[decoder.number] = decoder.next_s()
        if decoder.busy and self.bridge.line:
            self.bridge.let_look_again(decoder, now_s)

    # -- prefill instances -----------------------------------------------------------------------------------------

    def _route(self, now_s: float, *, including: bool = False) -> None:
        """Rule 1, for arrivals before now, or up to now."""
        pending, counted, column, prefills = self.pending, self.counted, self.requests.replica, self.prefills
        several, caching = self.prefill > 1, self.prefix_cache
        while self.next_s < now_s or (including and self.next_s == now_s):
            sent_s = self.next_s
            request = self.take_next()
            if caching:
                chosen = self.least_to_compute(request, prefills, pending, sent_s)
                counted[request] = self.costs(request, [prefills[chosen]], sent_s)[0]
            else:
                chosen = pending.index(min(pending)) if several else 0
            pending[chosen] += counted[request]
            prefills[chosen].waiting.append(request)
            column[request] = chosen

    def _begin_prompts(self, prefill: Machine, now_s: float) -> None:
        """Rule 2."""
        if prefill.releases:
            prefill.take_releases(now_s)
        waiting, due = prefill.waiting, self.due
        if not waiting:
            due[prefill.number] = INFINITE
            return
        if prefill.cache is not None:
            self._begin_looked_up(prefill, prefill.cache, now_s)
            return
        lengths, size, free = self.requests.prompt, prefill.block_size, prefill.free_blocks
        tokens = lengths[waiting[0]]
        free += -tokens // size
        if free < 0:
            due[prefill.number] = prefill.releases[0][0] if prefill.releases else INFINITE
            return
        batch = [waiting.popleft()]
        budget, seats = self.config.max_num_batched_tokens, self.config.max_num_seqs
        while waiting and len(batch) < seats:
            prompt = lengths[waiting[0]]
            tokens += prompt
            blocks = -(-prompt // size)
            if tokens > budget or blocks > free:
                break
            free -= blocks
            batch.append(waiting.popleft())
        prefill.free_blocks = free
        prefill.begin_mixed(batch, now_s)
        due[prefill.number] = prefill.now_s

    def _begin_looked_up(self, prefill: Machine, cache: MachineCache, now_s: float) -> None:
        """The same where prompts, or parts of them, may be found in the instance's prefix cache."""
        waiting, lengths, due = prefill.waiting, self.requests.prompt, self.due
        batch: list[int] = []
        tokens = 0
        while waiting and len(batch) < self.config.max_num_seqs:
            request = waiting[0]
            prompt = lengths[request]
            tokens += prompt - cache.found_tokens(request)
            if batch and tokens > self.config.max_num_batched_tokens:
                break
            start = cache.compute(request, prefill.blocks(prompt), if_room=True)
            if start < 0:
                break
            prefill.starts[request] = start
            batch.append(waiting.popleft())
        prefill.free_blocks = cache.num_free
        if batch:
            prefill.begin_mixed(batch, now_s)
            due[prefill.number] = prefill.now_s
        else:
            due[prefill.number] = prefill.releases[0][0] if prefill.releases else INFINITE

    def _end_prompts(self, prefill: Machine, now_s: float) -> None:
        """First tokens go to the bridge, last tokens home."""
        requests, lane, number, counted = self.requests, prefill.lane, prefill.number, self.counted
        step = len(lane.ends)
        prefill.busy = False
        finished: list[int] = []
        for request in prefill.computing:
            prompt = requests.prompt[request]
            self.pending[number] -= counted[request]
            if requests.output[request] == 1:
                lane.start(request, prompt, 0)
                finished += lane.take_finished()[0]
                prefill.free_blocks += prefill.let_go(request, prefill.blocks(prompt))
                self.answered(now_s)
            else:
                requests.early_slices.append((request, lane.number, step - 1, step))
                self.bridge.line.append((request, prefill))
        prefill.computing = []
        if prefill.attended:
            prefill.take_releases(now_s)
            prefill.stepped(finished)
