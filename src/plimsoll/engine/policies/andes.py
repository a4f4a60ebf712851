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

from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.engine.andes_ranking import TOKENS_BITS, Early, Ranking, less_gain
from plimsoll.engine.general.plan import INFINITE, UNLIMITED, Chunk, Eviction, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.rules import check_at_least, latest_to_evict, longest_sequence, watermark_blocks
from plimsoll.engine.policies.vllm_v0 import VllmV0

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.requests import Requests

MODES = ("recompute", "swap")


@mypyc_attr(allow_interpreted_subclasses=True)
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

    own_settings: ClassVar = VllmV0.own_settings

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
        if not (0 < tokens_per_s < INFINITE and 0 < interval_s < INFINITE):
            raise InputError("tokens_per_s, interval_s", (tokens_per_s, interval_s), "give values above zero")
        check_at_least(0, ttft_s=ttft_s, swap_block_s=swap_block_s, max_preemptions=max_preemptions)
        check_at_least(1, candidates=candidates)
        self.seats, self.watermark = config.max_num_seqs, watermark_blocks(config, 0.01)
        self.budget = max(config.max_num_batched_tokens, longest_sequence(config))
        self.ttft_s, self.tokens_per_s, self.interval_s = ttft_s, tokens_per_s, interval_s
        self.preemption, self.swap_block_s = preemption, swap_block_s
        self.max_preemptions, self.candidates = max_preemptions, candidates
        self.next_decision_s = 0.0
        self.barred = False  # whether anybody was left out by the last decision
        self._chosen: set[int] = set()  # of the last decision, and not running yet
        self._first: list[int] = []  # those of them who wait
        self._back: list[int] = []  # who may come back from host memory, in order
        self._left_out: set[int] = set()  # who waits and may not come in
        self._ranking = Ranking(interval_s, config.block_size)
        self._known, self._is_stale = -1, False
        self._again: set[int] = set()
        self._due_s: list[float] = []  # of each request, when its first token is due; minus infinity: not known yet
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
                self._is_stale = True
                return GeneralPlan(evict=tuple((request, "recompute", "own") for request in victims))
        waits = bool(view.waiting or view.swapped)
        if waits and view.now_s >= self.next_decision_s:
            self.next_decision_s = view.now_s + self.interval_s
            decision = self._decide(view)
            if decision is not None:
                return decision
        plan = self._more(view)
        if plan is None and self.barred and not view.running:
            self.barred = False  # better those than nobody
            self._left_out.clear()
            self._back = sorted(view.swapped, key=lambda request: (request not in self._chosen, request))
            plan = self._more(view)
        if plan is not None:
            return plan
        decodes = self._decodes
        decodes.wakes_on_arrival = not waits or self.barred  # whoever comes may pass those who must wait
        decodes.wakes_within = 0 if waits and self.barred and self._next_in_turn(view) else -1
        decodes.until_s = self.next_decision_s if waits else INFINITE
        return decodes

    def _more(self, view: GeneralState) -> GeneralPlan | None:
        """Whoever can join those who run: first from host memory, then from the queue."""
        seats = self.seats - len(view.running)
        if seats <= 0 or view.free_blocks <= self.watermark:
            return None
        if self._back:  # while others may swap in, nobody new comes in
            back = self._swap_in(view, view.free_blocks - view.decode_need - self.watermark, seats)
            return GeneralPlan(swap_in=back) if back else None
        chunks = self._admissions(view, seats)
        if not chunks:
            return None
        plan = self._prompts
        plan.chunks = chunks
        return plan

    # -- decisions -------------------------------------------------------------------------------------------------

    def _decide(self, view: GeneralState) -> GeneralPlan | None:
        """Hand memory out by gain per token; None if nobody is to move."""
        self._look_at_queue(view)
        running, preemptions, most = view.running, view.requests.preemptions, self.max_preemptions
        prompt, due_s, per_token_s = view.requests.prompt, self._due_s, 1 / self.tokens_per_s
        movable = [request for request in running if preemptions[request] < most]
        tokens = view.cached_tokens_of(movable)
        horizon_s = view.now_s + self.interval_s
        interval_s = self.interval_s
        late: list[int] = []
        early: list[Early] = []
        for at in range(len(movable)):
            request, count = movable[at], tokens[at]
            waits_s = horizon_s - (due_s[request] + (count - prompt[request] + 1) * per_token_s)
            if waits_s >= interval_s:
                late.append(-(count << TOKENS_BITS | request))
            else:  # nor is what is no number
                early.append((less_gain(waits_s, count), request, count))
        free = view.free_blocks - view.decode_need - self.watermark
        gone, taken = self._ranking.share(late, early, free, self.seats - len(running), horizon_s)
        gone.sort()
        self._chosen = set(taken)
        self._back = sorted(request for request in taken if request in view.swapped)
        self._first = sorted(request for request in taken if request not in view.swapped)
        self._left_out = self._again - self._chosen
        self.barred = bool(gone or self._left_out) or len(self._back) < len(view.swapped)
        if not gone:
            return None
        counts, size = view.cached_tokens_of(gone), view.block_size
        free += sum([count // size + 1 for count in counts])
        if self.preemption == "recompute":
            self._is_stale = True
            self._left_out.update(gone)
        else:
            for request, count in zip(gone, counts, strict=True):
                self._add(view, request, count, 1)
        evict: tuple[Eviction, ...] = tuple((request, self.preemption, "own") for request in gone)
        return GeneralPlan(evict=evict, swap_in=self._swap_in(view, free, self.seats - len(running) + len(gone)))

    def _look_at_queue(self, view: GeneralState) -> None:
        """Let those be ranked who have come up to the head of the queue since the last decision."""
        waiting, target, prompt = view.waiting, view.requests.target, view.requests.prompt
        if self._is_stale:  # somebody has come back to the queue, with more to compute
            self._is_stale, self._known = False, -1
            self._ranking.clear()
            self._again.clear()
            for request, tokens in view.swapped.items():
                self._add(view, request, tokens, 1)
        at = min(len(waiting), self.candidates) - 1
        known = self._known
        if at >= 0:
            self._known = waiting[at]
        while at >= 0 and (request := waiting[at]) > known:
            self._add(view, request, target[request], 0)
            if target[request] > prompt[request]:
                self._again.add(request)
            at -= 1

    def _add(self, view: GeneralState, request: int, tokens: int, in_place: int) -> None:
        """Let somebody be ranked who does not run.

        With these tokens in a cache (one fewer than prompt and answer so far), or with all of them to compute.
        """
        due_s = self._note_due(view, request)
        answered = tokens - view.requests.prompt[request] + in_place
        busy_s = due_s + answered * (1 / self.tokens_per_s)
        self._ranking.add(request, tokens, busy_s, view.now_s + self.interval_s)

    def _note_due(self, view: GeneralState, request: int) -> float:
        """When the first token of a request is due."""
        if not self._due_s:
            self._due_s = [-INFINITE] * len(view.requests)
        due_s = self._due_s[request]
        if due_s > -INFINITE or due_s != due_s:
            return due_s
        targets_s = view.requests.workload.ttft_target_s
        target_s = self.ttft_s if targets_s is None else float(targets_s[request])
        due_s = self._due_s[request] = view.arrival_s[request] + target_s
        return due_s

    # -- who comes in ----------------------------------------------------------------------------------------------

    def _swap_in(self, view: GeneralState, free: int, seats: int) -> tuple[int, ...]:
        """Whoever may come back, those chosen first, then by arrival."""
        count = 0
        for request in self._back[: max(seats, 0)]:
            free -= -(-view.swapped[request] // view.block_size) + 1
            if free < 0:
                break
            count += 1
        back, self._back = tuple(self._back[:count]), self._back[count:]
        self._chosen.difference_update(back)
        for request in back:
            self._ranking.drop(request)
        return back

    def _next_in_turn(self, view: GeneralState) -> bool:
        """Whether somebody waits who may come in, and before whom nobody else may."""
        if self._back or self._first or (view.waiting and view.waiting[0] not in self._left_out):
            return True
        return any(request not in self._left_out for request in islice(view.waiting, self.candidates))

    def _admissions(self, view: GeneralState, seats: int) -> list[Chunk]:
        """Prompts of those chosen first, then by arrival, as vLLM v0 takes them."""
        first, chosen, left_out = self._first, self._chosen, self._left_out
        size, target = view.block_size, view.requests.target
        free, budget = view.free_blocks - self.watermark, self.budget
        if first or view.waiting:
            request = first[0] if first else view.waiting[0]
            if -(-target[request] // size) > free and (first or request not in left_out):
                return []
        chunks: list[Chunk] = []
        waiting = view.waiting
        at, end = -len(first), min(len(waiting), self.candidates)
        while at < end:
            request = first[at + len(first)] if at < 0 else waiting[at]
            at += 1
            if at > 0 and (request in chosen or request in left_out):
                continue
            tokens = target[request]
            free += -tokens // size
            budget -= tokens
            if free < 0 or budget < 0 or not seats:
                break
            chunks.append((request, tokens))
            seats -= 1
        for request, _ in chunks:
            self._note_due(view, request)
            self._ranking.drop(request)
        if first or self._again:
            self._first = first[len(chunks) :]
            taken = [request for request, _ in chunks]
            chosen.difference_update(taken)
            self._again.difference_update(taken)
        return chunks
