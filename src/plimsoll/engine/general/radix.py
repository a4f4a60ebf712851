"""A replica of the general kernel whose prompts and answers stay in a radix tree: SGLang's memory.

Free blocks are those that neither the tree nor a request holds; before a step takes blocks, leaves of the tree are
evicted if too few are free. A request holds a path in the tree, and blocks of its own for what was computed since: they
go into the tree when its prompt, a chunk of it, or the answer is complete. What two prompts of a step have computed
twice is freed then.

    tree     [ 0 … 511 ][ 512 … 799 ]                 locked
    own                              [ 800 … 1010 ]   tokens generated since

Sources at https://github.com/sgl-project/sglang, python/sglang/srt/mem_cache: radix_cache.py at 006b0e3d
(``cache_unfinished_req``, ``cache_finished_req``) and common.py of 0.5 (``evict_from_tree_cache``,
``alloc_for_extend``, ``alloc_for_decode``): what is evicted is as much as a step takes, however much is free, and a
decode step with pages of several tokens asks for a page for each of its requests.
"""

from __future__ import annotations

from collections.abc import Collection

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.general.plan import GeneralPlan
from plimsoll.engine.general.replica import GeneralReplica
from plimsoll.engine.policy import Chunk, Policy
from plimsoll.engine.prefix.contents import Chain, Contents
from plimsoll.engine.prefix.radix_tree import Node, RadixTree
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.replica import NOBODY, SHORT_OF_BLOCKS, Observer
from plimsoll.engine.requests import Requests


