"""Steps with prompts that take no less than their launches: few prompts keep a GPU busy for less than the host needs.

Decodes run as one CUDA graph. Prompts, whose sizes differ from step to step, do not: the host launches the kernels of
every layer one after another, and where it is slower than the GPU, it decides. Then TTFT hardly depends on the length
of short prompts, and grows with the number of layers.
"""

from __future__ import annotations

import dataclasses

from plimsoll.core.step import AttentionLayers, Line, StepCost, StepModel, StepShape


class LaunchedPrompts:
    """A `StepModel` around another: steps with prompts take `launch_s` at least."""

    def __init__(self, inner: StepModel, launch_s: float) -> None:
        self._inner, self._inner_step_s, self.launch_s = inner, inner.step_s, launch_s

    @property
    def attention_layers(self) -> AttentionLayers:
        """As the other's."""
        return self._inner.attention_layers

    @property
    def num_stages(self) -> int:
        """As the other's."""
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
        """See `StepModel.step_s`."""
        seconds = self._inner_step_s(
            prefill_tokens, num_prefill, prefill_pairs, prefill_read_tokens, num_prefill_done, num_decode,
            decode_read_tokens,
        )  # fmt: skip
        return max(seconds, self.launch_s) if prefill_tokens else seconds

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> Line:
        """See `StepModel.decode_line`: decodes are launched as one graph."""
        return self._inner.decode_line(num_decode, decode_read_tokens)

    def step(self, shape: StepShape, /) -> StepCost:
        """See `StepModel.step`."""
        cost = self._inner.step(shape)
        return dataclasses.replace(cost, time_s=max(cost.time_s, self.launch_s)) if shape.prefill_tokens else cost
