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

import operator
from typing import TYPE_CHECKING, Any, Final, Protocol

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plimsoll.engine.replicas.replica import Replica

Chunk = tuple[int, int]
COMPILED: Final = not __file__.endswith(".py")
"""Whether the engine runs as C extensions: a few loops are written for one of both."""
UNLIMITED = (1 << 30) - 1
"""As many steps or tokens as there are; among the numbers that Python compares on its fast path."""


@mypyc_attr(native_class=False)
class WrongPlanError(TypeError):
    """A plan that cannot be made of what it was given; says what to write instead."""


def whole(value: Any) -> int | None:
    """A whole number of Python's or of numpy's, as Python's; None for anything else, a bool too."""
    if type(value) is int:
        return value
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def seconds_of(value: Any) -> float | None:
    """A number of Python's or of numpy's as a float; None for anything else, or one that is too large."""
    try:
        return None if isinstance(value, (str, bytes)) or value != value else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def wrong_setting(name: str, value: object) -> str:
    """What is wrong with a number of a plan, in words; empty if nothing."""
    if name == "until_s":
        return f"planned until_s={value!r:.40}; write a time in seconds" if seconds_of(value) is None else ""
    least = 1 if name == "holds" else 0
    number = whole(value)
    if number is not None and number >= least:
        return ""
    kind = "a whole number (int) of steps, at least 1, or UNLIMITED" if least else "a whole number (int), at least 0"
    return f"planned {name}={value!r:.40}; write {kind}"


def wrong_plan(chunks: object, numbers: dict[str, object]) -> WrongPlanError:
    """Why a compiled plan could not take them: it has numbers and lists only, where Python would fail in use."""
    for name, value in numbers.items():
        wrong = wrong_setting(name, value)
        if wrong:
            return WrongPlanError(wrong)
    return WrongPlanError(f"planned the chunks {chunks!r:.60}; write a list of pairs (request, tokens)")


def plain_numbers(chunks: object, numbers: dict[str, Any]) -> dict[str, int]:
    """Whole numbers as Python's.

    Raises:
        WrongPlanError: one of them is none.
    """
    found = {name: whole(value) for name, value in numbers.items()}
    plain = {name: value for name, value in found.items() if value is not None}
    if len(plain) < len(found):
        raise wrong_plan(chunks, numbers)
    return plain


@mypyc_attr(allow_interpreted_subclasses=True)
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
        chunks: Any,  # list[Chunk]
        holds: Any = 1,  # int, as are the others: users' policies are told which of them is none
        wakes_on_arrival: Any = True,  # bool
        preempt: Sequence[int] = (),
        pause: Sequence[int] = (),
        fill: Any = 0,
        then_fill: Any = 0,
    ) -> None:
        # Where numbers are typed True becomes 1 without a word; interpreted, users' plans are looked at afterwards.
        if COMPILED and (isinstance(holds, bool) or isinstance(fill, bool) or isinstance(then_fill, bool)):
            raise wrong_plan(chunks, {"holds": holds, "fill": fill, "then_fill": then_fill})
        try:
            pairs: list[Chunk] = chunks if isinstance(chunks, list) else list(chunks)
            steps: int = holds
            filled: int = fill
            then_filled: int = then_fill
        except TypeError:  # perhaps numpy's
            given = {"holds": holds, "fill": fill, "then_fill": then_fill}
            numbers = plain_numbers(chunks, given)
            if not isinstance(chunks, list):
                try:
                    chunks = list(chunks)
                except TypeError as error:
                    raise wrong_plan(chunks, given) from error
            pairs, steps, filled, then_filled = chunks, numbers["holds"], numbers["fill"], numbers["then_fill"]
        self.chunks = pairs
        self.holds = steps
        self.wakes_on_arrival = bool(wakes_on_arrival)
        self.preempt: Sequence[int] = tuple(preempt)
        self.pause: Sequence[int] = tuple(pause)
        self.fill = filled
        self.then_fill = then_filled
        self.interrupts = bool(preempt or pause)


class Policy(Protocol):
    """A scheduling rule. The constructor takes the `EngineConfig` and the policy's own options as keywords."""

    def plan(self, replica: Replica, /) -> StepPlan:
        """Say what the next step of `replica` works on."""
        ...
