"""Offline throughput of vLLM, DeepSpeed-FastGen and TensorRT-LLM in figure 7 of NanoFlow (arXiv 2408.12757).

LLaMA-2-70B on eight A100-80GB, all requests at once, input and output tokens per second and GPU over the optimum of
1857. Three workloads of constant lengths, three drawn from data sets of the means and deviations of table 4.

From the engines (none of it is in the paper): vLLM 0.5.3 has 256 seats and, with chunked prefill as here, 512 tokens a
step; FastGen 512 sequences and 768 tokens. Those alone bring vLLM from the 61 % that the table's kernels would reach at
2048 tokens a step down to 39 %.

Assumed:
    host time   of the two engines written in Python what a measurement of vLLM in July 2024, the month of 0.5.3,
                leaves beside our kernels: Llama-3-70B at fp8 on four H100, 19 ms a token at one sequence, 25 at 32
                (https://github.com/vllm-project/vllm/issues/6913): 7.9 ms a step and 0.14 ms a sequence. TensorRT-LLM
                schedules in C++: none.
    seats       of TensorRT-LLM: 256, the default of its later releases. With 1024 it would be 45 %.
    lengths     of the data sets: lognormal.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from plimsoll.core.columns import Ints, ints
from plimsoll.perf.overheads import NO_OVERHEADS, Overheads
from validation._papers._row import SHOWN, points, row
from validation._papers._serving import arriving, kernels, serve

POINTS = 5.0
CONSTANT = {"512 + 512": (512, 512), "1024 + 512": (1024, 512), "512 + 1024": (512, 1024)}
DATA_SETS = {
    "Splitwise": ((1155, 1109), (211, 163)),
    "LMSYS-Chat": ((102, 169), (222, 210)),
    "ShareGPT": ((246, 547), (322, 244)),
}
"""Mean and deviation of input and of output tokens."""
ENGINES = {
    "vLLM 0.5.3": (22.0, (494, 552, 410, 484, 251, 255)),
    "DeepSpeed-FastGen 0.2.3": (22.9, (490, 513, 372, 548, 335, 293)),
    "TensorRT-LLM 0.8": (37.8, (735, 817, 636, 831, 639, 560)),
}
"""Per cent of optimal, and tokens/s/GPU of the six workloads in the order above."""
GPUS = 8
NUM_BLOCKS = 85_000
"""Of 16 tokens: 90 % of 640 GB less 140 GB of weights and 2 GB a GPU, at 320 KiB a token."""
NUM_REQUESTS = 3000
ONE_SEQUENCE_S, MORE_SEQUENCES_S, MORE = 0.019, 0.025, 32
CONTEXT = 160
"""Tokens in place in that measurement: 128 of the prompt and some answer."""


@functools.cache
def host_time() -> Overheads:
    """What vLLM's measurement of July 2024 leaves beside our kernels."""
    model = kernels_of_the_measurement()
    fixed = ONE_SEQUENCE_S - model(1)
    per_sequence = (MORE_SEQUENCES_S - ONE_SEQUENCE_S - (model(MORE) - model(1))) / (MORE - 1)
    return Overheads(
        per_step_s=fixed - per_sequence, per_sequence_s=per_sequence, source="vLLM issue 6913, less kernels"
    )


def kernels_of_the_measurement() -> Any:
    """Seconds of a decode of so many sequences: Llama-3-70B at fp8 on four H100."""
    from plimsoll.catalog.accelerators import load_accelerator
    from plimsoll.catalog.models import load_model
    from plimsoll.core.deployment import Parallelism
    from plimsoll.perf.roofline import Roofline

    model = Roofline(load_model("meta-llama/Meta-Llama-3-70B"), load_accelerator("H100-SXM"), Parallelism(tp=4), "fp8")
    return lambda sequences: model.step_s(0, 0, 0, 0, 0, sequences, sequences * CONTEXT)


def workload(name: str) -> tuple[Ints, Ints]:
    """Prompts and outputs."""
    if name in CONSTANT:
        prompt, output = CONSTANT[name]
        return ints([prompt] * NUM_REQUESTS), ints([output] * NUM_REQUESTS)
    rng = np.random.default_rng(0)
    prompt, output = (_lognormal(rng, *moments) for moments in DATA_SETS[name])
    return ints(prompt), ints(output)


def _lognormal(rng: np.random.Generator, mean: float, deviation: float) -> Any:
    variance = np.log(1.0 + (deviation / mean) ** 2)
    values = np.exp(rng.normal(np.log(mean) - variance / 2, variance**0.5, NUM_REQUESTS))
    return np.clip(np.rint(values), 1, 4000).astype(np.int64)


def tokens_per_s(engine: str, name: str, seats: int = 256) -> float:
    """Input and output tokens per second and GPU."""
    policy, budget, options = {
        "vLLM 0.5.3": ("vllm-v1", 512, {"enable_prefix_caching": False}),
        "DeepSpeed-FastGen 0.2.3": ("fastgen", 768, {}),
        "TensorRT-LLM 0.8": ("trtllm", 8192, {}),
    }[engine]
    host = NO_OVERHEADS if engine.startswith("TensorRT") else host_time()
    model = kernels("meta-llama/Llama-2-70b-hf", "A100-SXM-80GB", GPUS, host)
    sizes = {
        "num_blocks": NUM_BLOCKS,
        "block_size": 16,
        "max_num_seqs": 512 if policy == "fastgen" else seats,
        "max_num_batched_tokens": budget,
        "max_model_len": 8192,
    }
    run = serve(arriving(workload(name), None, 0), model, policy, sizes, **options)
    return float((run.prompt_tokens.sum() + run.output_tokens.sum()) / run.end_s / GPUS)


def engine_rows(optimal: float) -> list[dict[str, Any]]:
    """The share of `optimal` tokens/s/GPU of each engine, and what it is the mean of."""
    host = host_time()
    words = f"host {1e3 * host.per_step_s:.1f} ms a step and {1e3 * host.per_sequence_s:.2f} a sequence (issue 6913)"
    table, single = [], []
    for engine, (percent, bars) in ENGINES.items():
        found = [tokens_per_s(engine, name) for name in (*CONSTANT, *DATA_SETS)]
        why = "no host time; 256 seats" if engine.startswith("TensorRT") else f"its seats and budget; {words}"
        share = 100.0 * float(np.mean(found)) / optimal
        table.append(points(f"{engine} share of optimal", percent, share, POINTS, assumption=why))
        for name, paper, ours in zip((*CONSTANT, *DATA_SETS), bars, found, strict=True):
            single.append(row(f"{engine}, {name}", paper, ours, SHOWN, unit="tokens/s/GPU", assumption=why))
    return table + single
