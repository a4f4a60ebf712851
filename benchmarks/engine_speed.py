"""Speed of the engine: requests simulated per second of processor time, on one core.

    python benchmarks/engine_speed.py [--trace FILE] [--requests 10000] [--repeats 7] [--large 1000000]
                                      [--beside COMMAND]

One replica, Llama-2-7B on A100-SXM-80GB, token budget 512, Poisson arrivals, the time of every token kept. Lengths are
drawn with replacement from a trace (``--trace``, or the Azure conversation trace under ``PLIMSOLL_DATA/traces``), cut
at 3000 prompt and 1000 output tokens, or, without one, from the preset `chat`.

Rows: the `roofline` step model and an affine cost in its place (the engine without `perf`), at 2 req/s (the replica
keeps up: long runs of decode steps) and at 6 (it does not: chunks of prompts all the time, KV memory full); 64 and 1024
seats; ten times the requests; and, in a process of its own, a million requests from the trace file to the percentiles,
with its peak memory. Each figure is the best of some repetitions, since other programs only ever add time.

A speed depends on the machine: ``--beside`` runs another program in the same minute and prints what it says.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plimsoll import _ENGINE
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.columns import floats
from plimsoll.core.deployment import Parallelism
from plimsoll.core.source import Source
from plimsoll.core.step import FULL_ATTENTION, StepCost, StepModel, StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.metrics import summarise
from plimsoll.perf.roofline import Roofline
from plimsoll.workload.presets import load_preset, sample_lengths
from plimsoll.workload.readers import read_trace

NUM_BLOCKS = 6800  # what 80 GB leave at 90 % beside the weights, at 8 MiB a block of 16 tokens
LONGEST_PROMPT, LONGEST_OUTPUT = 3000, 1000
TRACE = "traces/AzureLLMInferenceTrace_conv.csv"


class AffineModel:
    """6 ms, and so much for each sequence and each token: what is left is the engine."""

    attention_layers = FULL_ATTENTION
    num_stages = 1

    def step_s(
        self, tokens: int, chunks: int, pairs: int, read: int, complete: int, num_decode: int, decode_read: int, /
    ) -> float:
        """Seconds of one step."""
        del chunks, pairs, read, complete
        decode_s = 6e-3 + 2e-5 * num_decode + 3.52e-7 * decode_read
        return decode_s + 4e-5 * tokens if tokens else decode_s

    def decode_line(self, num_decode: int, decode_read: int, /) -> tuple[float, float, int]:
        """The line of decode-only steps, which never bends."""
        del decode_read
        return 6e-3 + 2e-5 * num_decode, 3.52e-7, 1 << 60

    def step(self, shape: StepShape, /) -> StepCost:
        """By definition."""
        return StepCost(time_s=6e-3 + 4e-5 * shape.prefill_tokens, energy_j=None, source=Source.ASSUMED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """The best of several simulations of the same workload."""

    requests_per_s: float
    seconds: float
    num_steps: int
    preemptions: int


def roofline() -> StepModel:
    """A fresh model: filling its tables is part of a run."""
    return Roofline(load_model("Llama-2-7B"), load_accelerator("A100-SXM-80GB"), Parallelism(), "bf16", "auto")


def draw(trace: str | None, num_requests: int, rate_per_s: float) -> Workload:
    """Poisson arrivals with lengths of the trace or of the preset."""
    rng = np.random.default_rng(1)
    if trace:
        rows = read_trace(trace)
        index = rng.integers(len(rows.prompt_tokens), size=num_requests)
        prompt, output = rows.prompt_tokens[index], rows.output_tokens[index]
    else:
        prompt, output = sample_lengths(load_preset("chat"), num_requests, rng)
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, num_requests))
    return Workload(
        arrival_s=floats(arrival_s - arrival_s[0]),
        prompt_tokens=np.minimum(prompt, LONGEST_PROMPT),
        output_tokens=np.minimum(output, LONGEST_OUTPUT),
    )


def config(seats: int) -> EngineConfig:
    """The engine of every row."""
    return EngineConfig(num_blocks=NUM_BLOCKS, max_num_seqs=seats, max_num_batched_tokens=512)


def measure(workload: Workload, seats: int, make_model: Callable[[], StepModel], repeats: int) -> Figure:
    """The best of `repeats` runs, in processor time."""
    best_s = float("inf")
    for _ in range(repeats):
        model = make_model()
        begin_s = time.process_time()
        run = simulate(workload, config(seats), model)
        best_s = min(best_s, time.process_time() - begin_s)
    return Figure(
        requests_per_s=len(workload) / best_s,
        seconds=best_s,
        num_steps=run.num_steps,
        preemptions=int(run.preemptions.sum()),
    )


def print_speeds(trace: str | None, num_requests: int, repeats: int) -> None:
    """Everything but the million."""
    print(f"{'':30}{'requests/s':>12}{'steps/s':>12}{'steps':>10}{'evicted':>9}")

    def row(words: str, rate: float, seats: int, make_model: Callable[[], StepModel], times: int = 1) -> Figure:
        figure = measure(draw(trace, num_requests * times, rate), seats, make_model, max(5, repeats // times))
        steps_per_s = figure.num_steps / figure.seconds
        print(f"{words:30}{figure.requests_per_s:12,.0f}{steps_per_s:12,.0f}{figure.num_steps:10,}", end="")
        print(f"{figure.preemptions:9,}", flush=True)
        return figure

    for rate in (2.0, 6.0):
        row(f"roofline, {rate:g} req/s", rate, 128, roofline)
        row(f"affine, {rate:g} req/s", rate, 128, AffineModel)
    for rate in (2.0, 6.0):
        few = row(f"roofline, {rate:g} req/s, 64 seats", rate, 64, roofline)
        many = row(f"roofline, {rate:g} req/s, 1024 seats", rate, 1024, roofline)
        print(f"    1024 seats to 64: {many.requests_per_s / few.requests_per_s:.2f} of the speed (wanted: 0.8)")
    for rate in (2.0, 6.0):
        one = row(f"roofline, {rate:g} req/s", rate, 128, roofline)
        ten = row(f"roofline, {rate:g} req/s, 10 x", rate, 128, roofline, times=10)
        print(f"    ten times the requests: {ten.seconds / one.seconds:.1f} times the time (wanted: 11)")


def run_large(trace: str | None, num_requests: int) -> None:
    """In a process of its own: read, simulate, summarise, and say how long it took and how much memory."""
    begin_s = time.perf_counter()
    workload = draw(trace, num_requests, 6.0)
    drawn_s = time.perf_counter()
    run = simulate(workload, config(128), roofline())
    simulated_s = time.perf_counter()
    summarise(run)
    end_s = time.perf_counter()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux gives KiB
    print(
        f"roofline, 6 req/s, {num_requests:,} requests, {run.num_steps:,} steps: {end_s - begin_s:.1f} s of wall time "
        f"(workload {drawn_s - begin_s:.1f}, engine {simulated_s - drawn_s:.1f}, percentiles "
        f"{end_s - simulated_s:.1f}); "
        f"peak {peak_gib:.2f} GiB (wanted for a million: 30 s, 1 GiB)"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="a file whose lengths are drawn")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--large", type=int, default=1_000_000, help="requests of the last row; 0 leaves it out")
    parser.add_argument("--beside", help="a program to run in the same minute")
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(_ENGINE)
    found = Path(os.environ.get("PLIMSOLL_DATA", "../shared/data")) / TRACE
    trace = options.trace or (str(found) if found.exists() else None)
    if options.only_large:
        run_large(trace, options.large)
        return
    print(f"lengths: {Path(trace).name if trace else 'preset chat (no trace found)'}; {options.requests:,} requests\n")
    print_speeds(trace, options.requests, options.repeats)
    if options.beside:
        print(f"\nbeside: {options.beside}", flush=True)
        subprocess.run(shlex.split(options.beside), check=True)
    if options.large:
        print(flush=True)
        own = [sys.executable, __file__, "--only-large", "--large", str(options.large)]
        subprocess.run(own + (["--trace", trace] if trace else []), check=True)


if __name__ == "__main__":
    main()
