"""The contract of a scheduling policy: the rule of one serving engine, in one file.

A policy looks at a replica and says what the next step works on. It changes nothing: the replica carries the plan out.
What it may look at is the read side of `plimsoll.engine.replicas.replica.Replica`:

    waiting, running, prefilling    queues of request numbers, in the engine's order (running: those that this step
                                    may work on; with pipeline stages others are in flight)
    seated                          requests that hold a seat, in flight or not
    lane                            the decode set: `num`, `blocks_for(1)`
    free_blocks, num_blocks         KV memory
    requests.target                 tokens that a prefill must compute
    cached_tokens(r), held_blocks(r)  KV tokens in place, and blocks held, of a running request

`prefilling` maps a part-way prefill to its tokens in place; a prefill leaves it in the step that ends the prompt.

A policy with a true attribute `in_turn` promises that it lets requests in strictly from the head of the queue, that its
plans change nothing, and that they do not depend on how many wait: then an arrival behind somebody whom a plan leaves
waiting would not have changed that plan, and a cluster may run the replica ahead (`plimsoll.engine.fleets.outlook`).
Nor is it asked where all decode and nobody waits: everybody gets a token a step, as long as blocks and the budget
suffice.

A policy that needs another kind of replica has a method `make_replica(requests, config, model, number, observer)`,
which returns one, or None for the usual one.

A plan holds until an event: an arrival (if the plan says so), a finish, the end of a prefill, a block shortage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from plimsoll.engine.replicas.replica import Replica

Chunk = tuple[int, int]
UNLIMITED = (1 << 30) - 1
"""As many steps or tokens as there are; among the numbers that Python compares on its fast path."""


class StepPlan:
    """What the next step works on. Made a million times, hence a plain class with slots.

    Attributes:
        chunks: (request, tokens) of every prefill chunk, in scheduling order; a waiting request in it is admitted.
        preempt: running requests whose KV is dropped before the step, in the order of eviction; each goes to the front
            of the waiting queue and recomputes.
        pause: decoding requests that get no token in this step.
        holds: for how many steps the same plan stays right if no event comes: a run of decodes, or one chunk after
            another of the same prompt, none of which ends it.
        fill: in such a run of chunks, the tokens of a step that decodes and chunk share, if the chunk takes what the
            decodes leave: then the run goes on after a finish. 0 where it does not.
        wakes_on_arrival: whether an arrival could change the plan.
        interrupts: whether anybody is evicted or pauses.

    The replica is done with a plan before it asks for the next, so a policy may hand out the same object again.
    """

    __slots__ = ("chunks", "fill", "holds", "interrupts", "pause", "preempt", "then_fill", "wakes_on_arrival")

    def __init__(
        self,
        chunks: list[Chunk],
        holds: int = 1,
        wakes_on_arrival: bool = True,
        preempt: tuple[int, ...] = (),
        pause: tuple[int, ...] = (),
        fill: int = 0,
        then_fill: int = 0,
    ) -> None:
        self.chunks = chunks
        self.holds = holds
        self.wakes_on_arrival = wakes_on_arrival
        self.preempt = preempt
        self.pause = pause
        self.fill = fill
        self.then_fill = then_fill
        self.interrupts = bool(preempt or pause)


class Policy(Protocol):
    """A scheduling rule. The constructor takes the `EngineConfig` and the policy's own options as keywords."""

    def plan(self, replica: Replica, /) -> StepPlan:
        """Say what the next step of `replica` works on."""
        ...
