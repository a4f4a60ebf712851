"""The longest context of a decode set, for step models that ask for it (`core.step.LongestStepModel`).

While a request decodes, its length less the number of the step does not change. So the longest of a lane is the top of
a heap that is touched when somebody starts, and tidied up when somebody looks:

    length in step s = s - key,   key = step of its start - its length there

Replicas ask their step model as ever, through a `WithLongest`, which puts the longest decode of the replica's lane in.

NOTE: engines of the general kernel that reserve memory for whole sequences (`general.lane.FixedLane`) do not keep it:
their lanes say 0, which stands for equal lengths. Some of them compute padding rows, with which lengths are equal.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, cast

from mypy_extensions import mypyc_attr

from plimsoll.core.errors import InputError
from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, Line, LongestStepModel, StepCost, StepModel, StepShape
from plimsoll.engine.replicas.lane import REQUEST_OF_KEY, Lane
from plimsoll.engine.requests import KEY_BITS, Requests

if TYPE_CHECKING:
    from plimsoll.engine.replicas.replica_state import ReplicaState


@mypyc_attr(allow_interpreted_subclasses=True)
class LongestLane(Lane):
    """A `Lane` that knows the longest of its decodes. Entries of requests that left are dropped when they come up."""

    __slots__ = ("entries", "entry_of")

    def __init__(self, requests: Requests, number: int, block_size: int, layers: AttentionLayers) -> None:
        super().__init__(requests, number, block_size, layers)
        self.entries: list[int] = []
        self.entry_of: dict[int, int] = {}

    def start(self, request: int, done: int, remaining: int) -> None:
        """As in `Lane`."""
        super().start(request, done, remaining)
        entry = self.entry_of[request] = (len(self.ends) - done - 1) << KEY_BITS | request
        heappush(self.entries, entry)

    def stop(self, request: int, done: int) -> None:
        """As in `Lane`."""
        super().stop(request, done)
        del self.entry_of[request]

    def take_finished(self) -> tuple[list[int], int]:
        """As in `Lane`."""
        taken, blocks = super().take_finished()
        for request in taken:
            del self.entry_of[request]
        return taken, blocks

    def longest(self) -> int:
        """KV tokens that the longest decode reads in the next step, its new token included; 0 without decodes."""
        heap, entry_of = self.entries, self.entry_of
        while heap and entry_of.get(heap[0] & REQUEST_OF_KEY) != heap[0]:
            heappop(heap)
        return len(self.ends) - (heap[0] >> KEY_BITS) if heap else 0


class WithLongest:
    """A `StepModel` to the replica that asks: its `LongestStepModel`, told the longest decode of the replica's lane.

    Raises:
        InputError: the model folds attention windows, behind which lengths cannot be seen.
    """

    def __init__(self, inner: StepModel, replica: ReplicaState) -> None:
        if inner.attention_layers != FULL_ATTENTION:
            remedy = "one that needs the longest decode must let every layer attend to everything"
            raise InputError("--step-model", type(inner).__name__, remedy)
        self._inner = inner
        self._step_s = cast(LongestStepModel, inner).step_s
        self._decode_line = cast(LongestStepModel, inner).decode_line
        self._replica = replica

    @property
    def attention_layers(self) -> AttentionLayers:
        """As the inner model's."""
        return FULL_ATTENTION

    @property
    def num_stages(self) -> int:
        """As the inner model's."""
        return self._inner.num_stages

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        /,
    ) -> float:
        """Seconds of the replica's next step."""
        return self._step_s(
            prefill_tokens,
            num_prefill,
            prefill_pairs,
            prefill_read_tokens,
            num_prefill_done,
            num_decode,
            decode_read_tokens,
            self._replica.lane.longest() if num_decode else 0,
        )

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """The line of the replica's next steps, if they only decode."""
        return self._decode_line(num_decode, decode_read_tokens, self._replica.lane.longest() if num_decode else 0)

    def step(self, shape: StepShape, /) -> StepCost:
        """As the inner model's."""
        return self._inner.step(shape)


def needs_longest(model: StepModel) -> bool:
    """Whether a step model asks for the longest decode."""
    return bool(getattr(model, "needs_longest", False))


def lane_for(model: StepModel) -> type[Lane]:
    """The kind of lane that a step model needs."""
    return LongestLane if needs_longest(model) else Lane
