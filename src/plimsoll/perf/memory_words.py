"""The arithmetic of a memory plan in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.device_memory import visible_memory_bytes
from plimsoll.catalog.engines import EngineFacts
from plimsoll.core.deployment import EngineSettings
from plimsoll.core.units import GIB, MIB

if TYPE_CHECKING:
    from plimsoll.perf.memory import _Rank


def gib(num_bytes: float) -> str:
    """Two digits of GiB."""
    return f"{num_bytes / GIB:.2f}"


def breakdown_of(
    engine: EngineFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    rank: _Rank,
    block: tuple[float, int],
    given_blocks: int | None,
) -> str:
    """The arithmetic of the worst GPU in one line."""
    block_bytes, num_blocks = block
    per_block = f"{block_bytes / MIB:.3f} MiB per block of {settings.block_size}"
    if given_blocks is not None:
        return f"{num_blocks} blocks as given, {per_block} = {gib(rank.kv_bytes)} GiB of KV cache"
    memory, share = visible_memory_bytes(gpu), settings.gpu_memory_utilization or 0.0
    parts = f"weights {gib(rank.weight_bytes)}"
    others = f"activations {gib(rank.activation_bytes)} − runtime {gib(rank.runtime_bytes)}"
    others += f" − graphs {gib(rank.graph_bytes)}" if rank.graph_bytes else ""
    if engine.memory.rule == "static_fraction":
        text = f"{share:g} × {gib(memory)} GiB − {parts}"
    elif engine.memory.rule == "free_fraction":
        text = f"{share:g} × ({gib(memory)} GiB − {parts} − {others})"
    else:
        text = f"{share:g} × {gib(memory)} GiB − {parts} − {others}"
    return f"{text} = {gib(rank.kv_bytes)} GiB ÷ {per_block} tokens = {num_blocks} blocks"
