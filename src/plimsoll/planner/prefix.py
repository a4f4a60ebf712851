"""A prefix-hit share without content: part of every prompt is in the cache already, and is read instead of computed.

The approximation, for workloads without content ids. With a share ``h``, a prompt of P tokens enters the engine as
``P − round(h·P)`` new tokens, at least one. The other ``h·P̄`` (the mean over the workload, the same for everybody) are
still attended to: every decode reads them, and every new prompt token forms pairs with them, which this wrapper adds to
what the engine counts. They take no blocks of their own: they are taken to be shared by many requests (a system prompt,
few-shot examples). Hits that belong to one request alone (a conversation's own history) cost memory that this leaves
out; replay a trace with content ids for those.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from plimsoll.core.columns import Ints
from plimsoll.core.errors import InputError
from plimsoll.core.step import AttentionLayers, StepCost, StepModel, StepShape
from plimsoll.core.workload import Workload


def without_cached_prompt(prompt_tokens: Ints, hit_frac: float) -> Ints:
    """The prompt tokens that are left to compute, ``int64[n]``, at least 1 each.

    Raises:
        InputError: `hit_frac` outside 0 to below 1.
    """
    if not 0.0 <= hit_frac < 1.0:
        raise InputError("--prefix-hit", hit_frac, "give a share from 0 to below 1, such as 0.3")
    return np.maximum(prompt_tokens - np.round(prompt_tokens * hit_frac).astype(np.int64), 1)


def shrink_prompts(workload: Workload, hit_frac: float) -> Workload:
    """The workload as the engine sees it when `hit_frac` of every prompt is cached."""
    if hit_frac == 0.0:
        return workload
    return dataclasses.replace(workload, prompt_tokens=without_cached_prompt(workload.prompt_tokens, hit_frac))


class SharedPrefix:
    """A step model whose sequences all attend to `shared_tokens` cached tokens more than the engine knows of."""

    def __init__(self, inner: StepModel, shared_tokens: float) -> None:
        self._inner = inner
        self._shared = round(
            sum(
                weight * (shared_tokens if window is None else min(shared_tokens, window))
                for weight, window in inner.attention_layers
            )
        )

    @property
    def attention_layers(self) -> AttentionLayers:
        """As the wrapped model's."""
        return self._inner.attention_layers

    @property
    def num_stages(self) -> int:
        """As the wrapped model's."""
        return self._inner.num_stages

    @property
    def needs_longest(self) -> bool:
        """As the wrapped model's."""
        return bool(getattr(self._inner, "needs_longest", False))

    def step_s(
        self,
        prefill_tokens: int,
        num_prefill: int,
        prefill_pairs: int,
        prefill_read_tokens: int,
        num_prefill_done: int,
        num_decode: int,
        decode_read_tokens: int,
        *longest_decode: int,
    ) -> float:
        """As `StepModel.step_s`, with the shared prefix read by every chunk and every decode."""
        shared = self._shared
        return self._inner.step_s(
            prefill_tokens,
            num_prefill,
            prefill_pairs + prefill_tokens * shared,
            prefill_read_tokens + num_prefill * shared,
            num_prefill_done,
            num_decode,
            decode_read_tokens + num_decode * shared,
            *(longest + shared if longest else 0 for longest in longest_decode),
        )

    def decode_line(self, num_decode: int, decode_read_tokens: int, *longest_decode: int) -> tuple[float, float, int]:
        """As `StepModel.decode_line`, shifted by what the decodes read of the shared prefix.

        NOTE: ``base + slope·(r + shift)`` and ``(base + slope·shift) + slope·r`` may differ in the last bit.
        """
        shift = num_decode * self._shared
        longest_too = (longest + self._shared if longest else 0 for longest in longest_decode)
        line = self._inner.decode_line(num_decode, decode_read_tokens + shift, *longest_too)
        base_s, per_read_token_s, valid_below = line
        return base_s + per_read_token_s * shift, per_read_token_s, valid_below - shift

    def step(self, shape: StepShape, /) -> StepCost:
        """As `StepModel.step`."""
        shared = self._shared
        return self._inner.step(
            dataclasses.replace(
                shape,
                prefill_pairs=shape.prefill_pairs + shape.prefill_tokens * shared,
                prefill_read_tokens=shape.prefill_read_tokens + shape.num_prefill * shared,
                decode_read_tokens=shape.decode_read_tokens + shape.num_decode * shared,
                longest_decode=shape.longest_decode + shared if shape.longest_decode else 0,
            )
        )
