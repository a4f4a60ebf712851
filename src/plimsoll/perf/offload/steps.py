"""FlexGen's block schedule as a step model: an engine with static batches gets the time of each of its steps.

`composed.with_compositions` puts a cache that evicts (H2O) or is stored in 4 bit around it.

A step works on one block: all its sequences, in GPU batches of the given size. Decode steps are affine in the cache
entries they read, on the largest of the schedule's times (`flexgen.Phase.alternatives`). A step that holds prompts and
decodes, which FlexGen never makes, takes the sum of both.

NOTE: the cost model squares whole prompts. From a step's attention pairs, ``Σ c²`` is ``2·pairs − tokens`` without
context, and more than that for a chunk behind a context.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from plimsoll.core.source import Source
from plimsoll.core.step import FULL_ATTENTION, AttentionLayers, StepCost, StepShape
from plimsoll.perf.compositions._lines import Straight, upper
from plimsoll.perf.offload.flexgen import BlockWork, Placement, decode_phase, prefill_phase
from plimsoll.perf.offload.hardware import OffloadHardware
from plimsoll.perf.offload.layer import LayerShape
from plimsoll.perf.tabulated import UNBOUNDED, Line


class OffloadedSteps:
    """A `core.step.StepModel` of a placement.

    Args:
        shape: of the model's layers.
        hardware: rates of the machine.
        placement: where weights, cache and hidden states lie.
        work: GPU batch, compression, delegation, overlap; its lengths are not used.
    """

    num_stages = 1

    def __init__(self, shape: LayerShape, hardware: OffloadHardware, placement: Placement, work: BlockWork) -> None:
        self._shape, self._hardware, self._work = shape, hardware, work
        self._placement, self._shares = placement, placement.vector()
        self._pieces: dict[int, list[Line]] = {}
        self._lines: dict[int, list[Straight]] = {}

    @property
    def attention_layers(self) -> AttentionLayers:
        """Every layer attends to everything."""
        return FULL_ATTENTION

    def _blocks(self, sequences: int) -> BlockWork:
        batches = -(-sequences // self._work.gpu_batch)
        return dataclasses.replace(self._work, num_gpu_batches=max(1, batches))

    def _straight(self, num_decode: int) -> list[Straight]:
        """The candidates of a decode, each as base and slope in read tokens."""
        lines = self._lines.get(num_decode)
        if lines is None:
            work = self._blocks(num_decode)
            ends = []
            for read in (0.0, 1.0):
                phase = decode_phase(self._shape, self._hardware, work, num_decode, read)
                forms = phase.alternatives(work, decode=True)
                ends.append([self._shape.num_layers * float(form @ self._shares) for form in forms])
            lines = [(at_0, max(0.0, at_1 - at_0)) for at_0, at_1 in zip(*ends, strict=True)]
            self._lines[num_decode] = lines
        return lines

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """The straight line of decode-only steps around `decode_read_tokens`; see `core.step.StepModel`."""
        if not num_decode:
            return 0.0, 0.0, UNBOUNDED
        pieces = self._pieces.setdefault(num_decode, [])
        while not pieces or decode_read_tokens >= pieces[-1][2]:
            pieces.append(upper(self._straight(num_decode), pieces[-1][2] if pieces else 0, UNBOUNDED))
        return next(line for line in pieces if decode_read_tokens < line[2])

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,  # noqa: ARG002 - the schedule has no chunks
        num_prefill_done: int,  # noqa: ARG002 - the head is not in the cost model
        num_decode: int,
        decode_read_tokens: int,
        /,
    ) -> float:
        """Seconds of one step; see `core.step.StepModel`."""
        line = self.decode_line(num_decode, decode_read_tokens)
        decode_s = line[0] + line[1] * decode_read_tokens
        if not prefill_tokens and not num_prefill:
            return decode_s
        work = self._blocks(num_prefill)
        squares = max(0, 2 * prefill_pairs - prefill_tokens)
        stored = float(prefill_tokens)
        stored *= work.kept_frac
        if work.kept_tokens is not None:
            stored = min(stored, num_prefill * work.kept_tokens)
        phase = prefill_phase(self._shape, self._hardware, work, prefill_tokens, squares, stored)
        longest = max(float(form @ self._shares) for form in phase.alternatives(work, decode=False))
        return decode_s + self._shape.num_layers * longest

    def step(self, shape: StepShape, /) -> StepCost:
        """The same time as `step_s`; the machine has no power model."""
        time_s = self.step_s(
            shape.prefill_tokens,
            shape.num_prefill,
            shape.prefill_pairs,
            shape.prefill_read_tokens,
            shape.num_prefill_done,
            shape.num_decode,
            shape.decode_read_tokens,
        )
        return StepCost(time_s=time_s, energy_j=None, source=self.source)

    @property
    def source(self) -> Source:
        """Modelled."""
        return Source.MODELLED

    def describe(self) -> dict[str, Any]:
        """What this model is made of, for reports."""
        return {
            "step_model": "flexgen",
            "machine": self._hardware.name,
            "placement": dataclasses.asdict(self._placement),
            "gpu_batch": self._work.gpu_batch,
            "source": str(self.source),
        }
