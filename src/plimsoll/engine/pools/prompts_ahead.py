"""A prefill instance that has all requests to itself: its prompts are computed ahead of everything else.

What it does depends on its own queue, and on others only where its memory is full of KV that nobody has pulled yet. So
it runs ahead until a batch might be larger with KV that has left meanwhile, and goes on when that is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from plimsoll.engine.pools.disaggregated import Machine
from plimsoll.engine.replicas.replica import INFINITE

MOST_AHEAD = 64
"""Prompts ahead of the rest: enough that going back and forth costs nothing."""


class PromptsAhead:
    """The steps of a prefill instance, first come first served, whole prompts up to a budget.

    Args:
        machine: the instance; nobody watches its steps.
        sent, sent_s: all requests that come, and when; an infinite time at the end of `sent_s`.
        until_s: no step begins from then on.

    Attributes:
        done: prompts that are computed: (when, request), in order.
    """

    def __init__(self, machine: Machine, sent: Sequence[int], sent_s: Sequence[float], until_s: float) -> None:
        self.machine = machine
        self.done: deque[tuple[float, int]] = deque()
        self._sent, self._sent_s, self._until_s = sent, sent_s, until_s
        self._place = 0
        self._free_s = 0.0
        self._short = False

    def next_s(self) -> float:
        """When it might begin its next step; infinite where it has no room, and nothing is on its way out."""
        if not self._short:
            return max(self._free_s, self._sent_s[self._place])
        releases = self.machine.releases
        return max(self._free_s, releases[0][0]) if releases else INFINITE

    def run(self) -> None:
        """Go on, as it is known which KV has left at `next_s`."""
        machine, times, done = self.machine, self._sent_s, self.done
        now_s, known = self.next_s(), True
        while now_s < self._until_s and len(done) < MOST_AHEAD:
            if machine.releases:
                machine.take_releases(now_s)
            batch, blocks, short = self._batch(now_s)
            if short and not known:
                break
            if not batch:
                self._short = True
                break
            self._short = known = False
            machine.free_blocks -= blocks
            machine.begin_mixed(batch, now_s)
            now_s = self._free_s = machine.now_s
            self._place += len(batch)
            if now_s < self._until_s:
                self._end(batch, now_s)
            if times[self._place] > now_s:
                now_s = times[self._place]
        else:
            return
        self._free_s = now_s

    def _batch(self, now_s: float) -> tuple[list[int], int, bool]:
        """The prompts of the next step, their blocks, and whether there would be more of them with more room."""
        machine, sent, times, place = self.machine, self._sent, self._sent_s, self._place
        lengths, size, config = machine.requests.prompt, machine.block_size, machine.config
        batch: list[int] = []
        tokens = blocks = 0
        while times[place] <= now_s and len(batch) < config.max_num_seqs:
            request = sent[place]
            prompt = lengths[request]
            tokens += prompt
            if batch and tokens > config.max_num_batched_tokens:
                break
            need = -(-prompt // size)
            if blocks + need > machine.free_blocks:
                return batch, blocks, True
            blocks += need
            batch.append(request)
            place += 1
        return batch, blocks, False

    def _end(self, batch: list[int], now_s: float) -> None:
        """Hand out first tokens."""
        machine, requests = self.machine, self.machine.requests
        lane, step = machine.lane, len(machine.lane.ends)
        machine.computing = []
        for request in batch:
            if requests.output[request] == 1:
                lane.start(request, requests.prompt[request], 0)
                machine.free_blocks += lane.take_finished()[1]
            else:
                requests.early_slices.append((request, lane.number, step - 1, step))
                self.done.append((now_s, request))
