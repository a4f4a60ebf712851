"""`naive_pools` with a prefix cache on each machine, the slow way: blocks have numbers, as in `naive_vllm_full`."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from tests.oracle.models import with_longest
from tests.oracle.naive_clock import content_of
from tests.oracle.naive_pools import Box, NaiveDistserve, NaiveSplitwise, Pools
from tests.oracle.naive_vllm import Request, _facts
from tests.oracle.naive_vllm_full import BlockPool

Content = Callable[[int], Hashable]


class Store:
    """The blocks of one machine, and who holds which."""

    def __init__(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.blocks: dict[int, list[int]] = {}
        self.num_known: dict[int, int] = {}  # leading blocks that were offered to the cache

    def find(self, content: Content, most: int) -> list[int]:
        hit: list[int] = []
        for index in range(most):
            block = self.pool.find(content(index))
            if block is None:
                break
            hit.append(block)
        return hit

    def room(self, hit: list[int]) -> int:
        """For blocks beside those that were found."""
        return len(self.pool.free) - self.pool.num_free_of(hit)

    def place(self, number: int, hit: list[int], count: int) -> None:
        self.pool.share(hit)
        self.blocks[number] = hit + self.pool.take(count - len(hit))
        self.num_known[number] = len(hit)

    def remember(self, number: int, content: Content, end: int) -> None:
        for index in range(self.num_known[number], end):
            self.pool.remember(self.blocks[number][index], content(index))
        self.num_known[number] = max(self.num_known[number], end)

    def release(self, number: int, content: Content, end: int) -> None:
        self.remember(number, content, end)
        self.pool.release(self.blocks.pop(number))
        del self.num_known[number]


class Caching(Pools):
    """What both engines have in common."""

    def __init__(self, workload: Workload, config: EngineConfig, model: StepModel) -> None:
        super().__init__(workload, config, model)
        self.stores = [Store(config.num_blocks) for _ in self.boxes]
        self.keeps = bool(self.options.get("decode_prefix_cache", True))
        self.start: dict[int, int] = {}  # tokens found where the prompt was computed
        self.held: dict[int, int] = {}  # tokens found where it went
        self.counted: dict[int, int] = {}  # tokens for which it waits in a queue
        self.everybody: list[Request] = []

    def store(self, box: Box) -> Store:
        return self.stores[box.number]

    def content(self, request: Request) -> Content:
        return content_of(self.workload, request.number, self.config.block_size)

    def find(self, box: Box, request: Request) -> list[int]:
        """At least one token is left to compute, or to send."""
        return self.store(box).find(self.content(request), (request.prompt - 1) // self.config.block_size)

    def cost(self, box: Box, request: Request) -> int:
        """Tokens of a prompt for which it waits, were it sent there."""
        if not self.options.get("prefix_aware", True):
            return request.prompt
        return request.prompt - len(self.find(box, request)) * self.config.block_size

    def compute(self, box: Box, request: Request, count: int) -> None:
        """Take `count` blocks for a prompt of the coming step. What it fills is findable at once."""
        hit = self.find(box, request)
        self.start[request.number] = len(hit) * self.config.block_size
        self.store(box).place(request.number, hit, count)
        self.store(box).remember(request.number, self.content(request), request.prompt // self.config.block_size)

    def tokens(self, box: Box, request: Request) -> int:
        """What a step would have to compute of a prompt."""
        return request.prompt - len(self.find(box, request)) * self.config.block_size

    def seconds(self, prompts: list[Request], decodes: list[Request]) -> float:
        starts = [self.start[r.number] for r in prompts]
        shape = (
            sum(r.prompt - start for r, start in zip(prompts, starts, strict=True)),
            len(prompts),
            sum(
                self.folded(i) for r, start in zip(prompts, starts, strict=True) for i in range(start + 1, r.prompt + 1)
            ),
            sum(self.folded(start) for start in starts),
            len(prompts),
            len(decodes),
            sum(self.folded(r.length) for r in decodes),
        )
        return self.model.step_s(*with_longest(self.model, shape, (r.length for r in decodes)))

    def rest_s(self, request: Request, computed_in_s: float) -> float:
        tokens = request.prompt - self.held[request.number]
        whole_s = tokens * self.options["transfer_s_per_token"]
        layers = self.options.get("transfer_layers", 1)
        if layers == 1 or tokens < self.options.get("overlap_min_tokens", 512):
            return whole_s
        return max(whole_s / layers, whole_s - computed_in_s * (layers - 1) / layers)

    def let_go(self, box: Box, request: Request) -> None:
        """What came from elsewhere is forgotten where machines do not keep that."""
        kept = request.computed if self.keeps or request.number not in self.held else 0
        self.store(box).release(request.number, self.content(request), kept // self.config.block_size)

    def end(self, box: Box, now_s: float) -> list[Request]:
        finished = super().end(box, now_s)
        for request in (*(r for r in box.batch if r in finished), *(r for r in box.prompts if r in finished)):
            if request.number in self.store(box).blocks:
                self.let_go(box, request)
        return finished

    def accept(self, request: Request, target: Box, count: int) -> None:
        """KV begins to move there: what is there already does not."""
        hit = self.find(target, request) if self.keeps else []
        self.held[request.number] = len(hit) * self.config.block_size
        self.store(target).place(request.number, hit, count)

    def arrived(self, request: Request, source: Box, target: Box) -> None:
        super().arrived(request, source, target)
        self.store(source).release(request.number, self.content(request), request.prompt // self.config.block_size)
        if self.keeps:
            end = request.prompt // self.config.block_size
            self.store(target).remember(request.number, self.content(request), end)

    def tick(self, requests: list[Request], now_s: float) -> None:
        self.everybody = requests
        super().tick(requests, now_s)

    def facts(self, duration_s: float) -> list[dict[str, Any]]:
        self.run(duration_s)
        sent = [r for r in self.everybody if r.arrival_s < duration_s]
        return [_facts(r, duration_s) | {"cached": self.start.get(r.number, 0)} for r in sent]


class CachingDistserve(Caching, NaiveDistserve):
    """Where decode instances keep nothing, their blocks are numbered all the same: as good as counted."""

    def free(self, box: Box) -> int:
        return len(self.store(box).pool.free)

    def arrive(self, request: Request) -> None:
        def pending(box: Box) -> int:
            under_way = box.prompts if box.busy_until_s is not None else []
            return sum(self.counted[r.number] for r in (*box.queue, *under_way)) + self.cost(box, request)

        chosen = min((box for box in self.boxes if box.pool == "prefill"), key=pending)
        self.counted[request.number] = self.cost(chosen, request)
        request.replica = chosen.number
        chosen.queue.append(request)

    def launch(self, box: Box, now_s: float) -> None:
        if box.pool == "decode":
            self.launch_decodes(box, now_s)
            return
        batch: list[Request] = []
        tokens = 0
        while box.queue and len(batch) < self.config.max_num_seqs:
            request = box.queue[0]
            tokens += self.tokens(box, request)
            if batch and tokens > self.config.max_num_batched_tokens:
                break
            hit = self.find(box, request)
            if self.blocks(request.prompt) - len(hit) > self.store(box).room(hit):
                break
            self.compute(box, request, self.blocks(request.prompt))
            batch.append(box.queue.pop(0))
        if batch:
            self.begin(box, batch, [], now_s)

    def launch_decodes(self, box: Box, now_s: float) -> None:
        moved, store = 0, self.store(box)

        def growth(requests: list[Request]) -> int:
            return sum(self.blocks(r.length) - self.blocks(r.computed) for r in requests)

        while growth(box.batch) > self.free(box):
            victim = box.batch.pop()
            box.swapped.append(victim)
            victim.preemptions += 1
            moved += victim.computed
            self.let_go(box, victim)
        while box.swapped and len(box.batch) < self.config.max_num_seqs:
            request = box.swapped[0]
            if self.blocks(request.length) + growth(box.batch) > self.free(box):
                break
            box.batch.append(box.swapped.pop(0))
            store.place(request.number, [], self.blocks(request.computed))
            moved += request.computed
        while box.here and len(box.batch) < self.config.max_num_seqs and not (box.swapped and box.batch):
            request = box.here[0]
            if growth([*box.batch, request]) > self.free(box):
                break
            box.batch.append(box.here.pop(0))
            box.coming.remove(request)
        if box.batch:
            for request in box.batch:
                store.blocks[request.number] += store.pool.take(growth([request]))
            self.begin(box, [], list(box.batch), now_s, moved * self.options.get("swap_s_per_token", 0.0))

    def move(self, request: Request, source: Box, target: Box, now_s: float, computed_in_s: float) -> None:
        self.accept(request, target, self.blocks(request.prompt))
        super().move(request, source, target, now_s, computed_in_s)


class CachingSplitwise(Caching, NaiveSplitwise):
    """What is set aside is set aside whole: a block that two share saves work, not room."""

    def launch(self, box: Box, now_s: float) -> None:
        box.batch += box.here
        box.here = []
        if not self.pending[box.number]:
            box.pool = box.home
        seats, budget = self.config.max_num_seqs, self.config.max_num_batched_tokens
        decodes: list[Request] = []
        for request in box.batch:
            starved = self.left_out.get(request.number, 0) >= self.options.get("max_preemptions", 4)
            if starved and len(decodes) < min(seats, budget):
                decodes.append(request)
        prompts, tokens = self.choose_prompts(box, len(decodes))
        for request in (*box.blocked, *(r for r in box.batch if r not in box.blocked)):
            if request not in decodes and len(decodes) + len(prompts) < seats and len(decodes) + tokens < budget:
                decodes.append(request)
        for request in box.batch:
            if request in decodes:
                if request in box.blocked:
                    box.blocked.remove(request)
            else:
                self.left_out[request.number] = self.left_out.get(request.number, 0) + 1
                if request in box.decodes or request in box.prompts:  # it ran in the last step
                    box.blocked.append(request)
        if prompts or decodes:
            self.begin(box, prompts, decodes, now_s)

    def choose_prompts(self, box: Box, num_starved: int) -> tuple[list[Request], int]:
        prompts: list[Request] = []
        tokens, mine = 0, self.aside[box.number]
        for request in list(box.queue):
            own = self.tokens(box, request)
            total = num_starved + tokens
            if num_starved + len(prompts) == self.config.max_num_seqs:
                break
            if total and total + own > self.config.max_num_batched_tokens:
                break
            if request.number not in mine:
                if self.used(box) + self.whole(request) > self.config.num_blocks:
                    continue
                mine[request.number] = self.whole(request)
            here = self.then[request.number] is box
            self.compute(box, request, self.whole(request) if here else self.blocks(request.prompt))
            box.queue.remove(request)
            prompts.append(request)
            tokens += own
        return prompts, tokens

    def move(self, request: Request, source: Box, target: Box, now_s: float, computed_in_s: float) -> None:
        self.accept(request, target, self.whole(request))
        super().move(request, source, target, now_s, computed_in_s)


def naive_cached_pools(
    workload: Workload, config: EngineConfig, model: StepModel, duration_s: float = math.inf
) -> list[dict[str, Any]]:
    """As `naive_pools`, and with ``cached`` tokens."""
    kind = {"distserve": CachingDistserve, "splitwise": CachingSplitwise}[config.policy]
    return kind(workload, config, model).facts(duration_s)
