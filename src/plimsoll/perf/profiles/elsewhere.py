"""Rows of experts that other ranks hold: with expert parallelism every rank handles those of its own tokens too.

A profile measures experts of which all are at hand. Under expert parallelism a rank has the rows of all tokens and all
their experts, its own or not. Where an expert is another rank's, vLLM's Triton kernels (the default for 16-bit weights)
skip the product but write zeros, and what follows reads them like results:

    up and gate: zeros 2I ─► activation: reads 2I, writes I ─► down: zeros H ─► sum over a token's experts: reads H

Source: vLLM v0.19.0, ``fused_moe/fused_moe.py`` (`write_zeros_to_output`, `TritonExperts.apply`, which sorts rows
without `ignore_invalid_experts`). A share of that traffic reaches the memory: 0.7 of much of it, less where a card's
cache takes it. Both constants from LLMServingSim at 0d3de681,
``profiler/perf/RTXPRO6000/Qwen/Qwen3-30B-A3B-Instruct-2507/bf16/tp1/moe_components`` (experts of one of two ranks, vLLM
0.28) less the same experts without such rows (``moe.csv``): 2, 9, 31, 51 and 113 us for 16, 33, 65, 130 and 260 MB,
here 2, 7, 29, 57 and 114. Other cards' caches are not known to it.
"""

from __future__ import annotations

from plimsoll.catalog.architecture import Moe

ELEMENT_BYTES = 2
MEMORY_SHARE = 0.7
CACHED_BYTES = 64e6


def elsewhere_s(moe: Moe, hidden_size: int, ranks: int, tokens: int, memory_bytes_per_s: float) -> float:
    """Seconds that one layer's rows of experts elsewhere take on one of `ranks`, `tokens` being those of all of them.

    Args:
        moe: the layer's experts.
        hidden_size: of the model.
        ranks: that share the experts; 1 has none elsewhere.
        tokens: that meet in the layer, padding included.
        memory_bytes_per_s: of the card.
    """
    rows = tokens * moe.top_k * (ranks - 1) / ranks
    widths = (5 if moe.gated else 3) * moe.intermediate_size + 2 * hidden_size
    traffic_bytes = rows * widths * ELEMENT_BYTES
    return MEMORY_SHARE * min(1.0, traffic_bytes / CACHED_BYTES) * traffic_bytes / memory_bytes_per_s
