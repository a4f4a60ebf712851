"""A measured run replayed by the engine: its requests, what a server saw of them, and steps outside a profile."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plimsoll.core.columns import Floats, floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.step import AttentionLayers, Line, StepCost, StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.replica import Replica
from plimsoll.perf.profiles.model import Profiled

ID_TOKENS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """When each request was seen by the engine core, got its first and its last token, and what it took to find out.

    Attributes:
        queued_s, first_token_s, last_token_s: ``float64[n]``, in the order of the workload.
        preemptions: of all requests together.
        wall_s: of the simulation, from the requests to these columns.
    """

    queued_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    preemptions: int
    wall_s: float


def workload_of(measured: Sequence[Mapping[str, float]], blocks: Mapping[int, Sequence[int]]) -> Workload:
    """The requests of a measured run by the time at which the engine saw them, with ids of their full blocks.

    Args:
        measured: rows of ``measured.csv``, by rising `queued_s`.
        blocks: block ids by request id; empty where they were not recorded.
    """
    columns: dict[str, Any] = {
        "arrival_s": floats([row["queued_s"] for row in measured]),
        "prompt_tokens": ints([int(row["prompt_tokens"]) for row in measured]),
        "output_tokens": ints([int(row["output_tokens"]) for row in measured]),
    }
    if not blocks:
        return Workload(**columns)
    chains = [blocks.get(int(row["request_id"]), ()) for row in measured]
    return Workload(
        **columns,
        block_tokens=ID_TOKENS,
        prompt_block_ids=ints([block for chain in chains for block in chain]),
        prompt_block_offsets=ints(np.cumsum([0, *map(len, chains)])),
    )


def serve(workload: Workload, config: EngineConfig, model: Profiled | Counted) -> Served:
    """Replay a workload on one server.

    Raises:
        InputError: a request is longer than the server takes.
    """
    began_s = time.perf_counter()
    run = simulate(workload, config, model, observer=Single() if isinstance(model, Counted) else None)
    if (run.status != Status.FINISHED).any():
        raise InputError("measured.csv", "a request", "is longer than this server could have taken")
    queued_s = seen_s(run)
    return Served(
        queued_s=queued_s,
        first_token_s=run.first_token_s,
        last_token_s=run.finish_s,
        preemptions=int(run.preemptions.sum()),
        wall_s=time.perf_counter() - began_s,
    )


def seen_s(run: Run) -> Floats:
    """When the engine core of a single server first saw each request, ``float64[n]``: between two of its steps.

    That is at once where nothing is under way, because all who came before have been answered; else at the next end
    of a step.
    """
    assert run.timeline is not None
    ends_s = np.unique(run.timeline.step_end_s)
    arrival_s = run.arrival_s
    answered_s = np.concatenate([[-np.inf], np.maximum.accumulate(run.finish_s)])
    num_before = np.searchsorted(arrival_s, arrival_s, side="left")
    idle = answered_s[num_before] <= arrival_s
    following = np.searchsorted(ends_s, arrival_s, side="left")
    return np.where(idle, arrival_s, ends_s[np.minimum(following, len(ends_s) - 1)])


class Single:
    """An observer that wants nothing but to be shown step by step."""

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        """Nothing."""

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        """Nothing."""


class Counted:
    """A profile that goes on beyond what was measured, and counts how often. Is to be asked step by step.

    Attributes:
        steps, outside: steps so far, and those that nobody measured.
    """

    num_stages = 1

    def __init__(self, inner: Profiled) -> None:
        self.inner = inner
        self.needs_longest = inner.needs_longest
        self.steps = self.outside = 0

    @property
    def attention_layers(self) -> AttentionLayers:
        """As the profile's."""
        return self.inner.attention_layers

    def _count(self, shapes: Sequence[StepShape], ranks: int | None = None) -> None:
        self.steps += 1
        self.outside += not all(self.inner.covers(shape, ranks) for shape in shapes)

    def step_s(self, *args: int) -> float:
        """As the profile's."""
        names = [field.name for field in dataclasses.fields(StepShape)]
        self._count([StepShape(**dict(zip(names, args, strict=False)))])
        return self.inner.step_s(*args)

    def decode_line(self, num_decode: int, decode_read_tokens: int, longest_decode: int = 0, /) -> Line:
        """As the profile's, for one step."""
        shape = StepShape(num_decode=num_decode, decode_read_tokens=decode_read_tokens, longest_decode=longest_decode)
        self._count([shape])
        return self.inner.decode_line(num_decode, decode_read_tokens, longest_decode)

    def lockstep_s(self, ranks: Sequence[StepShape]) -> float:
        """As the profile's."""
        self._count(ranks, 1)
        return self.inner.lockstep_s(ranks)

    def step(self, shape: StepShape, /) -> StepCost:
        """As the profile's."""
        return self.inner.step(shape)

    def describe(self) -> dict[str, Any]:
        """As the profile's."""
        return self.inner.describe()
