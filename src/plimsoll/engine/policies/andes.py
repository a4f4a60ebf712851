"""Andes: preemptive scheduling for quality of experience, by a simplified greedy knapsack, on vLLM v0's engine.

A user should get the first token within a target and then read at a steady speed. A request that has got n tokens keeps
its user busy until ``arrival + target + n / speed``; past that the user waits. Every `interval_s`, if somebody waits,
the requests are ranked by gain per KV token, where the gain of being served until the next decision is the share of it
that the user would spend waiting. Memory is handed out in that order; whoever runs and is left out gives way until the
next decision, at most `max_preemptions` times each. Between decisions the engine is vLLM v0: prompts in steps of their
own, while memory lasts.

Source: https://arxiv.org/abs/2404.16283v2, sections 3 (quality of experience) and 4 (knapsack, greedy priority
``gain / context length``, preemption cap, only where resources are short). The defaults of 1 s, 4.8 tokens/s and one
preemption were not read again: on 2026-11-20 only the paper's opening was within reach.

NOTE: simplified against the paper. One capacity (memory and seats) instead of a search over batch sizes with a latency
model; a user's reading line is not shifted by tokens that came late; and only the first `candidates` of the queue are
ranked, so that a decision does not cost more with a longer queue.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.engine.general_plan import INFINITE, UNLIMITED, Chunk, Eviction, GeneralPlan, GeneralPolicy
from plimsoll.engine.general_rules import latest_to_evict, longest_sequence, watermark_blocks

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general_state import GeneralState
    from plimsoll.engine.requests import Requests

MODES = ("recompute", "swap")


class Andes(GeneralPolicy):
    """QoE-aware preemptive scheduling.

    Args:
        config: seats, longest sequence, tokens of a step, block size.
        ttft_s: target of the first token of requests that have none of their own.
        tokens_per_s: speed at which a user reads (the paper: 4.8 for English text).
        interval_s: seconds between decisions.
        preemption: ``swap`` or ``recompute``.
        swap_block_s: seconds to move one block over the host link.
        max_preemptions: how often one request may be made to give way.
        candidates: how many of the queue are ranked.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        ttft_s: float = 1.0,
        tokens_per_s: float = 4.8,
        interval_s: float = 1.0,
        preemption: str = "swap",
        swap_block_s: float = 0.0,
        max_preemptions: int = 1,
        candidates: int = 128,
    ) -> None:
        if preemption not in MODES:
            raise UnknownNameError("preemption", preemption, MODES)
        if min(tokens_per_s, interval_s, candidates) <= 0:
            values = (tokens_per_s, interval_s, candidates)
            raise InputError("tokens_per_s, interval_s, candidates", values, "give values above zero")
        self.seats, self.watermark = config.max_num_seqs, watermark_blocks(config, 0.01)
        self.budget = max(config.max_num_batched_tokens, longest_sequence(config))
        self.ttft_s, self.tokens_per_s, self.interval_s = ttft_s, tokens_per_s, interval_s
        self.preemption, self.swap_block_s = preemption, swap_block_s
        self.max_preemptions, self.candidates = max_preemptions, candidates
        self.next_decision_s = 0.0
        self.chosen: set[int] = set()  # of the last decision, and not running yet
        self.barred: set[int] = set()
        self._prompts = GeneralPlan(decode=False)
        self._decodes = GeneralPlan(holds=UNLIMITED, spare=1)

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whose whole sequence fits beside the watermark, and a block to come back to."""
        blocks = -(-np.array(requests.final) // config.block_size) + 1
        return np.asarray(blocks + self.watermark <= config.num_blocks)

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """A decision if one is due and somebody waits, else what vLLM v0 would do."""
        if view.num_decode and view.free_blocks - view.decode_need < 1:
            victims = latest_to_evict(view)
            if victims:
                return GeneralPlan(evict=tuple((request, "recompute", "own") for request in victims))
        if view.now_s >= self.next_decision_s and (view.waiting or view.swapped):
            self.next_decision_s = view.now_s + self.interval_s
            decision = self._decide(view)
            if decision is not None:
                return decision
        plan = self._more(view)
        if plan is None and self.barred and not view.running:
            self.barred.clear()  # better those than nobody
            plan = self._more(view)
        if plan is not None:
            return plan
        decodes = self._decodes
        waits = bool(view.waiting or view.swapped)
        decodes.wakes_on_arrival = not waits or bool(self.barred)  # whoever comes may pass those who must wait
        decodes.until_s = self.next_decision_s if waits else INFINITE
        return decodes

    def _more(self, view: GeneralState) -> GeneralPlan | None:
        """Whoever can join those who run: first from host memory, then from the queue."""
        seats = self.seats - len(view.running)
        if seats <= 0 or view.free_blocks <= self.watermark:
            return None
        back = self._swap_in(view, view.free_blocks - view.decode_need - self.watermark, seats)
        if back:
            return GeneralPlan(swap_in=back)
        chunks = self._admissions(view, seats)
        if not chunks:
            return None
        plan = self._prompts
        plan.chunks = chunks
        return plan

    def _decide(self, view: GeneralState) -> GeneralPlan | None:
        """Hand memory out by gain per token; None if nobody is to move."""
        requests, size, running = view.requests, view.block_size, view.running
        tokens: dict[int, int] = {request: view.cached_tokens(request) for request in running}
        tokens.update(view.swapped)
        in_place = len(tokens)
        for request in islice(view.waiting, self.candidates):
            tokens[request] = requests.target[request]
        room, seats = view.num_blocks - self.watermark, self.seats
        chosen = {request for request in running if requests.preemptions[request] >= self.max_preemptions}
        room -= sum(tokens[request] // size + 1 for request in chosen)
        seats -= len(chosen)
        for request in self._ranked(view, tokens, in_place):
            if room <= 0 or seats <= 0:
                break
            blocks = tokens[request] // size + 1
            if blocks <= room and request not in chosen:
                chosen.add(request)
                room -= blocks
                seats -= 1
        gone = sorted(request for request in running if request not in chosen)
        self.chosen = chosen.difference(running)
        waiting = islice(tokens.items(), in_place, None)
        self.barred = {r for r, count in waiting if r not in chosen and count > requests.prompt[r]}
        self.barred.update(view.swapped.keys() - chosen, gone)
        if not gone:
            return None
        evict: tuple[Eviction, ...] = tuple((request, self.preemption, "own") for request in gone)
        free = view.free_blocks + sum(view.held_blocks(request) for request in gone)
        free -= view.decode_need - sum(1 for request in gone if not view.cached_tokens(request) % size) + self.watermark
        back = self._swap_in(view, free, self.seats - len(running) + len(gone))
        return GeneralPlan(evict=evict, swap_in=back)

    def _ranked(self, view: GeneralState, tokens: dict[int, int], in_place: int) -> list[int]:
        """Requests by gain per KV token: the share of the time until the next decision that a user would spend waiting.

        The first `in_place` of `tokens` have these tokens in a cache (one fewer than prompt and answer so far), the
        others would have to compute them. Among equals those who run stay: moving them would gain nothing.
        """
        num = len(tokens)
        requests = np.fromiter(tokens, np.int64, num)
        counts = np.fromiter(tokens.values(), np.int64, num)
        arrival_s = np.fromiter(map(view.arrival_s.__getitem__, tokens), np.float64, num)
        prompt = np.fromiter(map(view.requests.prompt.__getitem__, tokens), np.int64, num)
        targets_s = view.requests.workload.ttft_target_s
        target_s = self.ttft_s if targets_s is None else targets_s[requests]
        place = np.arange(num)
        answered = counts - prompt + (place < in_place)
        waits_s = (view.now_s + self.interval_s) - (arrival_s + target_s + answered * (1 / self.tokens_per_s))
        gain = np.clip(waits_s, 0.0, self.interval_s) / counts
        # Those who run are the first of `tokens`.
        order: list[int] = requests[np.lexsort((requests, place >= len(view.running), -gain))].tolist()
        return order

    def _swap_in(self, view: GeneralState, free: int, seats: int) -> tuple[int, ...]:
        """Whoever may come back, those chosen first, then by arrival."""
        back: list[int] = []
        wanted = sorted((r not in self.chosen, r) for r in view.swapped.keys() - self.barred)
        for _, request in wanted[: max(seats, 0)]:
            free -= -(-view.swapped[request] // view.block_size) + 1
            if free < 0:
                break
            back.append(request)
        self.chosen.difference_update(back)
        return tuple(back)

    def _admissions(self, view: GeneralState, seats: int) -> list[Chunk]:
        """Prompts of those chosen first, then by arrival, as vLLM v0 takes them; none while others may swap in."""
        if view.swapped.keys() - self.barred:
            return []
        first = sorted(r for r in self.chosen if r not in view.swapped)
        others = (r for r in islice(view.waiting, self.candidates) if r not in self.chosen and r not in self.barred)
        size, target = view.block_size, view.requests.target
        free, budget = view.free_blocks - self.watermark, self.budget
        chunks: list[Chunk] = []
        for request in chain(first, others):
            tokens = target[request]
            free += -tokens // size
            budget -= tokens
            if free < 0 or budget < 0 or not seats:
                break
            chunks.append((request, tokens))
            seats -= 1
        self.chosen.difference_update(request for request, _ in chunks)
        return chunks
