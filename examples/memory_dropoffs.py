"""Where does memory utilisation drop off as batches grow, and what do blocks and the GPU's allocator waste?

Left: B requests at once, all alike; the share of the KV cache that holds their tokens, averaged over the time until
the last one is done, engine by engine. A batch of one more than fits begins a second wave. Right: tokens over memory
taken, for one sequence, with blocks of a cache taken beforehand and with the 2 MiB pieces of CUDA's allocator.

    python examples/memory_dropoffs.py [memory.html]
"""

import itertools
import sys

import numpy as np

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import EngineSettings, Parallelism
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.granularity import CUDA_GRANULE_BYTES, granularity
from plimsoll.perf.memory import kv_capacity
from plimsoll.perf.roofline import Roofline
from plimsoll.report.lines import LineChart, to_page

MODEL, GPU = load_model("Llama-2-7B"), load_accelerator("RTX4090")
PROMPT, OUTPUT = 512, 256
MOST = PROMPT + OUTPUT
ENGINES = {
    "guide": {},
    "fastertransformer": {},
    "orca": {"reservation": "pow2"},
    "vllm-v0": {},
    "fastgen": {},
}


def kv_use(engine: str, num_requests: int) -> float:
    """Share of the cache that holds tokens, averaged over the time in which anybody is served."""
    load = Workload(
        arrival_s=np.zeros(num_requests),
        prompt_tokens=np.full(num_requests, PROMPT),
        output_tokens=np.full(num_requests, OUTPUT),
    )
    config = EngineConfig(
        num_blocks=BLOCKS, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=MOST,
        policy=engine, options=ENGINES[engine],
    )  # fmt: skip
    run = simulate(load, config, Roofline(MODEL, GPU, Parallelism(), "fp16", "auto"))
    # Each request holds its prompt and what it has generated, from its first token to its last.
    token_s = 0.0
    for row in range(num_requests):
        times_s = run.timeline.token_times_s(row)
        token_s += float(np.sum(np.diff(times_s) * (PROMPT + np.arange(1, len(times_s)))))
    return token_s / (run.end_s * BLOCKS * config.block_size)


BLOCKS = kv_capacity(
    MODEL, GPU, Parallelism(), "fp16", "auto", EngineSettings(max_model_len=MOST)
).replica_usable_blocks  # fmt: skip
batches = range(2, 65, 2)
served = {engine: [(batch, kv_use(engine, batch)) for batch in batches] for engine in ENGINES}
cuts = {
    "blocks of 16": granularity(MODEL, 16),
    "blocks of 128": granularity(MODEL, 128),
    "2 MiB granules": granularity(MODEL, 1, CUDA_GRANULE_BYTES),
    "both, 16 and 2 MiB": granularity(MODEL, 16, CUDA_GRANULE_BYTES),
}
wasted = {name: [(n, cut.utilisation_frac(n)) for n in range(16, 2049, 16)] for name, cut in cuts.items()}
title = f"{MODEL.id} on {GPU.id}: memory utilisation"
charts = (
    LineChart(title="KV cache that holds tokens", x_label="requests at once", y_label="share of it", lines=served),
    LineChart(
        title="Tokens over memory taken", x_label="tokens of a sequence", y_label="share", lines=wasted, y_max=1.0
    ),
)
text = f"{BLOCKS} blocks of 16 tokens; {PROMPT} prompt and {OUTPUT} generated tokens each."
for engine, line in served.items():
    drops = [(before, after) for before, after in itertools.pairwise(line) if after[1] < 0.9 * before[1]]
    worst = min(drops, key=lambda pair: pair[1][1] / pair[0][1], default=None)
    fall = f"from {worst[0][1]:.0%} at {worst[0][0]} to {worst[1][1]:.0%} at {worst[1][0]}" if worst else "none"
    print(f"{engine}: most {max(use for _, use in line):.0%}, steepest drop {fall}")
for name, line in wasted.items():
    print(f"{name}: {line[0][1]:.0%} of the memory taken for 16 tokens is used, {line[-1][1]:.0%} for 2048")
if len(sys.argv) > 1:
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(to_page(title, text, charts))