class RadixReplica(GeneralReplica):
    """A `GeneralReplica` over a `RadixTree`.

    The policy seats requests itself while it plans (`seat_on`), since what the next one finds depends on it, and keeps
    their order in the batch, by which they finish, in its `turn`.

    Raises:
        InputError: the block size does not go with the workload's content ids.
    """

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer)
        self.tree = RadixTree()
        if requests.contents is None:
            requests.contents = Contents(requests.workload, config.block_size)
        self.contents = requests.contents
        self._chains: dict[int, Chain] = {}
        self._nodes: dict[int, Node] = {}
        self._turn: dict[int, int] = getattr(policy, "turn", {})

    # -- what the policy calls while it plans ----------------------------------------------------------------------

    def match(self, request: int, tokens: int) -> Node:
        """The cached part of the first `tokens` tokens of a request, which is touched."""
        chain = self._chains.get(request)
        if chain is None:
            chain = self._chains[request] = self.contents.chain(request)
        return self.tree.match(chain, tokens // self.block_size)

    def seat_on(self, request: int, node: Node) -> None:
        """Let the head of the queue run, on the cached part that ends with `node`."""
        cached = node.high * self.block_size
        self.seat(request, cached)
        if not self.requests.preemptions[request]:
            self.requests.cached[request] = cached
        self.tree.lock(node, self.tree.root)
        self._nodes[request] = node

    def make_room(self, blocks: int) -> None:
        """Evict as many blocks as a step takes, if fewer are free."""
        if self.free_blocks < blocks:
            self.free_blocks += self.tree.evict(blocks)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _decode_run(self, plan: GeneralPlan, until_s: float) -> None:
        """A stretch of decode-only steps, to the next event. There is room for the first."""
        lane, size = self.lane, self.block_size
        if plan.holds == 1 and self.observer is None:
            self._decode_once(lane)
            return
        steps = 1 if self.observer is not None else min(lane.steps_to_finish(), plan.holds)
        first = len(lane.ends)
        stop_s = until_s
        if plan.wakes_on_arrival and self.next_arrival_s < stop_s:
            stop_s = self.next_arrival_s
        while steps:
            begin, num = len(lane.ends), lane.num
            need = lane.hist[-begin % size]
            if self.free_blocks < num:  # else they suffice for `need`, too
                self.make_room(need)
                if self.free_blocks < need:
                    if begin == first:
                        raise AssertionError(SHORT_OF_BLOCKS)
                    break  # somebody must give way
                self.make_room(num)
            if self.tree.evictable:
                fit = min(lane.steps_within(self.free_blocks - num, steps) + 1, steps)
            else:
                fit = lane.steps_within(self.free_blocks, steps)
            if self.observer is not None:
                self.free_blocks -= need
                self.observer.scheduled(self, plan, self.now_s)
                self.free_blocks += need
            self.now_s = lane.decode(self.model, self.now_s, fit, stop_s)
            done = len(lane.ends) - begin
            self.free_blocks -= lane.blocks_for(begin, done)
            steps -= done
            if self.now_s >= stop_s:
                break
        if lane.due <= len(lane.ends):
            self._take_finished()
        if self.observer is not None:
            self.observer.stepped(self, list(self.last_finished), self.now_s)

    def calm_steps(self, plan: GeneralPlan) -> int:
        """As without a tree, as long as nothing must be evicted."""
        lane, num = self.lane, self.lane.num
        steps = min(lane.steps_to_finish(), plan.holds)
        if self.free_blocks < num:
            return 1
        if self.tree.evictable:
            return min(lane.steps_within(self.free_blocks - num, steps) + 1, steps)
        return lane.steps_within(self.free_blocks, steps)

    def _decode_once(self, lane: Lane) -> None:
        """One decode-only step."""
        self.make_room(lane.hist[-len(lane.ends) % self.block_size])
        self.make_room(lane.num)
        super()._decode_once(lane)

    def _then_once(self, until_s: float) -> None:
        """As without a tree, with leaves evicted first, as the policy would."""
        self.make_room(self.decode_need)
        super()._then_once(until_s)

    def _chunk_step(self, plan: GeneralPlan) -> None:
        """As without a tree, and then what has been computed of a prompt under way can be found."""
        super()._chunk_step(plan)
        for request, tokens in self.prefilling.items():
            self._keep(request, tokens)

    def _place(self, chunks: list[Chunk], together: bool) -> tuple[int, int, int, list[int]]:
        """Evict what prompts and, with `together`, decodes lack, and let them take their blocks."""
        size, lane = self.block_size, self.lane
        self.make_room(-(-(sum(chunk for _, chunk in chunks) + (len(chunks) * size if size > 1 else 0)) // size))
        need = lane.hist[-len(lane.ends) % size] if together else 0
        placed = super()._place(chunks, together)
        if together and lane.num:
            self.free_blocks += need
            self.make_room(lane.num)
            self.free_blocks -= need
        if self.pipelined:  # what the next batch may go on with can be found at once
            for request, tokens in self.prefilling.items():
                self._keep(request, tokens)
        return placed

    def _serve_decodes(self) -> None:
        """Evict what the decodes lack, and let them take their blocks."""
        self.make_room(self.lane.num)
        super()._serve_decodes()

    def _hand_out(self, end_s: float, complete: list[int]) -> None:
        """The end of a step in which everybody worked: prompts go into the tree first, in their order."""
        lane, requests = self.lane, self.requests
        lane.ends.append(end_s)
        lane.read += lane.grow
        if lane.crossings:
            lane.settle()
        for request in complete:
            left = requests.left[request] - 1
            lane.start(request, requests.target[request], left)
            if left:
                self._keep(request, requests.target[request])
            else:
                self._let_go(request)
        if lane.due <= len(lane.ends):
            self._finish(complete)

    def _hand_out_first(self, end_s: float, complete: list[int]) -> None:
        """The end of a step of chunks alone."""
        for request in complete:
            if self.requests.left[request] > 1:
                self._keep(request, self.requests.target[request])
            else:
                self._let_go(request)
        super()._hand_out_first(end_s, complete)

    # -- memory ----------------------------------------------------------------------------------------------------

    def held_blocks(self, request: int) -> int:
        """KV blocks that a running request uses, those it shares included."""
        return -(-self.cached_tokens(request) // self.block_size)

    def _keep(self, request: int, tokens: int) -> None:
        """Put the full blocks of the first `tokens` tokens into the tree, and go on using them there."""
        before = self._nodes[request]
        high = before.high
        node, known = self.tree.keep(before, self._chains[request], tokens // self.block_size)
        self.free_blocks += known - high
        self._nodes[request] = node

    def _let_go(self, request: int) -> None:
        """Put all full blocks into the tree, and stop using them."""
        before, tokens, size = self._nodes.pop(request), self.requests.final[request], self.block_size
        full = tokens // size
        node, known = self.tree.extend(before, self._chains.pop(request), full)
        self.free_blocks += known - before.high + -(-tokens // size) - full
        self.tree.unlock(before)
        if not node.locks and not node.num_children:
            self.tree.list_leaf(node)

    def _take_memory(self, request: int) -> None:
        """Free what a request that gives way has of its own; its part of the tree may be evicted from now on."""
        node = self._nodes.pop(request)
        self.free_blocks += -(-self.cached_tokens(request) // self.block_size) - node.high
        self.tree.unlock(node)

    def _give_back(self, request: int) -> int:
        """None: they were let go of when its tokens went into the tree."""
        del request
        return 0

    def _take_finished(self) -> None:
        self._finish(NOBODY)

    def _finish(self, gone: Collection[int]) -> None:
        """Let go of everybody whose last token is there, those in `gone` apart: they have been let go of."""
        taken, _ = self.lane.take_finished()
        if len(taken) > 1:
            taken.sort(key=self._turn.__getitem__)
        for request in taken:
            if request not in gone:
                self._let_go(request)
        self._leave(taken)
