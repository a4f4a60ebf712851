"""Mooncake (FAST 2025, https://arxiv.org/abs/2407.00079): prefix hits with memory for everything, on its own traces.

The share of prompt tokens that a cache of unlimited size has seen before, in order of arrival. The published tables
give 40 % of blocks for conversations and 66 % for the synthetic trace; of the released files' tokens it is 37.4 and
65.1 %, counted from the files alone, and that the engine must find by serving them: one replica of ``vllm-v1`` with
prefix caching and a step that takes no time to speak of, so that every request finds all that came before it.

Needs ``traces/mooncake_*_trace.jsonl.gz`` of the measured data; without them the table is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.core.source import Source
from plimsoll.core.step import FULL_ATTENTION, StepCost, StepShape
from plimsoll.core.workload import Workload
from plimsoll.workload.readers import read_trace
from validation._papers._row import as_text, points
from validation._papers._serving import serve

SOURCE = "https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release/traces"
NEEDS_DATA = "traces/mooncake_conversation_trace.jsonl.gz"
POINTS = 0.5
PUBLISHED = {"conversation": 37.4, "synthetic": 65.1}
SIZES = {"num_blocks": 1 << 40, "block_size": 512, "max_num_seqs": 1 << 20, "max_num_batched_tokens": 1 << 30}


class NoTime:
    """Every step takes a nanosecond: the engine is always done before the next request comes."""

    attention_layers = FULL_ATTENTION
    num_stages = 1

    def step_s(self, *shape: int) -> float:
        """A nanosecond."""
        del shape
        return 1e-9

    def decode_line(self, num_decode: int, decode_read_tokens: int, /) -> tuple[float, float, int]:
        """A nanosecond."""
        del num_decode, decode_read_tokens
        return 1e-9, 0.0, 1 << 60

    def step(self, shape: StepShape, /) -> StepCost:
        """A nanosecond."""
        del shape
        return StepCost(time_s=1e-9, energy_j=None, source=Source.ASSUMED)


def workload_of(path: Path) -> Workload:
    """The trace's requests in its order, a second apart, since its own stamps let many come at one instant."""
    trace = read_trace(str(path))
    return Workload(
        arrival_s=np.arange(len(trace), dtype=np.float64),
        prompt_tokens=trace.prompt_tokens,
        output_tokens=np.ones(len(trace), dtype=np.int64),
        block_tokens=trace.block_tokens,
        prompt_block_ids=trace.prompt_block_ids,
        prompt_block_offsets=trace.prompt_block_offsets,
    )


def hit_percent(load: Workload) -> float:
    """Prompt tokens found in the cache, of all."""
    run = serve(load, NoTime(), "vllm-v1", SIZES)
    return float(100.0 * run.cached_tokens.sum() / run.prompt_tokens.sum())


def rows(data: Path) -> list[dict[str, Any]]:
    """Both traces."""
    table = []
    for name, paper in PUBLISHED.items():
        ours = hit_percent(workload_of(data / "traces" / f"mooncake_{name}_trace.jsonl.gz"))
        why = "counted over the released file in its order; blocks of 512 tokens"
        table.append(points(f"{name} trace, tokens found, infinite cache", paper, ours, POINTS, assumption=why))
    return table


if __name__ == "__main__":
    import sys

    print(as_text(rows(Path(sys.argv[1]))))
