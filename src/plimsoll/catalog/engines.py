"""Serving engines: what each runs, its defaults on a GPU, and which deployments would start.

    facts = load_engine("vllm-v1")
    settings = default_settings(facts, gpu, EngineSettings()).settings
    verdict = check_compatibility(facts, model, gpu, parallelism, "fp8", "auto")

The facts are data (``data/engines/*.toml``, see `engine_facts`); the rules are in `compatibility`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.compatibility import Compatibility, check_compatibility
from plimsoll.catalog.device_memory import visible_memory_bytes
from plimsoll.catalog.engine_facts import (
    EngineFacts,
    PrecisionSupport,
    find_engine,
    list_engines,
    load_engine,
    oldest_version,
    written_version,
)
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.errors import InputError
from plimsoll.core.units import GIB

__all__ = [
    "Compatibility",
    "EngineFacts",
    "PrecisionSupport",
    "ResolvedSettings",
    "check_compatibility",
    "default_settings",
    "find_engine",
    "list_engines",
    "load_engine",
    "oldest_version",
    "written_version",
]

GIVEN = "given"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedSettings:
    """Engine settings without gaps, and where each came from.

    Attributes:
        settings: `max_num_seqs`, `max_num_batched_tokens`, `block_size` and `gpu_memory_utilization` are numbers;
            `max_model_len` too where a model was given; `num_kv_blocks` stays None unless it was given.
        origins: by field name: ``given``, or the rule with its source.
    """

    settings: EngineSettings
    origins: Mapping[str, str]


def default_settings(
    engine: EngineFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    model: ModelSpec | None = None,
    parallelism: Parallelism | None = None,
) -> ResolvedSettings:
    """`settings` with the engine's own defaults where it says None.

    Args:
        engine: from `load_engine`.
        gpu: on which it runs.
        settings: as the user gave them.
        model: gives `max_model_len` its default (`max_position`); without one it stays as it is.
        parallelism: some engines reserve memory by it.

    Raises:
        InputError: a setting is zero, negative or not a share.
    """
    _check(settings)
    chosen = engine.default_class(gpu)
    origins: dict[str, str] = {}
    default_source = f"{engine.id} {engine.version} default on {chosen.name} ({chosen.fact.source})"

    def pick(field: str, given: int | None, default: int, source: str) -> int:
        origins[field] = GIVEN if given is not None else source
        return default if given is None else given

    budget = pick(
        "max_num_batched_tokens", settings.max_num_batched_tokens, chosen.max_num_batched_tokens, default_source
    )
    seats = pick("max_num_seqs", settings.max_num_seqs, chosen.max_num_seqs, default_source)
    max_model_len = settings.max_model_len
    if max_model_len is not None or model is not None:
        longest = model.max_position if model else 0
        max_model_len = pick(
            "max_model_len", max_model_len, longest, f"longest position of {model.id if model else ''}"
        )
    budget, seats = _agreeing(settings, budget, seats, max_model_len, origins)
    block_source = f"{engine.id} default ({engine.facts['cache'].source})"
    block_size = pick("block_size", settings.block_size, engine.block_size, block_source)
    utilization = settings.gpu_memory_utilization
    origins["gpu_memory_utilization"] = GIVEN
    if utilization is None:
        utilization, origins["gpu_memory_utilization"] = _default_utilization(
            engine, gpu, budget, parallelism or Parallelism()
        )
    resolved = dataclasses.replace(
        settings,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        block_size=block_size,
        gpu_memory_utilization=utilization,
    )
    return ResolvedSettings(settings=resolved, origins=MappingProxyType(origins))


def _agreeing(
    settings: EngineSettings, budget: int, seats: int, max_model_len: int | None, origins: dict[str, str]
) -> tuple[int, int]:
    """Budget and seats. vLLM (arg_utils): a default never contradicts what was given, so the other one follows it.

    A prompt that may not be cut has to fit into a step, so without chunked prefill the default budget is at least
    `max_model_len` (``_set_default_max_num_seqs_and_batched_tokens_args`` in vLLM 0.32.0).
    """
    uncut = settings.options.get("enable_chunked_prefill") is False
    if uncut and settings.max_num_batched_tokens is None and budget < (max_model_len or 0):
        budget, origins["max_num_batched_tokens"] = max_model_len or 0, "raised to max_model_len"
    if settings.max_num_seqs is None and settings.max_num_batched_tokens is not None and seats > budget:
        seats, origins["max_num_seqs"] = budget, "lowered to max_num_batched_tokens"
    if settings.max_num_batched_tokens is None and budget < seats:
        budget, origins["max_num_batched_tokens"] = seats, "raised to max_num_seqs"
    if settings.max_num_batched_tokens is None and max_model_len is not None and budget > seats * max_model_len:
        budget, origins["max_num_batched_tokens"] = seats * max_model_len, "lowered to max_num_seqs × max_model_len"
    return budget, seats


def _default_utilization(
    engine: EngineFacts, gpu: Accelerator, budget: int, parallelism: Parallelism
) -> tuple[float, str]:
    """The share of memory that the engine takes by default, and why."""
    if engine.gpu_memory_utilization is not None:
        source = engine.facts["gpu_memory_utilization"].source
        return engine.gpu_memory_utilization, f"{engine.id} {engine.version} default ({source})"
    # SGLang: the static share is what its heuristic reserve leaves (server_args.py).
    reserve = engine.memory.reserve
    chosen = engine.default_class(gpu)
    wide = parallelism.tp * parallelism.dp >= 4
    graph_seqs = (chosen.graph_num_seqs_tp4 if wide else chosen.graph_num_seqs) or 0
    reserved = reserve["base"] + max(budget, 2048) * reserve["per_budget_token"] + graph_seqs * reserve["per_graph_seq"]
    reserved += parallelism.num_gpus * reserve["per_gpu"]
    if parallelism.dp > 1:
        padding = reserve["per_dp_graph_seq_above_300" if graph_seqs > 300 else "per_dp_graph_seq"]
        reserved += graph_seqs * parallelism.dp * padding
    memory = visible_memory_bytes(gpu)
    if gpu.memory_bytes > 60 * GIB:
        reserved = max(reserved, reserve["minimum_above_60_gib"])
    share = round((memory - reserved) / memory, 3)
    return share, f"{engine.id} heuristic reserve ({engine.memory.fact.source})"


def _check(settings: EngineSettings) -> None:
    """Whole positive counts and a share between 0 and 1."""
    for field in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size", "num_kv_blocks"):
        value = getattr(settings, field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(field, value, "write a whole number of at least 1")
    share = settings.gpu_memory_utilization
    if share is not None and not 0.0 < share <= 1.0:
        raise InputError("gpu_memory_utilization", share, "write a share above 0 and up to 1, such as 0.9")
