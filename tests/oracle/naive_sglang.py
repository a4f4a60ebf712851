"""SGLang's scheduler the slow way, with real tokens in a real radix tree, batches as lists, and every step on its own.

Written from SGLang's sources (see `plimsoll.engine.policies.sglang`), along their structure: a round of `Server.round`
is one of `event_loop_normal`. Where Plimsoll says that it deviates, so does this: no crash for want of memory, and the
ratio's product taken once for the batch instead of request by request.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np

from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from tests.oracle.models import with_longest
from tests.oracle.naive_radix import RadixCache, TreeNode
from tests.oracle.naive_sglang_adder import Adder


@dataclasses.dataclass(eq=False)
class Req:
    number: int
    prompt: list[Any]
    output: int
    max_new: int
    arrival_s: float = math.nan
    scheduled_s: float = math.nan
    first_hit: int | None = None
    preemptions: int = 0
    times_s: list[float] = dataclasses.field(default_factory=list)
    node: TreeNode | None = None
    in_tree: int = 0  # tokens of its own that the tree holds
    in_place: int = 0  # tokens whose KV is there
    last: int = 0  # index of a step's chunk end

    @property
    def tokens(self) -> list[Any]:
        return self.prompt + [("out", self.number, i) for i in range(len(self.times_s))]

    @property
    def finished(self) -> bool:
        return len(self.times_s) == self.output

    @property
    def to_generate(self) -> int:
        return self.max_new - len(self.times_s)


Chunk = tuple[Req, int, int, bool]
"""Who, from which token on, up to which, and whether the prompt is complete with it."""


@dataclasses.dataclass
class Batch:
    reqs: list[Req] = dataclasses.field(default_factory=list)
    is_extend: bool = False
    is_full: bool = False


class Server:
    def __init__(self, workload: Workload, config: EngineConfig, model: StepModel) -> None:
        self.workload, self.config, self.model = workload, config, model
        options = dict(config.options)
        self.page, self.capacity = config.block_size, config.num_blocks * config.block_size
        self.policy = options.get("schedule_policy", "fcfs")
        chunk = options.get("chunked_prefill_size", 0)
        default = max(config.max_num_batched_tokens // self.page, 1) * self.page
        self.chunk_size: int | None = None if chunk == -1 else chunk or default
        self.max_prefill_tokens = options.get("max_prefill_tokens", 16384)
        self.mixed = options.get("enable_mixed_chunk", False)
        self.clip = options.get("clip_max_new_tokens", 4096)
        own = workload.prompt_block_ids is not None or options.get("cache_own_blocks", False)
        self.cached = own and not options.get("disable_radix_cache", False)
        self.tree = RadixCache(self.page, itertools.count(1))
        self.rng = np.random.default_rng(options.get("random_seed", 0))
        self.initial = min(0.7 * options.get("schedule_conservativeness", 1.0), 1.0)
        self.least = min(self.initial * 0.14, 1.0)
        self.decay = (self.initial - self.least) / 600
        self.ratio = self.initial
        self.now_s = 0.0
        self.everybody: list[Req] = []
        self.arriving: list[Req] = []
        self.waiting: list[Req] = []
        self.running = Batch()
        self.last_batch: Batch | None = None
        self.last_chunked: Req | None = None
        self.chunked: Req | None = None
        self.chunks: list[Chunk] = []
        self.events: Counter[str] = Counter()

    # -- memory ----------------------------------------------------------------------------------------------------

    def holders(self) -> list[Req]:
        """Everybody with KV; those that ended have none."""
        return [req for req in self.everybody if req.in_place]

    def pages(self, tokens: int) -> int:
        return math.ceil(tokens / self.page)

    def available(self) -> int:
        own = sum(self.pages(req.in_place - req.in_tree) for req in self.holders())
        return self.capacity - self.tree.size() - own * self.page

    def make_room(self, tokens: int) -> None:
        if self.cached and self.available() < tokens:
            before = len(self.tree.nodes())
            self.tree.evict(tokens)
            self.events["tree evictions"] += before - len(self.tree.nodes())

    def lock(self, req: Req, node: TreeNode) -> None:
        for step in node.path():
            step.locks += 1
        req.node = node

    def unlock(self, req: Req) -> None:
        for step in req.node.path() if req.node else []:
            step.locks -= 1
        req.node = None

    def cache_unfinished(self, req: Req, tokens: list[Any]) -> None:
        if not self.cached:
            return
        full = len(tokens) // self.page * self.page
        known = self.tree.insert(tokens[:full])
        self.events["computed twice"] += known > req.in_tree
        node, length = self.tree.match(tokens[:full])
        assert length == full
        self.unlock(req)
        self.lock(req, node)
        req.in_tree = full

    def cache_finished(self, req: Req) -> None:
        if self.cached:
            tokens = req.tokens[:-1]
            self.tree.insert(tokens[: len(tokens) // self.page * self.page])
            self.unlock(req)
        req.in_place = req.in_tree = 0

    # -- one round -------------------------------------------------------------------------------------------------

    def round(self) -> list[Req]:
        """One round of the event loop, with a step if there is anything to do; returns whose answer is complete."""
        while self.arriving and self.arriving[0].arrival_s <= self.now_s:
            self.waiting.append(self.arriving.pop(0))
        self.last_batch = batch = self.next_batch()
        if batch is not None:
            return self.run(batch)
        self.ratio = self.initial
        return []

    def idle(self) -> bool:
        alive = [req for req in self.running.reqs if not req.finished]
        last = [] if self.last_batch is None else [req for req in self.last_batch.reqs if not req.finished]
        return not (alive or last or self.waiting or self.chunked)

    def next_batch(self) -> Batch | None:
        if self.chunked is not None:
            self.cache_unfinished(self.chunked, self.chunked.tokens[: self.chunked.in_place])
        if self.last_batch is not None and self.last_batch.is_extend:
            keep = [r for r in self.last_batch.reqs if not r.finished and r not in (self.chunked, self.last_chunked)]
            if len(keep) < len(self.last_batch.reqs):
                self.running.is_full = False
            self.running.reqs = self.running.reqs + keep
        self.last_chunked = None
        prompts = self.new_prefill_batch()
        if prompts is not None:
            return prompts
        if self.running.reqs:
            self.update_running()
        return self.running if self.running.reqs else None

    def update_running(self) -> None:
        running = self.running
        before = len(running.reqs)
        running.reqs = [req for req in running.reqs if not req.finished]
        running.is_extend = False
        if not running.reqs:
            running.is_full = False
            return
        if self.is_short(running.reqs):
            self.retract()
        else:
            self.ratio = max(self.ratio - self.decay, self.least)
        if len(running.reqs) < before:
            running.is_full = False
        if running.reqs:
            self.take_for_decodes(running.reqs)

    def take_for_decodes(self, reqs: list[Req]) -> None:
        self.make_room(len(reqs) * self.page)
        for req in reqs:
            req.in_place += 1

    def decode_need(self, reqs: list[Req]) -> int:
        return sum(self.page for req in reqs if req.in_place % self.page == 0)

    def is_short(self, reqs: list[Req]) -> bool:
        need = self.decode_need(reqs)
        self.make_room(need)
        return self.available() < need

    def retract(self) -> None:
        order = sorted(self.running.reqs, key=lambda req: (len(req.times_s), -len(req.prompt)), reverse=True)
        gone: list[Req] = []
        while order and (not gone or self.is_short(order)):
            req = order.pop()
            gone.append(req)
            self.unlock(req)
            req.in_place = req.in_tree = 0
            req.preemptions += 1
            self.make_room(len(order) * 20)
        self.running.reqs = [req for req in self.running.reqs if req not in gone]
        tokens = sum(len(req.times_s) for req in order) + 20 * len(order)
        self.ratio = min(1.0, tokens / (sum(req.max_new for req in order) + 1))
        self.waiting += gone
        self.events["retracted"] += len(gone)
        self.events["all retracted"] += not order

    # -- prompts ---------------------------------------------------------------------------------------------------

    def sort_queue(self) -> None:
        if self.policy == "lof":
            self.waiting.sort(key=lambda req: -req.max_new)
        elif self.policy == "random":
            self.waiting = [self.waiting[i] for i in self.rng.permutation(len(self.waiting)).tolist()]
        elif self.policy == "lpm" and self.cached and len(self.waiting) <= 128:
            self.sort_by_prefix()
        elif self.policy == "dfs-weight" and self.cached:
            self.sort_by_weight()

    def sort_by_prefix(self) -> None:
        others = RadixCache(1, itertools.count())
        lengths, later = {}, set()
        for req in self.waiting:
            lengths[req] = self.tree.match(req.tokens)[1]
            if lengths[req] <= 32:
                if others.match(req.tokens)[1] >= 32:
                    later.add(req)
                    self.events["deprioritised"] += 1
                else:
                    others.insert(req.tokens)
        before = list(self.waiting)
        self.waiting.sort(key=lambda req: math.inf if req in later else -lengths[req])
        self.events["sorted"] += self.waiting != before

    def sort_by_weight(self) -> None:
        ends = {req: self.tree.match(req.tokens)[0] for req in self.waiting}
        before = list(self.waiting)

        def below(node: TreeNode) -> int:
            return sum(ends[req] is node for req in before) + sum(below(child) for child in node.children.values())

        def visit(node: TreeNode) -> list[Req]:
            children = sorted(node.children.values(), key=lambda child: -below(child))
            return [req for child in children for req in visit(child)] + [r for r in before if ends[r] is node]

        self.waiting = visit(self.tree.root)
        self.events["sorted"] += self.waiting != before

    def new_prefill_batch(self) -> Batch | None:
        running = self.running
        if (running.is_full or not self.waiting) and self.chunked is None:
            return None
        seats = max(self.config.max_num_seqs // self.model.num_stages, 1) - len(running.reqs)
        if seats <= 0 and self.chunked is None:
            running.is_full = True
            return None
        self.sort_queue()
        adder = Adder(self)
        if self.chunked is not None:
            if not adder.add_chunked(self.chunked):
                self.events["chunk waits"] += 1
                return None
            self.chunked = self.chunked if self.chunked.last < len(self.chunked.tokens) else None
        for req in list(self.waiting):
            if len(adder.can_run) >= seats:
                running.is_full = True
                break
            result = adder.add_one(req)
            if result != "continue":
                if result == "no token":
                    running.is_full = True
                    self.events["no token"] += 1
                break
        if not adder.can_run:
            return None
        self.waiting = [req for req in self.waiting if req not in adder.can_run]
        if adder.new_chunked is not None:
            assert self.chunked is None
            self.chunked = adder.new_chunked
        self.last_chunked = self.chunked
        return self.prepared(adder.can_run)

    def prepared(self, can_run: list[Req]) -> Batch:
        """The memory of the batch, and of the decodes that run along."""
        tokens = sum(req.last - req.in_place for req in can_run)
        self.make_room(tokens + (len(can_run) * self.page if self.page > 1 else 0))
        for req in can_run:
            if math.isnan(req.scheduled_s):
                req.scheduled_s = self.now_s
        batch = Batch(list(can_run), is_extend=True)
        self.chunks = [(req, req.in_place, req.last, req.last == len(req.tokens)) for req in can_run]
        for req in can_run:
            req.in_place = req.last
        if self.mixed and self.running.reqs:
            self.running.reqs = [req for req in self.running.reqs if not req.finished]
            if self.running.reqs:
                self.take_for_decodes(self.running.reqs)
                batch.reqs = batch.reqs + self.running.reqs
                self.events["mixed"] += 1
            self.running = Batch(is_full=self.running.is_full)
        elif self.running.reqs:
            self.events["alone"] += 1
        return batch

    # -- results ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> list[Req]:
        chunks = self.chunks if batch.is_extend else []
        assert self.available() >= 0
        self.now_s += self.seconds(chunks, batch)
        return self.land(batch, chunks, self.now_s)

    def land(self, batch: Batch, chunks: list[Chunk], end_s: float) -> list[Req]:
        """The tokens of a batch; returns whose answer is complete."""
        complete = {req: done for req, _, _, done in chunks}
        finished = []
        for req in batch.reqs:
            if not complete.get(req, True):
                self.events["part"] += 1
                continue
            tokens = req.tokens
            req.times_s.append(end_s)
            if req.finished:
                self.cache_finished(req)
                finished.append(req)
            elif req in complete:
                self.cache_unfinished(req, tokens)
        return finished

    def seconds(self, chunks: list[Chunk], batch: Batch) -> float:
        prompts = [chunk[0] for chunk in chunks]
        decodes = [req for req in batch.reqs if req not in prompts]

        def folded(position: int) -> int:
            return sum(w * (position if x is None else min(position, x)) for w, x in self.model.attention_layers)

        shape = (
            sum(last - first for _, first, last, _ in chunks),
            len(chunks),
            sum(folded(position + 1) for _, first, last, _ in chunks for position in range(first, last)),
            sum(folded(first) for _, first, _, _ in chunks),
            sum(done for _, _, _, done in chunks),
            len(decodes),
            sum(folded(req.in_place) for req in decodes),
        )
        return self.model.step_s(*with_longest(self.model, shape, [req.in_place for req in decodes]))
