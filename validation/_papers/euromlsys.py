"""The importance of workload choice (EuroMLSys 2024, https://doi.org/10.1145/3642970.3655823): rates and throughputs.

vLLM on one A100-40GB, block 16, 2560 tokens a step, sequences below 2048 tokens, four data sets; offline, a thousand
requests at once; online, ten minutes of Poisson arrivals, the highest rate at which the 95th percentile of latency over
generated tokens stays within 0.1875 s. Published: OPT-13B with 643 blocks, OPT-6.7B and Llama-2-7B with 600.
Sources: https://github.com/muse-research-lab/llm-inference-workload-eval (experiments/, analysis.ipynb, proc-outputs/)
and the benchmark it runs, https://github.com/muse-research-lab/vllm (benchmarks/trace.py).

Assumed. Answers end early: that benchmark asks for a data set's output length as the maximum and samples at temperature
1 without ``ignore_eos``, so the model may end first, and how often was not published. One number stands for it: every
token ends an answer with probability 1/430, such that the offline throughput of OPT-13B on ShareGPT comes out (an
input, not judged). With the data sets' own lengths that figure would be half of the published one.
Steps: our kernels, no host time (vLLM 0.2: see `vllm` for what came before).
Lengths are our presets, read off the paper's figure 1, which counts tokens of OPT for every model.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from plimsoll.core.columns import Ints, ints
from plimsoll.core.run import Run
from plimsoll.perf.roofline import Roofline
from validation._papers._row import SHOWN, as_text, row
from validation._papers._serving import arriving, highest_rate, kernels, preset_lengths, serve

SOURCE = "https://doi.org/10.1145/3642970.3655823, figure 2; proc-outputs of its repository"
BOUND = 0.25
TOKENS_TO_END = 430.0
TARGET_S, DURATION_S = 0.1875, 600.0
PRESETS = {
    "Alpaca": "text-generation",
    "CNN/DailyMail": "news-summarization",
    "Dolly QA": "question-answering",
    "ShareGPT": "sharegpt-first-turn",
}
MODELS = {
    "OPT-13B": ("facebook/opt-13b", 643, (31.3, 3.95, 17.4, 3.79)),
    "OPT-6.7B": ("facebook/opt-6.7b", 600, (52.2, 6.88, 28.0, 6.39)),
    "Llama-2-7B": ("meta-llama/Llama-2-7b-hf", 600, (40.8, 5.15, 20.5, 5.72)),
}
"""Model → id, KV blocks, offline requests/s in the order of `PRESETS`."""
MAX_RATES = (30.0, 0.5, 17.0, 3.6)
"""Online, OPT-13B, in the order of `PRESETS`."""


@functools.cache
def step_model(name: str) -> Roofline:
    """Kernels of one model."""
    return kernels(MODELS[name][0], "A100-SXM-40GB")


def lengths(
    data_set: str,
    num_requests: int,
    tokens_to_end: float = TOKENS_TO_END,
    first_ends_frac: float = 0.0,
    scale: float = 1.0,
) -> tuple[Ints, Ints]:
    """Prompts and what is generated for them.

    Args:
        data_set: of `PRESETS`.
        num_requests: how many.
        tokens_to_end: mean tokens after which a model ends of itself; infinite for never.
        first_ends_frac: share of answers that end with their first token instead.
        scale: tokens of the model's tokenizer over those of OPT.
    """
    prompt, output = preset_lengths(PRESETS[data_set], int(1.3 * num_requests) + 50, 0)
    prompt, output = (np.maximum(1, np.rint(scale * column)).astype(np.int64) for column in (prompt, output))
    kept = np.flatnonzero(prompt + output < 2048)[:num_requests]
    prompt, output = prompt[kept], output[kept]
    rng = np.random.default_rng(0)
    if np.isfinite(tokens_to_end):
        output = np.minimum(output, rng.geometric(1.0 / tokens_to_end, len(output)))
    if first_ends_frac:
        output = np.where(np.random.default_rng(1).random(len(output)) < first_ends_frac, 1, output)
    return ints(prompt), ints(output)


def _run(name: str, load: Any) -> Run:
    sizes = {
        "num_blocks": MODELS[name][1],
        "block_size": 16,
        "max_num_seqs": 2048,
        "max_num_batched_tokens": 2560,
        "max_model_len": 2048,
    }
    return serve(load, step_model(name), "vllm-v0", sizes)


def offline_per_s(name: str, data_set: str, tokens_to_end: float = TOKENS_TO_END, scale: float = 1.0) -> float:
    """Requests/s of a thousand requests at once."""
    run = _run(name, arriving(lengths(data_set, 1000, tokens_to_end, scale=scale), None, 0))
    return len(run) / run.end_s


def latency_p95_s(data_set: str, rate_per_s: float, first_ends_frac: float = 0.0) -> float:
    """OPT-13B: 95th percentile of latency over generated tokens."""
    found = lengths(data_set, round(rate_per_s * DURATION_S), first_ends_frac=first_ends_frac)
    run = _run("OPT-13B", arriving(found, rate_per_s, 0))
    return float(np.percentile((run.finish_s - run.arrival_s) / run.output_tokens, 95))


def max_rate_per_s(data_set: str) -> float:
    """OPT-13B: the highest rate within the target."""
    return highest_rate(lambda rate: latency_p95_s(data_set, rate) <= TARGET_S, 0.1, 51.2)


def rows() -> list[dict[str, Any]]:
    """Offline throughputs of three models, online rates of one."""
    table = []
    for name, (_, _, published) in MODELS.items():
        for data_set, paper in zip(PRESETS, published, strict=True):
            ours = offline_per_s(name, data_set)
            fitted = (name, data_set) == ("OPT-13B", "ShareGPT")
            why = "an input: sets how early answers end" if fitted else "answers end at a token in 430"
            if name.startswith("Llama"):
                longer = offline_per_s(name, data_set, scale=1.2)
                why += f"; lengths in OPT's tokens: with 1.2 times as many {longer:.3g}; its own end of answers unknown"
            bound = SHOWN if fitted else BOUND
            table.append(row(f"{name} {data_set} offline", paper, ours, bound, unit="req/s", assumption=why))
    plain = offline_per_s("OPT-13B", "ShareGPT", float("inf"))
    why = "if answers had the data set's lengths"
    table.append(row("OPT-13B ShareGPT offline, full answers", 3.79, plain, SHOWN, unit="req/s", assumption=why))
    for data_set, paper in zip(PRESETS, MAX_RATES, strict=True):
        why = "answers end at a token in 430"
        if data_set == "CNN/DailyMail":
            why = (
                "the GPU idles at 0.5/s: not load but answers of a token or two, whose latency is a prefill; if three "
            )
            why += "answers in ten end with their first token"
            at = [latency_p95_s(data_set, rate, 0.3) for rate in (0.1, 0.5, 1.0)]
            why += ", " + ", ".join(f"{1e3 * seconds:.0f}" for seconds in at)
            why += " ms at 0.1, 0.5, 1/s of 187.5 allowed: chance decides, hence 0.4 to 1.0 by memory in the paper"
        rate = max_rate_per_s(data_set)
        table.append(row(f"OPT-13B {data_set} online", paper, rate, BOUND, unit="req/s", assumption=why))
    return table


if __name__ == "__main__":
    print(as_text(rows()))
