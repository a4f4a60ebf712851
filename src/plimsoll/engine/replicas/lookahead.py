"""A replica that runs its steps ahead of the router, and takes them back where an arrival comes in between.

A router that looks at its replicas must see them as they are at every arrival, of which most go elsewhere. Advancing
all replicas to every arrival would cut each stretch of steps into as many pieces as there are arrivals. But what a
router sees changes only when a request ends, and when that will be is known: so a stretch runs up to the start of the
step in which the next request may end. An arrival that is sent here meanwhile cuts the stretch where it would have
ended:

    ends   |----|----|----|----|----|----|        a stretch, run ahead; the next step brings somebody's last token
                      ^ arrival
           |----|----|----|                       what is left of it: up to the end of the step under way

Steps are pure additions left to right, so what is run again has the same bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.replica import INFINITE, SHORT_OF_BLOCKS, Replica


class LookaheadReplica(Replica):
    """A `Replica` for clusters whose router looks; needs a lane without attention windows, and no observer.

    Attributes:
        ahead_from, ahead_to: the steps of the last stretch, some of which may have been run ahead.
        ahead_tokens: KV tokens that each of them put in place.
        ahead_chunk: whose prompt they computed, and by how many tokens each; (-1, 0) where they only decode.
        known: for each request its tokens as a router counts them; None where nobody asks.
        done_tokens: `known` of the requests that ended here, altogether.
    """

    ahead_from: int = 0
    ahead_to: int = 0
    ahead_tokens: int = 0
    done_tokens: int = 0
    ahead_chunk = (-1, 0)
    known: Sequence[int] | None = None
    _may_take_back = False

    def _decode(self, plan: StepPlan, until_s: float) -> None:
        """As the parent's, but up to the step that brings the next last token, however late that is."""
        del until_s
        lane = self.lane
        to_finish = lane.steps_to_finish()
        steps = plan.holds if plan.holds < to_finish else to_finish
        steps = lane.steps_within(self.free_blocks, steps)
        if not steps:
            raise AssertionError(SHORT_OF_BLOCKS)
        if steps == to_finish > 1:
            steps -= 1
        self.ahead_from = begin = len(lane.ends)
        self.ahead_tokens, self._may_take_back = lane.num, plan.wakes_on_arrival
        self.ahead_chunk = (-1, 0)
        stop_s = self.next_arrival_s if plan.wakes_on_arrival else INFINITE
        self.now_s = lane.decode(self.model, self.now_s, steps, stop_s)
        self.ahead_to = len(lane.ends)
        self.free_blocks -= lane.blocks_for(begin, self.ahead_to - begin)
        if lane.due <= self.ahead_to:
            self._take_finished()
            self.ahead_from = self.ahead_to

    def _part_way_steps(self, plan: StepPlan, until_s: float, stop_at_finish: bool) -> None:
        del stop_at_finish
        begin = len(self.lane.ends)
        calm = self.lane.due - begin - 1  # steps in which nobody can end
        if calm < 1 or plan.wakes_on_arrival:
            super()._part_way_steps(plan, until_s, True)
            return
        holds = plan.holds if plan.holds < calm else calm
        self.ahead_chunk = plan.chunks[0]
        self.ahead_from, self.ahead_tokens, self._may_take_back = begin, self.lane.num + self.ahead_chunk[1], False
        super()._part_way_steps(StepPlan(plan.chunks, holds=holds), INFINITE, True)
        self.ahead_to = len(self.lane.ends)

    def push(self, requests: Sequence[int], arrival_s: Sequence[float]) -> None:
        """Hand over requests, as before; what was run past the first of them is taken back if it would see them."""
        if self._may_take_back and requests and self.now_s > arrival_s[0]:
            self._take_back(arrival_s[0])
        super().push(requests, arrival_s)

    def steps_ahead(self, now_s: float) -> int:
        """Steps that were run, but do not begin before `now_s`."""
        ends = self.lane.ends
        num = len(ends)
        if self.now_s <= now_s or num != self.ahead_to or num <= self.ahead_from:
            return 0
        return max(0, num - bisect_left(ends, now_s, self.ahead_from) - 1)

    def tokens_in_place(self) -> int:
        """KV tokens of the running requests, when all is over that was run ahead."""
        lane = self.lane
        return lane.read // lane.full_weight - lane.num + sum(self.prefilling.values())

    def tokens_ahead(self, now_s: float) -> int:
        """How many of them were put in place in steps that do not begin before `now_s`."""
        if self.now_s <= now_s:
            return 0
        ends = self.lane.ends
        num = len(ends)
        if num != self.ahead_to or num <= self.ahead_from:
            return 0
        return max(0, num - bisect_left(ends, now_s, self.ahead_from) - 1) * self.ahead_tokens

    def _take_finished(self) -> None:
        super()._take_finished()
        if self.known is not None:
            for request in self.last_finished:
                self.done_tokens += self.known[request]

    def _take_back(self, now_s: float) -> None:
        lane = self.lane
        dropped = self.steps_ahead(now_s)
        if not dropped:
            return
        kept = len(lane.ends) - dropped
        self.free_blocks += lane.blocks_for(kept, dropped)
        del lane.ends[kept:]
        lane.read -= lane.grow * dropped
        self.ahead_to = kept
        self.now_s = lane.ends[-1]
        if self.log is not None:
            times, _, _, used = self.log
            times[-1] = self.now_s
            used[-1] = self.num_blocks - self.free_blocks


def can_look_ahead(replica: Replica) -> bool:
    """Whether a replica like this one may be of this file's kind instead."""
    layers = replica.layers
    return type(replica) is Replica and replica.observer is None and all(window is None for _, window in layers)
