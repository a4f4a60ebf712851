"""From a memory plan to what the engine is told: one place, so that `plan` and `simulate` see the same engine."""

from __future__ import annotations

import dataclasses

from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError
from plimsoll.core.source import Source
from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig
from plimsoll.engine.cluster import can_step_together
from plimsoll.perf.compositions import MemoryEffect
from plimsoll.perf.memory import MemoryPlan


def engine_config(
    memory: MemoryPlan, parallelism: Parallelism, policy: str, replicas: int, router: str
) -> EngineConfig:
    """One replica's engine; data-parallel attention ranks are one pool with the sum of blocks, seats and budgets.

    `with_ranks` takes them apart where they can be simulated step by step together.
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
        options=settings.options,
        replicas=replicas,
        router=router,
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


def composed_memory(memory: MemoryPlan, effect: MemoryEffect, expected_tokens: int) -> MemoryPlan:
    """The memory plan as optimisations of cache and weights change it.

    A sequence of the expected length takes `effect.gpu_tokens` tokens' worth of cache, so a block costs that share of
    its bytes; shorter and longer sequences are counted alike. A given number of blocks stays as it is.

    Raises:
        InfeasibleError: what an optimisation keeps resident leaves no room for a cache.
    """
    if effect == MemoryEffect():
        return memory
    share = effect.gpu_tokens(expected_tokens) / expected_tokens
    weight_bytes = memory.weight_bytes * effect.weight_bytes_factor
    kv_bytes = memory.kv_bytes + memory.weight_bytes - weight_bytes - effect.extra_bytes
    block_bytes = memory.block_bytes * share
    given = memory.source is Source.MEASURED
    num_blocks = memory.num_blocks if given else int(kv_bytes // block_bytes)
    if num_blocks < 2:
        gib = effect.extra_bytes / 2**30
        reason = f"the optimisations keep {gib:.2f} GiB resident, which leaves no KV cache; use more memory or fewer"
        raise InfeasibleError(reason, "memory")
    return dataclasses.replace(
        memory,
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        breakdown=f"{memory.breakdown}; with optimisations {num_blocks} blocks",
        notes=(*memory.notes, *effect.notes),
    )
