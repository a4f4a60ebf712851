"""Speed of every engine: requests simulated per second of processor time, on one core.

    python benchmarks/engines_speed.py [--trace FILE] [--requests 10000] [--repeats 5] [--engines orca,vllm-v0 …]

The 10,000-request runs of `engine_speed.py` (one replica, Llama-2-7B on A100-SXM-80GB, Poisson arrivals, lengths of the
Azure conversation trace cut at 3000 and 1000, every token's time kept), at 2 and at 6 requests/s, with the `roofline`
step model, at most 4096 tokens a sequence, 128 seats and a budget of 512 tokens where the engine has no own. Beside
each speed stands its share of `vllm-v1`'s, measured just before: that depends less on the machine.

Wanted: 30,000 requests/s at 2 req/s and 80,000 at 6. Where an engine stays below, the reason is printed with it, and
what it has to do for each request: how often its policy is asked, how many stretches of decode steps there are, and so
on, counted in one more run. That is done by a process of its own, in which the engine is interpreted: a profiler does
not see compiled functions.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

from engine_speed import NUM_BLOCKS, TRACE, draw, roofline
from plimsoll import _ENGINE
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.config import Option
from plimsoll.engine.plugins import list_plugins

WANTED = {2.0: 30_000, 6.0: 80_000}
REFERENCE = "vllm-v1"
VARIANTS: dict[str, list[dict[str, Option]]] = {
    "orca": [{"reservation": "max"}, {"reservation": "pow2", "buddy": True}, {"reservation": "oracle"}],
    "vllm-v0": [{}, {"preemption": "swap", "swap_block_s": 4e-4}],
    "trtllm": [{"enable_chunked_context": True}],
    "s3": [{"swap_block_s": 4e-4}, {"accuracy": 0.656, "swap_block_s": 4e-4}],
    "andes": [{"swap_block_s": 4e-4}],
    "sglang": [{}, {"chunked_prefill_size": 8192}, {"chunked_prefill_size": 8192, "cache_own_blocks": True}],
}
WHY = {
    "llamacpp": "four slots: 20 times as many steps, as the batch never exceeds 4, and several passes a prompt step",
    "fastgen": "its memory is full: decodes wait for blocks, one by one, and go on when somebody ends",
    "sglang": "prompts run alone, so each comes between two stretches of decodes, and a step follows each end before "
    "anybody is tried again; with the cache on, prompts and answers are nodes of a tree that are made, found, evicted",
    "andes": "every second whoever runs is weighed anew against whoever waits, and some are swapped for others",
    "s3": "a sorted queue, a search in it for each admission, and a swap for each answer that was predicted too short",
    "uellm": "small static batches: seven times as many steps",
    "guide": "static batches, cut to the longest sequence in each: six times as many steps",
    "tgi": "joining late, it takes twice as many steps",
}
COUNTED = {
    "plans": [("policies", "plan")],
    "decode stretches": [
        ("replicas/lane", "decode"),
        ("general/steps", "_decode_once"),
        ("general/replica", "_wait_for_blocks"),
    ],
    "prompt steps": [("general/steps", "_chunk_step"), ("replicas/replica", "_mixed_step")],
    "runs of chunks": [
        ("general/replica", "_go_on_filling"),
        ("general/replica", "_lone_chunk_run"),
        ("replicas/replica", "_run_chunks"),
    ],
    "forward passes with prompts": [("tabulated", "step_s")],
    "evictions": [("general/state", "evict")],
    "swaps back": [("general/state", "_swap_in")],
    "pauses": [("replicas/lane", "stop")],
    "decisions": [("policies/andes", "_decide")],
    "places in the ranking": [("andes_ranking", "add")],
    "searches in the queue": [("general/lane", "first_from")],
    "tries to take prompts": [("sglang_budget", "take_at_once"), ("policies/sglang", "_take_one")],
    "look-ups in the tree": [("radix_tree", "match")],
    "insertions": [("radix_tree", "keep"), ("radix_tree", "extend")],
    "rounds of eviction": [("radix_tree", "evict")],
}
"""What is counted, and in which functions: the end of the module's path, and the name."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="a file whose lengths are drawn")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", help="names, separated by commas; all by default")
    parser.add_argument("--count", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.count:
        print(_ENGINE)
    found = Path(os.environ.get("PLIMSOLL_DATA", "../shared/data")) / TRACE
    trace = options.trace or (str(found) if found.exists() else None)
    if options.count:
        engine, variant, rate = json.loads(options.count)
        print(counts(draw(trace, options.requests, rate), config_of(engine, variant)))
        return
    print(f"lengths: {Path(trace).name if trace else 'preset chat (no trace found)'}; {options.requests:,} requests\n")
    print(f"{'engine':56}{'at':>4}{'requests/s':>12}{'of ' + REFERENCE:>12}{'steps':>10}{'evicted':>9}")
    loads = {rate: draw(trace, options.requests, rate) for rate in WANTED}
    for engine in options.engines.split(",") if options.engines else list_plugins("plimsoll.engine.policies"):
        for variant in VARIANTS.get(engine, [{}]):
            print_engine(engine, variant, loads, options.repeats)
    print(f"\nfor each request {REFERENCE} has, at 6 req/s: {counted_apart(REFERENCE, {}, 6.0)}")


def config_of(engine: str, variant: dict[str, Option]) -> EngineConfig:
    """The engine of a row."""
    return EngineConfig(
        num_blocks=NUM_BLOCKS, max_num_seqs=128, max_num_batched_tokens=512, max_model_len=4096,
        policy=engine, options=variant,
    )  # fmt: skip


def print_engine(engine: str, variant: dict[str, Option], loads: dict[float, Workload], repeats: int) -> None:
    """Both rates of one engine."""
    words = ",".join([engine, *(f"{key}={value}" for key, value in variant.items())])
    slow = []
    config, reference = config_of(engine, variant), config_of(REFERENCE, {})
    for rate, load in loads.items():
        best_s = reference_s = float("inf")
        for _ in range(repeats):
            reference_s = min(reference_s, timed(load, reference)[0])
            seconds, run = timed(load, config)
            best_s = min(best_s, seconds)
        speed = len(load) / best_s
        print(
            f"{words:56}{rate:4g}{speed:12,.0f}{reference_s / best_s:12.2f}{run.num_steps:10,}"
            f"{int(run.preemptions.sum()):9,}",
            flush=True,
        )
        words = ""
        if speed < WANTED[rate]:
            slow.append(rate)
    if slow:
        at = " and ".join(f"{rate:g}" for rate in slow)
        print(f"    below {' and '.join(f'{WANTED[rate]:,}' for rate in slow)} at {at} req/s: {WHY.get(engine, '?')}")
        for rate in slow:
            print(f"    for each request, at {rate:g} req/s: {counted_apart(engine, variant, rate)}")


def timed(load: Workload, config: EngineConfig) -> tuple[float, Run]:
    """Seconds of processor time of one run. Its model is fresh: filling its tables is part of a run."""
    model = roofline()
    begin_s = time.process_time()
    run = simulate(load, config, model)
    return time.process_time() - begin_s, run


def counted_apart(engine: str, variant: dict[str, Option], rate: float) -> str:
    """`counts`, by a process whose engine is interpreted."""
    command = [sys.executable, __file__, *sys.argv[1:], "--count", json.dumps([engine, variant, rate])]
    environment = {**os.environ, "PLIMSOLL_COMPILED": "off"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def counts(load: Workload, config: EngineConfig) -> str:
    """How often each thing of `COUNTED` happens, for each request."""
    model, profiler = roofline(), cProfile.Profile()
    profiler.enable()
    run = simulate(load, config, model)
    profiler.disable()
    calls: dict[str, int] = {}
    # The library's types leave `stats` out.
    for (path, _, function), (_, count, *_) in cast(dict, vars(pstats.Stats(profiler))["stats"]).items():
        module = path.removesuffix(".py")
        for name, places in COUNTED.items():
            if any(function == called and (module.endswith(end) or f"/{end}/" in module) for end, called in places):
                calls[name] = calls.get(name, 0) + count
    parts = [f"{calls[name] / len(load):.2f} {name}" for name in COUNTED if calls.get(name)]
    return ", ".join([f"{run.num_steps / len(load):.1f} steps", *parts])


if __name__ == "__main__":
    main()
