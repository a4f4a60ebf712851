"""Prefix caching on real content: hit rates with memory for everything, and the speed of the engine.

    python benchmarks/prefix_cache.py [--data DIR] [--repeats 3] [--block-size 16]

Reads the Mooncake traces (content ids of 512 tokens; ``DIR/traces/mooncake_*_trace.jsonl.gz``, DIR as under
``PLIMSOLL_DATA``). Rows: Llama-3.1-8B on as many H100-SXM as given, round robin, the trace's own arrival times, blocks
as the memory model leaves them; results on time and one step late. Seconds are processor time of the engine alone.

The hit rates to meet are those of an infinite cache: 37.4 % of the prompt tokens of the conversation trace and 65.1 %
of the synthetic one, in order of arrival (requests that arrive before an earlier one's prefill has begun find less).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import numpy as np

from plimsoll import _ENGINE
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.roofline import Roofline
from plimsoll.workload.readers import read_trace

MODEL, GPU = "Llama-3.1-8B", "H100-SXM"
TOKENS_IN_MEMORY = 27_000 * 16  # what 80 GB leave at 90 % beside the weights, at 128 KiB a token
EVERYTHING = 1 << 40
PUBLISHED = {"conversation": 37.4, "synthetic": 65.1}


def workload_of(path: Path) -> Workload:
    """The trace as it is."""
    trace = read_trace(str(path))
    assert trace.arrival_s is not None
    order = np.argsort(trace.arrival_s, kind="stable")
    assert bool(np.all(order == np.arange(len(order)))), "the trace is sorted by arrival"
    return Workload(
        arrival_s=trace.arrival_s,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=np.maximum(trace.output_tokens, 1),
        block_tokens=trace.block_tokens,
        prompt_block_ids=trace.prompt_block_ids,
        prompt_block_offsets=trace.prompt_block_offsets,
    )


def engine(replicas: int, num_blocks: int, block_size: int, late: bool = False, caching: bool = True) -> EngineConfig:
    """vLLM's defaults for its server on such a GPU."""
    return EngineConfig(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        replicas=replicas,
        options={"async_scheduling": late, "enable_prefix_caching": caching},
    )


def timed(workload: Workload, config: EngineConfig, repeats: int) -> tuple[Run, float]:
    """A run, and the best processor time of some."""
    best_s = float("inf")
    for _ in range(repeats):
        model = Roofline(load_model(MODEL), load_accelerator(GPU), Parallelism(), "bf16", "auto")
        begin_s = time.process_time()
        run = simulate(workload, config, model)
        best_s = min(best_s, time.process_time() - begin_s)
    return run, best_s


def hit_rate(run: Run) -> float:
    """Share of prompt tokens that were found cached at the first admission, in percent."""
    return 100.0 * float(run.cached_tokens.sum()) / float(run.prompt_tokens.sum())


def print_row(words: str, run: Run, seconds: float) -> None:
    """One line of the table."""
    wait_s = float(np.nanmean(run.scheduled_s - run.arrival_s))
    print(
        f"{words:44}{seconds:8.2f}{len(run) / seconds:12,.0f}{run.num_steps:10,}{hit_rate(run):8.1f}"
        f"{int(run.preemptions.sum()):9,}{wait_s:10.2f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PLIMSOLL_DATA", "../shared/data")))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--block-size", type=int, default=16)
    options = parser.parse_args()
    print(_ENGINE)
    size = options.block_size
    print(f"{MODEL} on {GPU}, block size {size}")
    print(f"{'':44}{'seconds':>8}{'requests/s':>12}{'steps':>10}{'hit %':>8}{'evicted':>9}{'wait s':>10}")
    for name, published in PUBLISHED.items():
        path = options.data / "traces" / f"mooncake_{name}_trace.jsonl.gz"
        if not path.exists():
            print(f"{name}: no {path.name} under {options.data}, skipped")
            continue
        workload = workload_of(path)
        blocks = TOKENS_IN_MEMORY // size
        rows = [
            ("8 replicas", engine(8, blocks, size)),
            ("8 replicas, results one step late", engine(8, blocks, size, late=True)),
            ("8 replicas, no prefix caching", engine(8, blocks, size, caching=False)),
            ("16 replicas", engine(16, blocks, size)),
            ("8 replicas, prefix-aware router", dataclasses.replace(engine(8, blocks, size), router="prefix-aware")),
            ("1 replica, memory for everything", engine(1, EVERYTHING, size)),
        ]
        for words, config in rows:
            run, seconds = timed(workload, config, options.repeats)
            print_row(f"{name}, {words}", run, seconds)
        print(f"    published for an infinite cache: {published} %; here {hit_rate(run):.1f} %\n")


if __name__ == "__main__":
    main()
