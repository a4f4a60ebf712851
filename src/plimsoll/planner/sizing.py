"""From a memory plan to what the engine is told: one place, so that `plan` and `simulate` see the same engine."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping

from plimsoll.catalog.engines import Compatibility, EngineFacts, check_compatibility
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError
from plimsoll.core.source import Source
from plimsoll.core.step import StepModel
from plimsoll.core.units import GIB
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine.cluster import can_step_together
from plimsoll.engine.config import Option
from plimsoll.perf.compositions import MemoryEffect, parse_step_model, prepared
from plimsoll.perf.memory import DEFAULT_EXPECTED_TOKENS, MemoryAssumptions, MemoryPlan
from plimsoll.perf.overheads import HostTime
from plimsoll.perf.request import StepModelRequest


def engine_config(
    memory: MemoryPlan,
    parallelism: Parallelism,
    policy: str,
    replicas: int,
    router: str,
    facts: EngineFacts | None = None,
) -> EngineConfig:
    """One replica's engine; data-parallel attention ranks are one pool with the sum of blocks, seats and budgets.

    `with_ranks` takes them apart where they can be simulated step by step together. `facts` gives the options that were
    not given the defaults of the engine's version.
    """
    settings, ranks = memory.settings, parallelism.dp
    assert settings.max_num_seqs is not None
    assert settings.max_num_batched_tokens is not None
    return EngineConfig(
        num_blocks=max(memory.replica_usable_blocks, 1),
        block_size=memory.block_size,
        max_num_seqs=settings.max_num_seqs * ranks,
        max_num_batched_tokens=settings.max_num_batched_tokens * ranks,
        max_model_len=memory.max_model_len,
        policy=policy,
        options=with_option_defaults(settings.options, policy, facts, parallelism),
        replicas=replicas,
        router=router,
    )


def with_option_defaults(
    options: Mapping[str, Option], policy: str, facts: EngineFacts | None, parallelism: Parallelism
) -> Mapping[str, Option]:
    """`options` with what the engine's version has by default, where nothing was said.

    NOTE: asynchronous scheduling is simulated with one pipeline stage only. With more, a version that has it on by
    default is told nothing: its batches are scheduled when the oldest is back, at the host time of the asynchronous
    scheduler. vLLM plans one batch further ahead; a request gets a token in every so many batches as there are stages
    either way (`plimsoll.engine.replicas.pipeline`).
    """
    if facts is None or policy != facts.policy:
        return options
    given = dict(facts.option_defaults)
    if parallelism.pp > 1:
        given.update(facts.staged_option_defaults)
        if given.get("async_scheduling") is True:
            del given["async_scheduling"]
    return {**given, **options}


def with_host_time(config: EngineConfig, host_time: HostTime) -> EngineConfig:
    """The engine behind an API server's time; the time around steps belongs to the step model."""
    return dataclasses.replace(
        config, api_server_s=host_time.frontend.per_request_s, api_server_token_s=host_time.frontend.per_request_token_s
    )


def with_ranks(config: EngineConfig, ranks: int, workload: Workload, model: StepModel) -> tuple[EngineConfig, str]:
    """Data-parallel ranks that step together, where the engine can; else one pool with the sum of all, and a note."""
    if ranks == 1:
        return config, ""
    single = dataclasses.replace(
        config,
        num_blocks=max(config.num_blocks // ranks, 1),
        max_num_seqs=max(config.max_num_seqs // ranks, 1),
        max_num_batched_tokens=max(config.max_num_batched_tokens // ranks, 1),
        ranks=ranks,
    )
    if can_step_together(single, workload, model):
        return single, ""
    return config, f"the {ranks} data-parallel ranks are simulated as one pool, as if they were evenly loaded"


def composed_compatibility(
    fits: Compatibility, facts: EngineFacts, request: StepModelRequest, step_model: str
) -> Compatibility:
    """`fits` with what the engine says to the precision that compositions of `step_model` give the weights.

    Raises:
        InfeasibleError: the engine does not run that precision on this GPU, or the weights are quantised already.
        InputError: a composition that cannot be used.
    """
    choices = parse_step_model(step_model)[1]
    composed = prepared(request, choices)
    if composed.precision == request.precision:
        return fits
    changed = check_compatibility(
        facts, request.model, request.gpu, request.parallelism, composed.precision, request.kv_precision
    )
    needs = [f"{composed.precision} weights need {changed.checkpoint}"] if changed.checkpoint else []
    return dataclasses.replace(
        fits,
        compute_precision=changed.compute_precision,
        checkpoint=changed.checkpoint,
        notes=tuple(dict.fromkeys((*fits.notes, *changed.notes, *needs))),
    )


def composed_assumptions(effect: MemoryEffect, assumed: MemoryAssumptions) -> MemoryAssumptions:
    """`assumed` with what optimisations of cache and weights keep on the GPU.

    A sequence of the expected length takes `effect.gpu_tokens` tokens' worth of cache, so a block costs that share of
    its bytes; shorter and longer sequences are counted alike.
    """
    if effect == MemoryEffect():
        return assumed
    return dataclasses.replace(
        assumed,
        weight_bytes_factor=effect.weight_bytes_factor,
        extra_bytes=effect.extra_bytes,
        gpu_tokens=effect.gpu_tokens,
    )


def composed_memory(memory: MemoryPlan, effect: MemoryEffect, assumed: MemoryAssumptions) -> MemoryPlan:
    """The memory plan, sized with `composed_assumptions`, within the tier below the GPU, and what to know of it.

    Raises:
        InfeasibleError: the tier holds less than a longest sequence that was asked for, or than blocks that were given.
    """
    if effect == MemoryEffect():
        return memory
    memory = dataclasses.replace(memory, notes=(*memory.notes, *effect.notes))
    most, words = _tier_blocks(memory, effect, assumed.expected_sequence_tokens or DEFAULT_EXPECTED_TOKENS)
    if memory.num_blocks <= most:
        return memory
    if memory.source is Source.MEASURED:
        raise InfeasibleError(f"{memory.num_blocks} KV blocks were asked for; {words}", "memory")
    longest = (most - 1) * memory.block_size
    if most < 2 or (longest < memory.max_model_len and not assumed.shrink_max_model_len):
        wanted = f"a sequence of {memory.max_model_len:,} tokens needs more"
        raise InfeasibleError(f"{words}; {wanted}: give a larger one or keep more on the GPU", "memory")
    length = min(longest, memory.max_model_len)
    return dataclasses.replace(
        memory,
        num_blocks=most,
        max_model_len=length,
        largest_max_model_len=min(longest, memory.largest_max_model_len),
        settings=dataclasses.replace(memory.settings, max_model_len=length),
        breakdown=f"{memory.breakdown}; {most} in the tier below",
        notes=(*memory.notes, f"the cache is bound below the GPU: {words}"),
    )


def _tier_blocks(memory: MemoryPlan, effect: MemoryEffect, expected_tokens: int) -> tuple[int, str]:
    """The most blocks whose share fits into the tier below the GPU, and a sentence on it."""
    if not effect.tier_kv_share or math.isinf(effect.tier_bytes):
        return sys.maxsize, ""
    tier_bytes = memory.block_bytes * effect.tier_tokens(expected_tokens) / effect.gpu_tokens(expected_tokens)
    most = int(effect.tier_bytes // tier_bytes)
    size = f"{effect.tier_bytes / GIB:,.4g} GiB of {effect.kv_tier} for one GPU"
    return most, f"{size} hold {most:,} blocks of the cache ({effect.tier_source})"
