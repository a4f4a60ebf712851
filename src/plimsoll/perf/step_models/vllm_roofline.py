"""``vllm-roofline``: the roofline with what vLLM 0.11 adds to a step (`perf.vllm_steps`). Options:

``sampler=sorts|greedy``  requests with top-p or top-k, which sort the vocabulary of every row; or greedy ones
``graph_tokens=N``        largest CUDA graph of a rank (vLLM's 512); 0 for a server with `enforce_eager`

Written behind a colon: ``vllm-roofline:sampler=greedy,graph_tokens=0``. The host time of a step is its own, fitted with
the rest; that of the engine asked for does not come on top.
"""

from __future__ import annotations

import dataclasses

from plimsoll.core.errors import InputError
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.vllm_steps import SAMPLERS, VllmRoofline, VllmSteps, load_vllm_steps

FIELD = "--step-model vllm-roofline"
LOGIT_BYTES = 4.0


def build(request: StepModelRequest) -> VllmRoofline:
    """The roofline of a vLLM server; raises what `Roofline` raises.

    Raises:
        UnknownNameError: an unknown option.
        InputError: one given twice or without a value, or a value that is none of its own.
    """
    request = _with_written(request)
    request.check_options("sampler", "graph_tokens")
    sampler = str(request.options.get("sampler", "sorts"))
    if sampler not in SAMPLERS:
        raise InputError(f"{FIELD}, sampler", sampler, f"write one of {', '.join(SAMPLERS)}")
    return VllmRoofline(
        request.model,
        request.gpu,
        request.parallelism,
        request.precision,
        request.kv_precision,
        _steps(request, sampler),
    )


def _steps(request: StepModelRequest, sampler: str) -> VllmSteps:
    steps = load_vllm_steps(request.gpu.architecture)
    steps = dataclasses.replace(steps, graph_tokens=_graph_tokens(request, steps.graph_tokens))
    if sampler == "sorts":
        return steps
    # Greedy sampling looks at every logit once.
    once_s = LOGIT_BYTES / request.gpu.memory_bandwidth_bytes_per_s
    return dataclasses.replace(steps, sampler=sampler, sampler_s_per_logit=once_s)


def _graph_tokens(request: StepModelRequest, default: int) -> int:
    """The option: a whole number, in digits where it was written behind the name."""
    given = request.options.get("graph_tokens", default)
    value = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{FIELD}, graph_tokens", given, "write a number of tokens from 0 (0: enforce_eager)")
    return value


def _with_written(request: StepModelRequest) -> StepModelRequest:
    """The request with what is written behind the colon among its options."""
    options = dict(request.options)
    written: set[str] = set()
    for pair in request.argument.split(",") if request.argument else ():
        name, equals, value = (piece.strip() for piece in pair.partition("="))
        name = name.replace("-", "_")
        if not equals or not name or not value or name in written:
            raise InputError(FIELD, pair, "write every option once, as sampler=greedy,graph_tokens=512")
        written.add(name)
        options[name] = value
    return dataclasses.replace(request, argument="", options=options)
