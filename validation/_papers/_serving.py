"""What the serving papers' modules have in common: step models, lengths, engines, and the search for a rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.columns import Ints, floats, ints
from plimsoll.core.deployment import Parallelism
from plimsoll.core.run import Run
from plimsoll.core.step import AttentionLayers, StepCost, StepModel, StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.overheads import NO_OVERHEADS, Overheads
from plimsoll.perf.roofline import Roofline
from plimsoll.workload.build import build_workload
from plimsoll.workload.spec import WorkloadSpec

POLICIES = Path(__file__).parent / "_policies"
"""Engines that only these papers need, as policy files."""


def kernels(model: str, gpu: str, tp: int = 1, overheads: Overheads = NO_OVERHEADS) -> Roofline:
    """Our step model in 16 bit, with the host time of `overheads`."""
    return Roofline(load_model(model), load_accelerator(gpu), Parallelism(tp=tp), "fp16", "auto", overheads)


class SplitAttention:
    """A step model whose mixed steps run the attention of decodes in a kernel of its own, as fast as without prompts.

    The roofline prices mixed steps as one kernel for both, as vLLM V1 runs them. sarathi-serve calls two
    (https://github.com/microsoft/sarathi-serve/blob/main/sarathi/model_executor/attention/flashinfer_attention_wrapper.py).
    """

    def __init__(self, base: StepModel) -> None:
        self._base = base
        self._slopes: dict[int, float] = {}

    @property
    def attention_layers(self) -> AttentionLayers:
        """As of the model underneath."""
        return self._base.attention_layers

    @property
    def num_stages(self) -> int:
        """As of the model underneath."""
        return self._base.num_stages

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
        """Seconds of a step: without its decodes' reads, and these at the rate of a step of decodes alone."""
        prompts = (prefill_tokens, num_prefill, prefill_pairs, prefill_read_tokens, num_prefill_done)
        if not (prefill_tokens and num_decode):
            return self._base.step_s(*prompts, num_decode, decode_read_tokens)
        slope = self._slopes.get(num_decode)
        if slope is None:
            slope = self._slopes[num_decode] = self._base.decode_line(num_decode, num_decode)[1]
        return self._base.step_s(*prompts, num_decode, 0) + slope * decode_read_tokens

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> tuple[float, float, int]:
        """As of the model underneath."""
        return self._base.decode_line(num_decode, decode_read_tokens)

    def step(self, shape: StepShape, /) -> StepCost:
        """As of the model underneath: no report asks for a mixed step."""
        return self._base.step(shape)


def preset_lengths(preset: str, num_requests: int, seed: int) -> tuple[Ints, Ints]:
    """Prompt and output tokens of a preset, ``int64[num_requests]`` each."""
    load = build_workload(WorkloadSpec(preset=preset, at_once=True, num_requests=num_requests, seed=seed))
    return load.prompt_tokens, load.output_tokens


def scaled_lengths(
    lengths: tuple[Ints, Ints], means: tuple[float, float], below: int, power: float = 1.0
) -> tuple[Ints, Ints]:
    """The lengths that sum to less than `below`, brought to the given means by one factor each.

    Args:
        lengths: prompts and outputs.
        means: to be reached by those that are left.
        below: as the benchmark filters them.
        power: the outputs are raised to it first; below 1 narrows their distribution, above 1 widens it.
    """
    prompt, output = lengths[0].astype(float), lengths[1].astype(float) ** power
    for _ in range(30):
        prompts, outputs = np.maximum(1, np.rint(prompt)), np.maximum(1, np.rint(output))
        kept = prompts + outputs < below
        prompt *= means[0] / prompts[kept].mean()
        output *= means[1] / outputs[kept].mean()
    return ints(prompts[kept].astype(np.int64)), ints(outputs[kept].astype(np.int64))


def arriving(lengths: tuple[Ints, Ints], rate_per_s: float | None, seed: int) -> Workload:
    """Requests of these lengths as a Poisson process, or all at once where the rate is None; other seed, other gaps."""
    count = len(lengths[0])
    times = np.zeros(count)
    if rate_per_s is not None:
        times = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_per_s, count))
        times -= times[0]
    return Workload(arrival_s=floats(times), prompt_tokens=lengths[0], output_tokens=lengths[1])


def serve(
    load: Workload,
    model: StepModel,
    policy: str,
    sizes: Mapping[str, int],
    duration_s: float | None = None,
    **options: Any,
) -> Run:
    """One engine on a workload; `sizes` are fields of `EngineConfig`, `options` the policy's, `router` aside."""
    router = options.pop("router", "round-robin")
    config = EngineConfig(policy=policy, options=options, keep_step_log=True, router=router, **sizes)
    return simulate(load, config, model, duration_s=duration_s)


def highest_rate(holds: Callable[[float], bool], low: float, high: float, tolerance: float = 0.02) -> float:
    """The rate up to which `holds`, by bisection of its logarithm between two rates that hold and do not."""
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return math.sqrt(low * high)
