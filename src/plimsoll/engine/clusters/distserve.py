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
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Sequence

from plimsoll.core.errors import InputError
from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.disaggregated import Link, Machine
from plimsoll.engine.policy import UNLIMITED
from plimsoll.engine.pools import PooledEngine, check_pools
from plimsoll.engine.replica import INFINITE, Observer
from plimsoll.engine.requests import Requests


class _Decoder(Machine):
    """A decode instance: `accepted` has KV here or on its way, `ready` has it here, `swapped` has it in host memory.

    `waiting_blocks` are those of the accepted.
    """

    by_page = True

    def __init__(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None
    ) -> None:
        super().__init__(requests, config, model, number, observer)
        self.waiting_blocks = 0
        self.ready: deque[int] = deque()
        self.swapped: deque[tuple[int, int, int]] = deque()

    def is_between_steps(self, now_s: float) -> bool:
        """Whether one of the steps that it runs ahead ends now."""
        return self.runs_ahead() and self.lane.ends[self.next_end(now_s)] == now_s

    def free_after(self, step: int) -> int:
        """Free blocks at the end of a step that was run ahead."""
        lane = self.lane
        return self.free_blocks + lane.blocks_for(step + 1, len(lane.ends) - step - 1)


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
        self.most_waiting = self.waiting_frac * self.config.num_blocks
        self.bridge: deque[tuple[int, Machine]] = deque()

    def replicas(self, requests: Requests, model: StepModel, observer: Observer | None, /) -> Sequence[Machine]:
        """Prefill instances first, then decode instances."""
        made = (requests, self.config, model)
        self.requests = requests
        self.prefills = [Machine(*made, number, observer) for number in range(self.prefill)]
        total = self.prefill + self.decode
        self.decoders = [_Decoder(*made, number, observer) for number in range(self.prefill, total)]
        self.pending = [0] * self.prefill
        self.machines = [*self.prefills, *self.decoders]
        return self.machines

    def arrive(self, request: int, now_s: float, /) -> None:
        """Rule 1."""
        chosen = self.pending.index(min(self.pending))
        self.pending[chosen] += self.requests.prompt[request]
        self.prefills[chosen].waiting.append(request)
        self.requests.replica[request] = chosen
        self.clock.wake(self.prefills[chosen], now_s)

    def begin_step(self, machine: Machine, now_s: float, until_s: float, /) -> bool:
        """A batch of prompts, or decodes."""
        if isinstance(machine, _Decoder):
            return self._begin_decodes(machine, now_s, until_s)
        batch: list[int] = []
        tokens, free, size = 0, machine.free_blocks, machine.block_size
        for request in machine.waiting:
            prompt = self.requests.prompt[request]
            free += -prompt // size
            tokens += prompt
            full = len(batch) == self.config.max_num_seqs or (batch and tokens > self.config.max_num_batched_tokens)
            if full or free < 0:
                break
            batch.append(request)
            machine.free_blocks = free
        for request in batch:
            machine.waiting.popleft()
            machine.running[request] = None
        if batch:
            machine.begin_mixed(batch, now_s)
        return bool(batch)

    def step_over(self, machine: Machine, now_s: float, /) -> list[int]:
        """First tokens go to the bridge, last tokens home."""
        requests = self.requests
        computed, finished = machine.end_step()
        for request in computed:
            del machine.running[request]
            self.pending[machine.number] -= requests.prompt[request]
            if requests.output[request] == 1:
                machine.lane.start(request, requests.prompt[request], 0)
                finished += machine.lane.take_finished()[0]
            else:
                machine.leave_first_token(request)
                self.bridge.append((request, machine))
        for request in finished:
            machine.free_blocks += machine.blocks(requests.final[request])
            machine.running.pop(request, None)
        if self.bridge:
            self._offer(machine.number, now_s)
        return finished

    def look_around(self, machine: Machine, now_s: float, /) -> None:
        """Rule 3, between two steps that were run ahead."""
        if self.bridge:
            self._offer(machine.number, now_s)

    # -- the bridge ------------------------------------------------------------------------------------------------

    def _offer(self, number: int, now_s: float) -> None:
        """Rule 3, when machine `number` has ended a step, and of those with steps that end now it is not the first."""
        while self.bridge:
            request, source = self.bridge[0]
            blocks = source.blocks(self.requests.prompt[request])
            taker: _Decoder | None = None
            most = blocks - 1
            for decoder in self.decoders:
                if decoder.swapped or decoder.waiting_blocks >= self.most_waiting:
                    continue
                free = decoder.free_blocks
                if decoder.busy:
                    if decoder.number > number or not decoder.is_between_steps(now_s):
                        continue
                    free = decoder.free_after(decoder.next_end(now_s))
                if free > most:
                    taker, most = decoder, free
            if taker is None:
                self._ask_to_look(self.decoders, blocks, number, now_s)
                return
            self.bridge.popleft()
            if taker.free_blocks < blocks:
                self.clock.wake(taker, now_s)  # it cannot go on as it thought
            taker.free_blocks -= blocks
            taker.waiting_blocks += blocks
            begin_s = max(now_s, source.link_free_s, taker.link_free_s)
            done_s = begin_s + self.link.rest_s(self.requests.prompt[request], 0.0)
            source.link_free_s = taker.link_free_s = done_s
            there_s = done_s + self.link.latency_s
            self.clock.at(there_s, functools.partial(self._arrived, request, source, taker, there_s))

    def _ask_to_look(self, decoders: Sequence[_Decoder], blocks: int, number: int, now_s: float) -> None:
        """Of those who could take so many blocks after a step that they run ahead, let the first to end it look.

        Later in a stretch they have less room, so who could not do so then need not look at all.
        """
        first_s, first = INFINITE, None
        for decoder in decoders:
            if decoder.room < blocks or not decoder.runs_ahead():
                continue
            if decoder.swapped or decoder.waiting_blocks >= self.most_waiting:
                continue
            step = decoder.next_end(now_s)
            end_s = decoder.lane.ends[step]
            if end_s >= first_s or (end_s == now_s and decoder.number <= number):
                continue
            if decoder.free_blocks >= blocks or decoder.free_after(step) >= blocks:
                first_s, first = end_s, decoder
        if first is not None:
            self.clock.look_at(first, first_s)

    def _arrived(self, request: int, source: Machine, taker: _Decoder, now_s: float) -> None:
        """The KV of a prompt is there."""
        source.free_blocks += source.blocks(self.requests.prompt[request])
        self.requests.replica[request] = taker.number
        taker.ready.append(request)
        taker.waiting.append(request)
        if source.waiting:
            self.clock.wake(source, now_s)
        self.clock.wake(taker, now_s)

    # -- decode instances ------------------------------------------------------------------------------------------

    def _begin_decodes(self, decoder: _Decoder, now_s: float, until_s: float) -> bool:
        """Rule 4, then admissions, then steps."""
        lane, moved = decoder.lane, 0
        if decoder.free_blocks < lane.hist[-len(lane.ends) % decoder.block_size]:
            moved = self._swap_out(decoder)
        else:
            decoder.preempted = ()
        if decoder.ready or decoder.swapped:
            moved += self._admit(decoder)
        if not lane.num:
            return False
        if moved:
            decoder.begin_mixed([], now_s, moved * self.swap_s_per_token)
            return True
        looks = (decoder.ready or decoder.swapped) and len(decoder.running) < self.config.max_num_seqs
        decoder.begin_decodes(now_s, 1 if looks else UNLIMITED, until_s)
        if self.bridge:
            blocks = decoder.blocks(self.requests.prompt[self.bridge[0][0]])
            self._ask_to_look([decoder], blocks, decoder.number, now_s)
        return True

    def _swap_out(self, decoder: _Decoder) -> int:
        """Make room for the next step; returns the KV tokens that leave."""
        moved, lane, left = 0, decoder.lane, []
        while decoder.free_blocks < lane.blocks_for(len(lane.ends), 1):
            request = next(reversed(decoder.running))
            cached, remaining = decoder.stop_decoding(request)
            decoder.swapped.append((request, cached, remaining))
            decoder.free_blocks += decoder.blocks(cached)
            del decoder.running[request]
            self.requests.preemptions[request] += 1
            moved += cached
            left.append(request)
        decoder.preempted = tuple(left)
        return moved

    def _admit(self, decoder: _Decoder) -> int:
        """Those in host memory first; returns the KV tokens that come back from there."""
        moved, lane, requests = 0, decoder.lane, self.requests
        while decoder.swapped and len(decoder.running) < self.config.max_num_seqs:
            request, cached, remaining = decoder.swapped[0]
            need = decoder.blocks(cached + 1) + lane.blocks_for(len(lane.ends), 1)
            if need > decoder.free_blocks:
                break
            decoder.swapped.popleft()
            decoder.free_blocks -= decoder.blocks(cached)
            decoder.running[request] = None
            lane.resume(request, cached, remaining)
            moved += cached
        while decoder.ready and len(decoder.running) < self.config.max_num_seqs:
            if decoder.swapped and decoder.running:
                break
            request = decoder.ready[0]
            prompt = requests.prompt[request]
            growth = decoder.blocks(prompt + 1) - decoder.blocks(prompt)
            if growth + lane.blocks_for(len(lane.ends), 1) > decoder.free_blocks:
                break
            decoder.ready.popleft()
            decoder.waiting.popleft()
            decoder.waiting_blocks -= decoder.blocks(prompt)
            decoder.running[request] = None
            lane.resume(request, prompt, requests.output[request] - 1)
        return moved
