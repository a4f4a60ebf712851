"""Which verbs have which flags: groups of scenario fields, and a decorator that gives a command those of its groups.

A field is declared once, here or (where only one verb has it) beside the verb; Typer sees an ordinary signature.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from plimsoll.cli import options as o

Group = Mapping[str, Any]
"""Parameter name → ``Annotated[type, typer.Option(…)]``, in the order of the help page."""

SIZES: Group = MappingProxyType(
    {
        "max_num_seqs": o.MaxNumSeqs,
        "max_num_batched_tokens": o.MaxNumBatchedTokens,
        "max_model_len": o.MaxModelLen,
        "gpu_memory_utilization": o.GpuMemoryUtilization,
        "kv_blocks": o.KvBlocks,
        "block_size": o.BlockSize,
    }
)
CUT: Group = MappingProxyType(
    {
        "model": o.Model,
        "gpu": o.Gpu,
        "tp": o.Tp,
        "pp": o.Pp,
        "dp": o.Dp,
        "ep": o.Ep,
        "replicas": o.Replicas,
        "router": o.Router,
    }
)
COST: Group = MappingProxyType(
    {
        "precision": o.Precision,
        "kv_precision": o.KvPrecision,
        "step_model": o.StepModelName,
        "overheads": o.Overheads,
        "calibration": o.CalibrationFile,
    }
)
DEPLOYMENT: Group = MappingProxyType({**CUT, "engine": o.Engine, **COST, **SIZES})
REQUESTS: Group = MappingProxyType(
    {
        "workload": o.WorkloadName,
        "trace": o.TraceFile,
        "trace_format": o.TraceFormat,
        "prompt_tokens": o.PromptTokens,
        "output_tokens": o.OutputTokens,
        "rate_per_s": o.Rate,
        "arrivals": o.Arrivals,
        "burstiness": o.Burstiness,
        "users": o.Users,
        "think_s": o.ThinkS,
        "seed": o.Seed,
    }
)
LOAD: Group = MappingProxyType(
    {
        **REQUESTS,
        "concurrency": o.Concurrency,
        "at_once": o.AtOnce,
        "num_requests": o.NumRequests,
        "duration_s": o.DurationS,
    }
)
TARGETS: Group = MappingProxyType(
    {"ttft_ms": o.TtftMs, "tpot_ms": o.TpotMs, "e2e_ms": o.E2eMs, "percentile": o.Percentile}
)
OUTPUT: Group = MappingProxyType(
    {"scenario": o.Scenario, "save_scenario": o.SaveScenario, "out": o.Out, "json_output": o.Json}
)


def takes(*groups: Group) -> Callable[[Callable[[dict[str, Any]], int]], Callable[..., int]]:
    """Give a command the flags of `groups`; it gets what was typed as one dictionary, None where nothing was.

    A later group's declaration replaces an earlier one's of the same name, in the earlier one's place. A type that
    does not admit None is a switch (bool) or must be given.
    """
    declared = {name: hint for group in groups for name, hint in group.items()}

    def decorate(command: Callable[[dict[str, Any]], int]) -> Callable[..., int]:
        @functools.wraps(command)
        def typed(**given: Any) -> int:
            return command(given)

        typed.__annotations__ = {**declared, "return": int}
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(hint), annotation=hint)
                for name, hint in declared.items()
            ]
        )
        del typed.__wrapped__  # or its own signature would be looked at
        return typed

    return decorate


def _default(hint: Any) -> Any:
    kind = typing.get_args(hint)[0]
    if kind is bool:
        return False
    return None if type(None) in typing.get_args(kind) else inspect.Parameter.empty
