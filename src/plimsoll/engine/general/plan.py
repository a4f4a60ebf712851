"""The contract of a policy of the general kernel: what it may look at, and what it answers.

`plimsoll.engine.policy` is the contract of vLLM V1's family, where every decode gets its token in every step, memory is
taken page by page and an evicted request recomputes. The serving systems before it need more: whole reservations, steps
in which no decode runs, batches that end together, KV that is swapped out, waiting by the clock. A policy that derives
from `GeneralPolicy` runs on `plimsoll.engine.general.replica.GeneralReplica`, which carries such answers out, still at
a cost per event. It looks at (the *view*):

    waiting                     queue of request numbers: by arrival, or by the policy's `key`
    running                     requests that hold memory on the device, in order of admission
    seated                      the same, but with pipeline stages those of all batches
    prefilling                  part-way prefills -> tokens in place
    swapped                     requests whose KV lies in host memory -> tokens of it
    outgrown                    decoding requests that have filled their reservation (memory ``fixed`` only): a plan
                                must evict them before they decode again
    num_decode, decode_need     decoding requests; blocks that the next step of all of them takes
    decodes_in_need()           who takes them, in order of admission (memory other than ``fixed``)
    free_blocks, num_blocks, block_size
    now_s, arrival_s[r]
    cached_tokens(r), cached_tokens_of(rs), held_blocks(r), generated(r)
    requests.prompt / target / told_output / predicted_output / preemptions    columns by request number
    steps_since_prefill         decode steps since the last step with a chunk
    last_prefill_s              seconds of the last step with a chunk

Request numbers ascend with arrival, so ``max(running)`` is whoever came last. A plan holds until an event (an arrival,
if it says so; a finish; the end of a prefill; a reservation outgrown; blocks running out), until `until_s`, or for
`holds` steps, and must be what the policy would answer in every step until then: `tests/oracle` asks it in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from mypy_extensions import mypyc_attr

from plimsoll.engine.policy import COMPILED, UNLIMITED, Chunk, StepPlan, plain_numbers, seconds_of, wrong_plan

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from plimsoll.core.step import StepModel
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState
    from plimsoll.engine.policy import Policy
    from plimsoll.engine.replicas.replica import Observer, Replica
    from plimsoll.engine.requests import Requests

__all__ = ["INFINITE", "UNLIMITED", "Chunk", "Eviction", "GeneralPlan", "GeneralPolicy"]

INFINITE = float("inf")
Eviction = tuple[int, str, str]
"""Request, ``recompute`` or ``swap``, and ``front``, ``back`` or ``own``: a place before later arrivals, or by key."""


@mypyc_attr(allow_interpreted_subclasses=True)
class GeneralPlan(StepPlan):
    """What the next step works on.

    Attributes, beside those of `StepPlan` (`preempt` is filled from `evict`):
        decode: whether decodes run; False is a step of chunks alone, or, after an eviction, of nothing at all.
        evict: who gives up memory before the step. With ``swap`` the KV moves to host memory, and `place` is unused.
        swap_in: requests of `swapped` that come back before the step, and decode in it.
        until_s: the plan is to be asked for again at the first step that starts at this time or later.
        spare: free blocks below which the plan stops holding.
        pad_prompt: if above 0, every chunk costs as much as one of so many tokens.
        pass_tokens: if above 0, the step is cut into forward passes of at most so many tokens, one after another.
        evicted: who gave way while the plan was made (`GeneralState.evict`): only for those who watch.
        all_wait: with `pause`, in a plan without chunks: no block is left, and until a request finishes whoever comes
            to need one pauses as well, unless that were everybody.
        wakes_within: with `wakes_on_arrival`, how many blocks whoever comes may reserve to change the plan (memory
            ``fixed``); 0: nobody changes it; below 0: anybody may.
        then_once: in a plan of decodes up to a finish, whether those who are left decode once more if somebody waits,
            as far as there are blocks. The policy is told (`goes_on`), and not asked.
        then_fill: tokens of a step; if above 0, and the last prompt is not complete with its chunk, it goes on alone
            beside the decodes, to fill steps of so many, as long as blocks for all of it are left.
        unusual: whether anybody moves or pauses.
    """

    __slots__ = (
        "all_wait", "decode", "evict", "pad_prompt", "pass_tokens", "spare", "swap_in", "then_once", "until_s",
        "unusual", "wakes_within",
    )  # fmt: skip

    def __init__(
        self,
        chunks: Any = None,  # list[Chunk] | None
        *,
        decode: Any = True,  # bool
        holds: Any = 1,  # int; those without a type are checked in the body: users are told which of them is wrong
        wakes_on_arrival: Any = True,  # bool
        evict: Any = (),  # Sequence[Eviction]
        swap_in: Sequence[int] = (),
        pause: Sequence[int] = (),
        fill: Any = 0,  # int
        until_s: Any = INFINITE,  # float
        spare: Any = 0,  # int
        pad_prompt: Any = 0,  # int
        pass_tokens: Any = 0,  # int
        evicted: Sequence[int] = (),
        all_wait: Any = False,  # bool
    ) -> None:
        preempt = (*evicted, *[request for request, _, _ in evict])
        super().__init__([] if chunks is None else chunks, holds, wakes_on_arrival, preempt, pause, fill)
        if COMPILED and (isinstance(spare, bool) or isinstance(pad_prompt, bool) or isinstance(pass_tokens, bool)):
            raise wrong_plan(chunks, {"spare": spare, "pad_prompt": pad_prompt, "pass_tokens": pass_tokens})
        try:
            again_s: float = until_s
            spared: int = spare
            padded: int = pad_prompt
            a_pass: int = pass_tokens
        except (TypeError, OverflowError) as error:  # perhaps numpy's
            seconds = seconds_of(until_s)
            if seconds is None:
                raise wrong_plan(chunks, {"until_s": until_s}) from error
            numbers = plain_numbers(chunks, {"spare": spare, "pad_prompt": pad_prompt, "pass_tokens": pass_tokens})
            again_s, spared, padded = seconds, numbers["spare"], numbers["pad_prompt"]
            a_pass = numbers["pass_tokens"]
        self.decode = bool(decode)
        self.evict: tuple[Eviction, ...] = tuple(evict)
        self.swap_in = tuple(swap_in)
        self.until_s = again_s
        self.spare = spared
        self.pad_prompt = padded
        self.pass_tokens = a_pass
        self.all_wait = bool(all_wait)
        self.then_once = False
        self.wakes_within = -1
        self.unusual = bool(preempt or swap_in or pause)


def setting(policy: Any, name: str) -> Any:
    """An attribute of a policy: of the object or of its class, which a compiled one would not look at."""
    return getattr(policy, name)


@mypyc_attr(allow_interpreted_subclasses=True)
class GeneralPolicy:
    """Base of the policies of the general kernel: the defaults of everything but `plan`.

    Attributes:
        memory: what an admission takes. ``pages``: blocks as chunks fill them; ``prompt``: blocks for all that the
            prefill must compute, pages from then on; ``fixed``: blocks for `reserve` tokens, until the end.
        static: whether rows that finished stay in the batch until all have: their memory is held.
        pads_rows: in a static batch, whether such rows still cost their share of the linear layers.
        returns_together: in a static batch, whether a request's last token is handed out at the end of the batch.
        swap_block_s: seconds to move one block between device and host memory.
        keyed: whether the queue is ordered by `key`.
        numbered: whether keys are whole numbers.
        pipelined: whether it runs with pipeline stages, with a batch in flight for each of them. Then `running` are the
            requests of the batch that is planned, and `seated` all who run.
        steps_together: whether it runs on data-parallel ranks that step together (see `general.ranks`). Then a plan
            without work is one that the others' step is waited for with.
        own_settings: of `core.deployment.EngineSettings`, what its paper or its code has where nobody gives any: a
            number, the name of the option that holds it, or ``("max_model_len", 2048)``, the larger of the two.
    """

    memory = "prompt"
    static = False
    pads_rows = False
    returns_together = False
    swap_block_s = 0.0
    keyed: ClassVar[bool] = False
    numbered: ClassVar[bool] = False
    pipelined: ClassVar[bool] = False
    steps_together: ClassVar[bool] = False
    own_settings: ClassVar[Mapping[str, float | str | tuple[str, int]]] = {}

    def plan(self, view: GeneralState, /) -> GeneralPlan:
        """Say what the next step of the replica works on."""
        raise NotImplementedError

    def reserve(self, requests: Requests, request: int, /) -> int:
        """Tokens for which a request's admission takes memory (``fixed`` only)."""
        raise NotImplementedError

    def key(self, view: GeneralState, request: int, /) -> Any:
        """What the queue is sorted by, ties by arrival; must not change while the request waits (`keyed` only)."""
        raise NotImplementedError

    def accepts(self, requests: Requests, config: EngineConfig, /) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which requests an empty replica could run to their end, ``bool[n]``; the others are rejected at once.

        Only those whose whole sequence fits into memory count; the rest is rejected anyway.
        """
        if setting(self, "memory") != "fixed":
            return np.ones(len(requests), dtype=np.bool_)
        tokens = np.array([self.reserve(requests, i) for i in range(len(requests))])
        return np.asarray(-(-tokens // config.block_size) <= config.num_blocks)

    def admitted(self, view: GeneralState, request: int, /) -> None:
        """A request has taken its memory."""

    def released(self, view: GeneralState, request: int, /) -> None:
        """A request has given its memory back."""

    def goes_on(self) -> None:
        """After a finish those who are left decode once more (`GeneralPlan.then_once`)."""

    def entered(self, batch: int, /) -> None:
        """With pipeline stages: the next plan, or the next results, are those of another batch."""

    def deal(self, ranks: Sequence[GeneralState], waiting: deque[int], /) -> None:
        """With data-parallel ranks: move those of `waiting`, who have arrived, into the queues of the ranks.

        Who stays is asked for again before the next step.
        """
        raise NotImplementedError

    def idled(self) -> None:
        """With data-parallel ranks: none of them has had anything to do."""

    def make_replica(
        self, requests: Requests, config: EngineConfig, model: StepModel, number: int, observer: Observer | None, /
    ) -> Replica:
        """The replica that runs this policy."""
        from plimsoll.engine.general.replica import GeneralReplica

        return GeneralReplica(requests, config, model, cast("Policy", self), number, observer)
