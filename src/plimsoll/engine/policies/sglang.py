"""SGLang: prompts first, in steps of their own, on the longest cached prefix; a guess of what answers will need.

1. While the batch is not full, requests are taken from the head of the queue (`QueueOrder`: first come, first served,
   or the longest cached prefix first) until the tokens of a chunk, seats or memory run out. The last may be cut: its
   next chunks come first. Prompts run alone, and all decodes wait, unless `enable_mixed_chunk` lets them run along.
2. A request is taken if its uncached tokens, what it may still generate (`clip_max_new_tokens` at most) and a page are
   less than the memory that is free or could be evicted, less what the others may still generate times the new token
   ratio. The ratio falls with every decode step, from 0.7 to 0.098 in 600 steps.
3. Once memory or seats have refused somebody, the batch is full: nobody is tried until a request has ended. One that
   ends in a decode step keeps its seat until the next decode step begins.
4. If the next decode step lacks memory, requests are retracted: those with the fewest generated tokens first, among
   them the longest prompt, at least one. They go to the back of the queue, and the ratio becomes what the others have
   generated, and 20 tokens each, over what they may.
5. An idle server starts again with the first ratio. With pipeline stages each has a batch of its own, with its share
   of the seats.
6. Data-parallel ranks (``enable_dp_attention``) get requests in turn and share `chunked_prefill_size`. The first ratio
   is 0.3 of what it would be. A rank without work runs along; only when all are idle they start again with that.

Source: https://github.com/sgl-project/sglang, python/sglang/srt of 0.5: managers/schedule_policy.py at 00550cd1
(``SchedulePolicy``, ``PrefillAdder``), scheduler.py (``get_next_batch_to_run``, ``get_new_batch_prefill``,
``update_running_batch``, ``self_check_during_idle``, ``prepare_mlp_sync_batch``), schedule_batch.py
(``retract_decode``), data_parallel_controller.py (``round_robin_scheduler``), and server_args.py for the defaults:
fcfs, 16384 prefill tokens, chunks by the GPU's memory (in the catalogue: tokens of a step).

NOTE: the overlap schedule, which learns of an end one step later, is simulated as if it were off. Prompt, answer and a
page must fit; a request that does not is rejected, one that could generate more is told less. Where SGLang would run
out of memory with one request left, or with a chunk under way, the request is retracted and the chunk waits. A mixed
step sets whole pages aside for its decodes. Without content ids only retracted requests could find anything: then
blocks are only counted, as with SGLang's radix cache off, unless `cache_own_blocks` asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.core.step import FULL_ATTENTION
from plimsoll.engine.general.plan import UNLIMITED, Chunk, GeneralPlan, GeneralPolicy
from plimsoll.engine.general.radix import RadixReplica
from plimsoll.engine.requests import NEVER, Requests
from plimsoll.engine.sglang_budget import PrefillBudget, take_at_once
from plimsoll.engine.sglang_rules import RETRACT_DECODE_STEPS, QueueOrder, check_options, chunk_size, first_ratio

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from plimsoll.core.step import StepModel
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.policy import Policy
    from plimsoll.engine.replicas.replica import Observer, Replica


@mypyc_attr(allow_interpreted_subclasses=True)
class Sglang(GeneralPolicy):
    """SGLang's scheduler.

    Args:
        config: seats (``max_running_requests``), block size (``page_size``), tokens of a chunk.
        schedule_policy: ``fcfs``, ``lpm`` (first come, first served with more than 128 waiting), ``dfs-weight``,
            ``lof`` (longest output first) or ``random``; without a cache the second and third are the first.
        chunked_prefill_size: prompt tokens of a step, of all ranks; 0 is `max_num_batched_tokens`, -1 whole prompts.
        max_prefill_tokens: prompt tokens of a step after which nobody else is taken.
        enable_mixed_chunk: whether decodes run along with prompts.
        schedule_conservativeness: factor of the first new token ratio.
        clip_max_new_tokens: most tokens to come that one request is taken to need.
        disable_radix_cache: no cache.
        cache_own_blocks: a cache also for workloads without content ids.
        random_seed: of ``random``.

    Raises:
        InputError: a chunk that is not a whole number of blocks; a factor below 0.
        UnknownNameError: an unknown `schedule_policy`.
    """

    memory = "pages"
    pipelined = True
    steps_together = True

    def __init__(
        self,
        config: EngineConfig,
        *,
        schedule_policy: str = "fcfs",
        chunked_prefill_size: int = 0,
        max_prefill_tokens: int = 16384,
        enable_mixed_chunk: bool = False,
        schedule_conservativeness: float = 1.0,
        clip_max_new_tokens: int = 4096,
        disable_radix_cache: bool = False,
        cache_own_blocks: bool = False,
        random_seed: int = 0,
    ) -> None:
        check_options(schedule_policy, schedule_conservativeness, max_prefill_tokens, clip_max_new_tokens, random_seed)
        self.size, self.seats = config.block_size, config.max_num_seqs
        self.in_ranks, self._next_rank = config.ranks > 1, 0
        self.chunk_size = chunk_size(config, chunked_prefill_size)
        self.max_prefill_tokens, self.clip, self.mixed = max_prefill_tokens, clip_max_new_tokens, enable_mixed_chunk
        self.order_name, self.random_seed = schedule_policy, random_seed
        self.caching, self.cache_own_blocks = not disable_radix_cache, cache_own_blocks
        self.ratio = first_ratio(config, schedule_conservativeness)
        self.most_new: list[int] = []
        self.clipped_new: list[int] = []
        self.spans: list[int] = []
        self.ghosts: list[int] = []
        self.tree: RadixReplica | None = None
        self.order: QueueOrder | None = None
        self.turn: dict[int, int] | None = None
        self._next_turn = self._first_turn = self._mark = self._spans = self._batch = 0
        self._batches: list[tuple[bool, list[int], bool, int, int]] = [(False, [], False, 0, 0)]
        self.full = self._decoding = self.is_cut = self._slow = self._is_plain = False
        self.room_tokens = 0.0  # at the last step: free, and not taken to be needed
        self._budget = PrefillBudget(self)
        self._prompts = GeneralPlan(decode=self.mixed, wakes_on_arrival=False)
        self._until_arrival = GeneralPlan(holds=UNLIMITED)
        self._until_finish = GeneralPlan(holds=UNLIMITED, wakes_on_arrival=False)
        self._one_step = GeneralPlan(wakes_on_arrival=False)

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whose prompt, answer and a page are less than the memory: others would wait for ever."""
        longest = np.array(requests.prompt) + np.array(requests.output)
        return np.asarray(longest + config.block_size < config.num_blocks * config.block_size)

    def make_replica(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None, /
    ) -> Replica:
        """A replica with a radix tree where it can find anything."""
        prompt, output = np.array(requests.prompt), np.array(requests.output)
        room = config.num_blocks * config.block_size - config.block_size - 1 - prompt
        most_new = np.maximum(np.minimum(requests.told_output, room), output)
        self.most_new, self.spans = most_new.tolist(), (prompt + most_new).tolist()
        self.clipped_new = np.minimum(most_new, self.clip).tolist()
        self._slow = bool(most_new.max() > self.clip) or model.attention_layers != FULL_ATTENTION
        if self.order_name != "fcfs":
            self.order = QueueOrder(self.order_name, self.most_new, self.random_seed)
        cached = self.caching and (self.cache_own_blocks or requests.workload.prompt_block_ids is not None)
        if cached or self.mixed:
            self.turn = {}
        self._is_plain = not (cached or self.mixed or self.order)
        self._until_finish.then_once = model.num_stages == 1
        if model.num_stages > 1:
            self._is_plain = False
            self.seats = max(self.seats // model.num_stages, 1)
            self._batches = [(False, [], False, 0, 0) for _ in range(model.num_stages)]
        if not cached:
            return super().make_replica(requests, config, model, number, observer)
        self.tree = RadixReplica(requests, config, model, cast("Policy", self), number, observer)
        return self.tree

    def goes_on(self) -> None:
        """The next decode step begins without those who ended in the last one."""
        self.ghosts.clear()
        self.full = False

    def deal(self, ranks: Sequence[GeneralState], waiting: deque[int], /) -> None:
        """To one rank after the other."""
        while waiting:
            ranks[self._next_rank].waiting.append(waiting.popleft())
            self._next_rank = (self._next_rank + 1) % len(ranks)

    def idled(self) -> None:
        """No rank has anything to do, so what the ratio has lost since it was looked at does not count."""
        self._decoding = False
        self.ratio.reset()

    def entered(self, batch: int, /) -> None:
        """Each stage has a batch of its own: whether it is full, who still has a seat in it, and what it did last."""
        self._batches[self._batch] = (self.full, self.ghosts, self._decoding, self._mark, self._spans)
        self.full, self.ghosts, self._decoding, self._mark, self._spans = self._batches[batch]
        self._batch = batch

    # -- the plan --------------------------------------------------------------------------------------------------

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Prompts if any can be taken, else decodes."""
        lane = view.lane
        if self._decoding:
            self._decoding = False
            self.ratio.decay(len(lane.ends) - self._mark)
        if not view.seated and view.now_s > view.last_end_s:
            self._went_idle()
        if view.prefilling or (view.waiting and not self.full):
            if self._is_plain:
                chunks = take_at_once(self, view)
                if chunks:
                    return self._plain_prompt_step(view, chunks)
            else:
                chunks = self._take_prompts(view)
                if chunks:
                    return self._prompt_step(view, chunks)
        if self.ghosts:
            self.ghosts.clear()
            self.full = False
        if self.tree is not None:
            is_short = self._is_short(view)
        else:
            is_short = view.free_blocks < lane.hist[-len(lane.ends) % self.size]
        retracted = self._retract(view) if is_short else ()
        if not lane.num:
            return self._without_decodes(view, retracted)
        self._decoding, self._mark = True, len(lane.ends)
        if retracted:
            self._mark += 1
            return GeneralPlan(evicted=retracted)
        if len(self._batches) > 1:  # each step is planned, and others are before this one ends
            self._mark += 1
            self.ratio.decay(1)
        if self.full:
            return self._until_finish
        return self._one_step if view.waiting else self._until_arrival

    def _without_decodes(self, view: GeneralState, retracted: tuple[int, ...]) -> GeneralPlan:
        """A round of the scheduler in which nobody decodes, and the next, which may take prompts again."""
        self.full = False
        if self.in_ranks:
            return GeneralPlan(decode=False, evicted=retracted)
        if len(view.seated) == len(view.prefilling):
            self._went_idle()
        chunks = self._take_prompts(view)
        if chunks:
            return self._prompt_step(view, chunks, retracted)
        self.full = False
        assert len(view.seated) > len(view.prefilling), "an empty server can take any request that it accepts"
        return GeneralPlan(decode=False, evicted=retracted)

    def _went_idle(self) -> None:
        """A round of the scheduler in which nothing runs."""
        self.ghosts.clear()
        self.full = False
        self._batches = [(False, [], decoding, mark, spans) for _, _, decoding, mark, spans in self._batches]
        if not self.in_ranks:
            self.ratio.reset()

    def _prompt_step(self, view: GeneralState, chunks: list[Chunk], retracted: tuple[int, ...] = ()) -> GeneralPlan:
        """A step of chunks. Who completes a prompt joins the batch behind the others; in a mixed step, before them."""
        joining = [request for request, _ in (chunks[:-1] if self.is_cut else chunks)]
        for request in joining:
            self._spans += self.spans[request]
        if self.turn is not None:
            self._take_turns(view, joining, self.turn)
        if self.mixed:
            self.ghosts.clear()
        if self.is_cut:
            self.full = False
        if retracted:
            return GeneralPlan(chunks, decode=self.mixed, wakes_on_arrival=False, evicted=retracted)
        plan = self._prompts
        plan.chunks, plan.holds = chunks, 1
        return plan

    def _plain_prompt_step(self, view: GeneralState, chunks: list[Chunk]) -> GeneralPlan:
        """The same in the common case, with the steps in which a prompt gets a whole chunk, all else alike."""
        plan, spans = self._prompts, self.spans
        plan.chunks, plan.holds = chunks, 1
        for request, _ in chunks:
            self._spans += spans[request]
        if self.is_cut:
            self.full = False
            request, tokens = chunks[-1]
            self._spans -= spans[request]
            chunk = self.chunk_size
            if tokens == chunk:
                left: int = view.requests.target[request] - view.prefilling.get(request, 0)
                plan.holds = max(min((left - 1) // chunk, int(self.room_tokens // chunk)), 1)
        return plan

    def _take_turns(self, view: GeneralState, joining: list[int], turn: dict[int, int]) -> None:
        """Give those who complete their prompt a place in the batch."""
        if self.mixed and view.lane.num:
            self._first_turn -= len(joining)
            place = self._first_turn
        else:
            place = self._next_turn
            self._next_turn += len(joining)
        for request in joining:
            turn[request] = place
            place += 1

    def released(self, view: GeneralState, request: int, /) -> None:
        """One that ended in a decode step keeps its seat for now; one that ended in a prompt step leaves it at once."""
        self._spans -= self.spans[request]
        if self.turn is not None:
            self.turn.pop(request, None)
        if view.requests.last_step[request] == NEVER:
            return  # it was retracted
        if self._decoding:
            self.ghosts.append(request)
        else:
            self.full = False

    # -- prompts ---------------------------------------------------------------------------------------------------

    def _take_prompts(self, view: GeneralState) -> list[Chunk]:
        """The next chunk of the prompt under way, and requests from the head of the queue."""
        prefilling, waiting = view.prefilling, view.waiting
        seats = self.seats - view.lane.num - len(self.ghosts)
        if seats <= 0 and not prefilling:
            self.full = True
            return []
        if self._is_plain:
            return take_at_once(self, view)
        if self.order is not None and waiting:
            self.order.apply(waiting, view.requests, self.tree)
        budget = self._budget
        budget.begin(view)
        self.is_cut = False
        chunks: list[Chunk] = []
        if prefilling:
            ((request, done),) = prefilling.items()
            left = view.requests.target[request] - done
            tokens = budget.take_next_chunk(left, -done % self.size, self.clipped_new[request])
            if tokens <= 0:
                return []
            chunks.append((request, tokens))
            self.is_cut = tokens < left
        while waiting:
            if len(chunks) >= seats:
                self.full = True
                break
            request = waiting[0]
            tokens = self._take_one(view, request, budget, not chunks)
            if not tokens:
                self.full = self.full or budget.lacks_memory
                break
            chunks.append((request, tokens))
            if budget.is_spent():
                self.full = self.full or budget.lacks_memory
                break
        return chunks

    def _take_one(self, view: GeneralState, request: int, budget: PrefillBudget, first: bool) -> int:
        """Take the head of the queue, if it fits; returns the tokens of its first chunk."""
        requests, tree = view.requests, self.tree
        uncached = requests.target[request]
        to_generate = self.clipped_new[request]
        if requests.preemptions[request]:
            to_generate = self.left_to_generate(view, request)
        if tree is None:
            tokens = budget.take(uncached, to_generate, self.clipped_new[request], first)
            if not tokens:
                return 0
            view.seat(request)
        else:
            node = tree.match(request, uncached - 1)
            uncached -= node.high * self.size
            locked = tree.tree.unlocked_pages(node) * self.size
            tokens = budget.take(uncached, to_generate, self.clipped_new[request], first, locked)
            if not tokens:
                return 0
            tree.seat_on(request, node)
        self.is_cut = tokens < uncached
        return tokens

    def left_to_generate(self, view: GeneralState, request: int) -> int:
        """What it may generate from now on, as far as it counts."""
        return min(self.most_new[request] - view.generated(request), self.clip)

    def likely_tokens(self, view: GeneralState) -> float:
        """What those who run are taken to need yet."""
        if self._slow:
            running = [request for request in view.running if request not in view.prefilling]
            tokens = sum(self.left_to_generate(view, request) for request in running)
        else:
            tokens = self._spans - view.lane.read
        output = view.requests.output
        for request in self.ghosts:
            tokens += min(self.most_new[request] - output[request], self.clip)
        return self.ratio.now * tokens

    # -- retraction ------------------------------------------------------------------------------------------------

    def _is_short(self, view: GeneralState) -> bool:
        """Whether the next decode step lacks memory; what it evicts for itself is evicted now."""
        lane = view.lane
        need = lane.hist[-len(lane.ends) % self.size]
        if self.tree is not None:
            self.tree.make_room(need)
        return view.free_blocks < need

    def _retract(self, view: GeneralState) -> tuple[int, ...]:
        """Take the memory of as many as it takes for the others to go on; at least one."""
        prompt = view.requests.prompt
        batch = [request for request in view.running if request not in view.prefilling]
        if self.turn is not None:
            batch.sort(key=self.turn.__getitem__)
        batch.sort(key=lambda request: (view.generated(request), -prompt[request]), reverse=True)
        retracted: list[int] = []
        while batch and (not retracted or self._is_short(view)):
            request = batch.pop()
            view.evict((request, "recompute", "back"))
            retracted.append(request)
            if self.tree is not None:
                self.tree.make_room(-(-len(batch) * RETRACT_DECODE_STEPS // self.size))
        tokens = sum(view.generated(request) for request in batch) + RETRACT_DECODE_STEPS * len(batch)
        self.ratio.start(min(1.0, tokens / (sum(self.most_new[request] for request in batch) + 1)))
        self.full = False
        return tuple(retracted)
