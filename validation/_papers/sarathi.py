"""Sarathi-Serve (OSDI 2024, https://arxiv.org/abs/2403.02310): capacity over vLLM and Orca, and the Yi-34B ablation.

Capacity is the highest Poisson rate with the 99th percentile of gaps between tokens within the strict target (0.1 s for
Mistral-7B on one A100-80GB, 0.2 s for Yi-34B on two) and a median wait of at most 2 s (section 5.1), over 2048 requests
of openchat_sharegpt4 within 8192 tokens, 128 seats (Orca 16), budget 512: osdi-experiments/figure-5-6 of
https://github.com/microsoft/sarathi-serve. All systems there are schedulers of one code base, as here.

Assumed: kernels without host time, since the targets are five times a step of 32 decodes at 4096 tokens: 20 ms and
40 ms, where our kernels take 23 and 38. Prompts and decodes have attention kernels of their own, as in that code base
(`SplitAttention`). Lengths are our `sharegpt` preset, made of the very file (etalon's copy of it).

The ablation (table 4): 128 requests at one a second. A hundred requests make a noisy percentile, so ours are means of
forty seeds. The text's budget is 1024, the artifact's script (osdi-experiments/table-6) runs 512; both are shown, the
text's is judged. The published seconds lie between the two: 1024 tokens of Yi-34B on two A100s are 113 ms at the
datasheet's peak and 152 ms at the share of it that matrix products reach, but the published 99th percentile is 140 ms.
With a budget of 768, `ablation(768, …)`, all four ratios lie within 25 %.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from plimsoll.core.run import Run
from plimsoll.metrics.gaps import pooled_gaps
from plimsoll.metrics.percentiles import weighted_percentile
from validation._papers._row import SHOWN, as_text, row
from validation._papers._serving import (
    POLICIES,
    SplitAttention,
    arriving,
    highest_rate,
    kernels,
    preset_lengths,
    serve,
)

SOURCE = "https://arxiv.org/abs/2403.02310, figure 10a and table 4"
BOUND = 0.25
MAX_WAIT_S = 2.0
NUM_REQUESTS = 2048
"""Cache blocks: 90 % of the memory less 16-bit weights and 2 GB of activations a GPU, at 128 and 240 KiB a token."""
MODELS = {
    "Mistral-7B": ("mistralai/Mistral-7B-v0.1", 1, 0.1, 26_200),
    "Yi-34B": ("01-ai/Yi-34B", 2, 0.2, 18_000),
}
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "vLLM": ("vllm-v0", {}),
    "Orca": ("orca", {"reservation": "max", "max_batch_size": 16}),
    "Sarathi-Serve": ("sarathi-serve", {"chunk_size": 512}),
}
GAINS = {("Mistral-7B", "vLLM"): 2.15, ("Mistral-7B", "Orca"): 2.78, ("Yi-34B", "vLLM"): 2.44, ("Yi-34B", "Orca"): 4.00}
ABLATION = {"hybrid-batching-only": (0.53, 0.68), "chunked-prefills-only": (1.04, 0.17), "combined": (0.76, 0.14)}
"""Scheduler → median time to first token, 99th percentile of gaps, in seconds."""


@functools.cache
def step_model(name: str) -> SplitAttention:
    """Kernels of one deployment."""
    model, tp, _, _ = MODELS[name]
    return SplitAttention(kernels(model, "A100-SXM-80GB", tp))


def run_at(name: str, engine: tuple[str, dict[str, Any]], rate_per_s: float, seed: int, num_requests: int) -> Run:
    """One engine at one rate."""
    policy, options = engine
    sizes = {
        "num_blocks": MODELS[name][3],
        "block_size": 16,
        "max_num_seqs": 128,
        "max_num_batched_tokens": 8192,
        "max_model_len": 8192,
    }
    load = arriving(_lengths(num_requests, seed), rate_per_s, seed)
    return serve(load, step_model(name), policy, sizes, **options)


@functools.cache
def _lengths(num_requests: int, seed: int) -> Any:
    prompt, output = preset_lengths("sharegpt", 2 * num_requests, seed)
    kept = np.flatnonzero(prompt + output <= 8192)[:num_requests]
    return prompt[kept], output[kept]


def gap_p99_s(run: Run) -> float:
    """99th percentile of all gaps between tokens."""
    gaps = pooled_gaps(run)
    assert gaps.weights is not None
    p99_s = weighted_percentile(gaps.values, gaps.weights, 99.0)
    return float("inf") if p99_s is None else p99_s


def capacity(name: str, system: str, seed: int) -> float:
    """The highest rate that meets target and wait."""

    def holds(rate_per_s: float) -> bool:
        run = run_at(name, SYSTEMS[system], rate_per_s, seed, NUM_REQUESTS)
        wait_s = float(np.median(run.scheduled_s - run.arrival_s))
        return wait_s <= MAX_WAIT_S and gap_p99_s(run) <= MODELS[name][2]

    return highest_rate(holds, 0.05, 12.8)


def ablation(budget: int, seeds: range) -> dict[str, tuple[float, float]]:
    """Scheduler → median time to first token, 99th percentile of gaps: means over seeds."""
    engines: dict[str, tuple[str, dict[str, Any]]] = {
        "hybrid-batching-only": ("sarathi-serve", {"chunk_size": 8192}),
        "chunked-prefills-only": (str(POLICIES / "simple_chunking.py"), {"chunk_size": budget}),
        "combined": ("sarathi-serve", {"chunk_size": budget}),
    }
    table = {}
    for scheduler, engine in engines.items():
        runs = [run_at("Yi-34B", engine, 1.0, seed, 128) for seed in seeds]
        ttft_s = np.mean([np.median(run.first_token_s - run.arrival_s) for run in runs])
        table[scheduler] = (float(ttft_s), float(np.mean([gap_p99_s(run) for run in runs])))
    return table


def ablation_rows(seeds: range = range(40)) -> list[dict[str, Any]]:
    """Order and ratios of table 4, and its seconds."""
    ours, other = ablation(1024, seeds), ablation(512, seeds)
    hybrid, chunked, both = ABLATION
    table = []
    pairs = [(hybrid, both, 0), (both, chunked, 0), (both, chunked, 1), (chunked, hybrid, 1)]
    kept = sum(ours[first][column] < ours[second][column] for first, second, column in pairs)
    table.append(row("ablation, neighbours in the paper's order", 4, kept, 0.0, unit="of 4", assumption="budget 1024"))
    for figure, first, second, column in (
        ("TTFT, chunked over hybrid", chunked, hybrid, 0),
        ("TTFT, combined over hybrid", both, hybrid, 0),
        ("gaps P99, hybrid over combined", hybrid, both, 1),
        ("gaps P99, chunked over combined", chunked, both, 1),
    ):
        paper = ABLATION[first][column] / ABLATION[second][column]
        with_512 = other[first][column] / other[second][column]
        why = f"budget 1024 of the text; with the script's 512 {with_512:.2f}"
        table.append(
            row(
                f"ablation {figure}",
                paper,
                ours[first][column] / ours[second][column],
                BOUND,
                unit="ratio",
                assumption=why,
            )
        )
    for scheduler, paper_s in ABLATION.items():
        for column, metric in enumerate(("TTFT P50", "gaps P99")):
            why = f"with the script's 512 {other[scheduler][column]:.3f}"
            table.append(
                row(
                    f"ablation {scheduler} {metric}",
                    paper_s[column],
                    ours[scheduler][column],
                    SHOWN,
                    unit="s",
                    assumption=why,
                )
            )
    return table


def rows(seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    """Gains in capacity (geometric means over seeds), and the ablation."""
    table = []
    for name in MODELS:
        found = {
            system: float(np.exp(np.mean([np.log(capacity(name, system, seed)) for seed in seeds])))
            for system in SYSTEMS
        }
        for system in ("vLLM", "Orca"):
            ours = found["Sarathi-Serve"] / found[system]
            why = f"kernels alone; {found['Sarathi-Serve']:.2f} against {found[system]:.2f} req/s"
            figure = f"{name} capacity over {system}, ShareGPT strict"
            table.append(row(figure, GAINS[name, system], ours, BOUND, unit="ratio", assumption=why))
    return table + ablation_rows()


if __name__ == "__main__":
    print(as_text(rows()))
