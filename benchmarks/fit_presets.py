"""Derive the preset tables of `src/plimsoll/workload/data/presets` from public traces and published percentiles.

    python benchmarks/fit_presets.py --traces ../shared/data/traces [--out src/plimsoll/workload/data/presets]

Two kinds of source. A trace gives quantiles directly: 117 levels of the prompt length, and for each decile of the
prompts 49 levels of the output length. Where only percentiles and a mean are published, the quantile function is
log-linear between the published points, and what is free in it (see `from_points`) reproduces the published mean.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plimsoll.workload.readers import read_trace

PROMPT_LEVELS = np.unique(
    np.round([0, 0.001, 0.0025, 0.005, *np.arange(0.01, 1, 0.01), 0.9925, 0.995, 0.9975, 0.999, 0.9995, 1], 6)
)
OUTPUT_LEVELS = np.unique(
    np.round(
        [0, 0.005, 0.01, *np.arange(0.025, 1, 0.025), 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.9985, 0.9995, 1], 6
    )
)
NUM_CLASSES = 10
NOT_PUBLISHED = "The dependence of output on prompt length is not published: they are drawn independently."

AZURE = {
    "source": "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2023.md",
    "licence": "CC-BY 4.0",
    "attribution": "Patel et al., Splitwise: Efficient generative LLM inference using phase splitting, ISCA 2024",
    "date": "2023-11-16",
    "tokenizer": "the service's own (not published)",
}
MOONCAKE = {
    "source": "https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release/traces",
    "licence": "Apache-2.0",
    "attribution": "Qin et al., Mooncake: Trading more storage for less computation, FAST 2025",
    "date": "2025-02-21",
    "tokenizer": "the service's own (not published)",
}
ETALON = {
    "source": "https://github.com/project-etalon/etalon/tree/main/data/processed_traces",
    "licence": "Apache-2.0 (the repository's; the texts behind the lengths have terms of their own)",
    "attribution": "Agrawal et al., Etalon: Holistic performance evaluation framework for LLM inference systems, 2024",
    "date": "2024-07-09",
    "tokenizer": "Llama 2",
}
WORKLOAD_CHOICE = {
    "source": "https://doi.org/10.1145/3642970.3655823",
    "licence": "figures of the paper (its artifact is MIT); percentiles read off figure 1",
    "attribution": "Papaioannou and Doudali, The Importance of Workload Choice in Evaluating LLM Inference Systems, "
    "EuroMLSys 2024",
    "date": "2024-04-22",
    "tokenizer": "OPT",
}
TRACELAB = {
    "source": "https://tracelab.cs.washington.edu/exp/llm_generation/token_length_distribution/",
    "licence": "CC-BY 4.0",
    "attribution": "Zhu et al., TraceLab: Characterizing Coding Agent Workloads for LLM Serving, arXiv 2606.30560",
    "date": "2026-06-04",
    "tokenizer": "the provider's own",
}

AGENTIC_NOTE = (
    "One request is one step of a coding agent (Codex), its whole context the prompt: cached prefix plus what the "
    "step appends, put together from published tables by prefix bin. The source served 95.7 % of prompt tokens "
    "from its prefix cache: without prefix caching the prefill work is that much larger. " + NOT_PUBLISHED + " "
    "Rows with both lengths were sought in November 2026: those of Mooncake's toolagent trace (8,596 tokens in and 182 "
    "out on average, simpler agents) and of the source's own data set were not within reach."
)

# name: (file, title, aliases, source, note)
FROM_TRACES = {
    "chat": (
        "AzureLLMInferenceTrace_conv.csv",
        "conversations of a cloud service (Azure 2023)",
        ["conversation", "conversational", "azure-conv", "azure-conversation"],
        AZURE,
        "",
    ),
    "code": (
        "AzureLLMInferenceTrace_code.csv",
        "code completion of a cloud service (Azure 2023)",
        ["coding", "code-completion", "azure-code"],
        AZURE,
        "The trace itself is extremely bursty (gap CV 13); a preset keeps its lengths only.",
    ),
    "long-context": (
        "mooncake_conversation_trace.jsonl.gz",
        "long conversations over documents (Mooncake 2025)",
        ["rag", "long-context/rag", "retrieval", "mooncake", "mooncake-conversation"],
        MOONCAKE,
        "Prompts include the earlier turns; 37 % of prompt tokens repeat a prefix (unlimited cache).",
    ),
    "sharegpt": (
        "etalon_sharegpt_8k_filtered_stats_llama2_tokenizer.csv.gz",
        "ShareGPT conversations, history included, up to 8k tokens",
        ["share-gpt", "sharegpt-8k"],
        ETALON,
        "",
    ),
    "summarization": (
        "etalon_arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz",
        "arXiv papers to abstracts, up to 4k tokens in all",
        ["summarisation", "summary", "arxiv", "arxiv-summarization"],
        ETALON,
        "The source keeps prompt plus output within 4096 tokens; its longest outputs belong to its shortest prompts.",
    ),
    "translation": (
        "etalon_bwb_stats_llama2_tokenizer_filtered_v2.csv.gz",
        "book chapters from Chinese to English (BWB)",
        ["bwb"],
        ETALON,
        "",
    ),
}

LEVELS = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
# name: (title, aliases, note, prompt mean, prompt percentiles, output mean, output percentiles)
FROM_PERCENTILES = {
    "question-answering": (
        "Dolly questions with their context",
        ["qa", "q&a", "dolly", "dolly-qa"],
        (67.4, (9, 12, 28, 204, 300, 738)),
        (76.1, (19, 47, 97, 171, 240, 471)),
    ),
    "text-generation": (
        "Alpaca instructions",
        ["generation", "alpaca", "instructions"],
        (18.7, (12, 15, 21, 30, 39, 75)),
        (58.5, (14, 43, 86, 125, 159, 273)),
    ),
    "news-summarization": (
        "CNN/DailyMail articles to highlights",
        ["cnn-dailymail", "cnndm", "news-summarisation"],
        (869.0, (556, 794, 1100, 1464, 1718, 2121)),
        (66.7, (50, 63, 77, 99, 115, 153)),
    ),
    "sharegpt-first-turn": (
        "ShareGPT, first human turn and its answer",
        ["sharegpt-single-turn"],
        (342.0, (21, 127, 487, 924, 1248, 2497)),
        (234.8, (23, 146, 348, 592, 790, 1220)),
    ),
}


def statistics(tokens: np.ndarray) -> dict[str, float]:
    p50, p90, p99 = np.percentile(tokens, [50, 90, 99])
    figures = {"mean": tokens.mean(), "p50": p50, "p90": p90, "p99": p99}
    return {name: round(float(value), 1) for name, value in figures.items()}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, with mid-ranks for ties."""

    def ranks(x: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return round(float(np.corrcoef(ranks(a), ranks(b))[0, 1]), 3)


def from_trace(path: Path) -> dict[str, object]:
    trace = read_trace(path)
    prompt, output = trace.prompt_tokens, trace.output_tokens
    by_prompt = np.argsort(prompt, kind="stable")
    classes = [output[part] for part in np.array_split(by_prompt, NUM_CLASSES)]
    return {
        "num_samples": len(prompt),
        "statistics": {
            "prompt_tokens": statistics(prompt),
            "output_tokens": statistics(output),
            "rank_correlation": rank_correlation(prompt, output),
        },
        "prefix_hit_frac": None,
        "prompt_levels_frac": PROMPT_LEVELS.tolist(),
        "prompt_quantiles_tokens": rounded(np.quantile(prompt, PROMPT_LEVELS)),
        "output_levels_frac": OUTPUT_LEVELS.tolist(),
        "output_quantiles_tokens": [rounded(np.quantile(part, OUTPUT_LEVELS)) for part in classes],
    }


def rounded(values: np.ndarray) -> list[float]:
    return [int(v) if float(v).is_integer() else round(float(v), 1) for v in values]


def from_points(
    levels: tuple[float, ...], tokens: tuple[float, ...], mean_tokens: float, least: float, limit: float = 4096
) -> np.ndarray:
    """Quantiles at PROMPT_LEVELS through the published points, with the published mean.

    Between points the quantile is log-linear in ``level ** bend``. The bend is 1 and the maximum is solved for the
    mean; where that maximum would lie below the last point or above the source's limit, the maximum is three times
    the last point, at most the limit, and the bend is solved instead.
    """
    fine = (np.arange(200_000) + 0.5) / 200_000
    knots = np.array([0, *levels, 1])

    def quantiles(at: np.ndarray, most: float, bend: float) -> np.ndarray:
        logs = np.log([least, *tokens, most])
        k = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
        part = (at - knots[k]) / (knots[k + 1] - knots[k])
        return np.exp(logs[k] + part**bend * (logs[k + 1] - logs[k]))

    last = float(tokens[-1])
    most, bend = min(last * 3, limit), 1.0
    if quantiles(fine, last * 1.02, 1.0).mean() <= mean_tokens <= quantiles(fine, limit, 1.0).mean():
        most = solve(lambda x: quantiles(fine, x, 1.0).mean(), mean_tokens, last * 1.02, limit)
    else:
        bend = solve(lambda x: -quantiles(fine, most, x).mean(), -mean_tokens, 0.25, 4.0)
    print(f"  maximum {most:,.0f} tokens, bend {bend:.3f}")
    return quantiles(PROMPT_LEVELS, most, bend)


def solve(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function meets the target, by bisection."""
    if not rising(low) <= target <= rising(high):
        raise SystemExit(f"{target} is outside {rising(low):.1f} to {rising(high):.1f}")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high


def from_percentiles(
    prompt: tuple[float, tuple[float, ...]], output: tuple[float, tuple[float, ...]]
) -> dict[str, object]:
    def published(mean: float, tokens: tuple[float, ...]) -> dict[str, float]:
        return {"mean": mean, "p50": tokens[1], "p90": tokens[3], "p99": tokens[5]}

    return {
        "num_samples": None,
        "statistics": {
            "prompt_tokens": published(*prompt),
            "output_tokens": published(*output),
            "rank_correlation": None,
        },
        "prefix_hit_frac": None,
        "prompt_levels_frac": PROMPT_LEVELS.tolist(),
        "prompt_quantiles_tokens": rounded(from_points(LEVELS, prompt[1], prompt[0], least=prompt[1][0] / 3)),
        "output_levels_frac": PROMPT_LEVELS.tolist(),
        "output_quantiles_tokens": [rounded(from_points(LEVELS, output[1], output[0], least=1))],
    }


# TraceLab, Codex: steps whose prefix lies in each bin (upper edge in tokens), and what they append: mean, p50, p90,
# p99.
# https://tracelab.cs.washington.edu/exp/llm_generation/append_by_prefix_bin/
CODEX_BINS = (
    (1024, 626, 116_300, 124_300, 210_700, 247_000),
    (2048, 90, 22_200, 4_300, 63_900, 192_600),
    (4096, 2_108, 56_400, 20_800, 168_700, 240_800),
    (8192, 3_501, 60_200, 25_700, 172_400, 220_700),
    (16384, 5_503, 22_800, 2_900, 84_700, 195_500),
    (32768, 10_470, 9_600, 1_900, 18_800, 152_200),
    (65536, 29_925, 3_700, 954, 8_300, 50_400),
    (131072, 72_996, 2_700, 796, 6_100, 31_300),
    (262144, 91_598, 2_200, 771, 5_300, 21_000),
)
CODEX_PREFIX = (116_623, ((0.25, 67_456), (0.5, 115_584), (0.9, 201_600), (0.99, 231_040)))
CODEX_OUTPUT = (415, (0.25, 0.5, 0.9, 0.99), (70, 184, 939, 3_508))


def agentic() -> dict[str, object]:
    """Prompt = cached prefix + append; the append's quantiles depend on the prefix's bin."""
    rng = np.random.default_rng(0)
    total_steps = sum(row[1] for row in CODEX_BINS)
    edges = dict(
        zip(np.cumsum([row[1] for row in CODEX_BINS]) / total_steps, [row[0] for row in CODEX_BINS], strict=True)
    )
    points = sorted(
        {
            **{level: tokens for level, tokens in edges.items() if level < 0.99 and tokens <= 65536},
            **dict(CODEX_PREFIX[1]),
        }.items()
    )
    u = (np.arange(400_000) + 0.5) / 400_000
    prefix = np.interp(u, [0, *[p[0] for p in points], 1], [16, *[p[1] for p in points], 258_000])
    append = np.empty(len(u))
    lower = 0
    for upper, _, mean, p50, p90, p99 in CODEX_BINS:
        inside = (prefix > lower) & (prefix <= upper)
        v = rng.random(int(inside.sum()))
        draw = np.exp(np.interp(v, [0, 0.25, 0.5, 0.9, 0.99, 1], np.log([20, 0.46 * p50, p50, p90, p99, 1.2 * p99])))
        append[inside] = draw
        print(f"  agentic, prefix <= {upper}: append mean {draw.mean():,.0f} (published {mean:,})")
        lower = upper
    # No published window is named; Codex saturates near 231k of prefix, and no prefix bin above 256k holds 1 in 3000.
    prompt = np.minimum(prefix + append, 272_000)
    print(
        f"  agentic, prefix mean {prefix.mean():,.0f} (published {CODEX_PREFIX[0]:,}), prompt mean {prompt.mean():,.0f}"
    )
    return {
        "num_samples": 216_823,
        "statistics": {
            "prompt_tokens": {"mean": 121_906, "p50": None, "p90": None, "p99": None},
            "output_tokens": {"mean": 415, "p50": 184, "p90": 939, "p99": 3_508},
            "rank_correlation": None,
        },
        "prefix_hit_frac": round(116_623 / 121_906, 3),
        "prompt_levels_frac": PROMPT_LEVELS.tolist(),
        "prompt_quantiles_tokens": rounded(np.rint(np.quantile(prompt, PROMPT_LEVELS))),
        "output_levels_frac": PROMPT_LEVELS.tolist(),
        "output_quantiles_tokens": [rounded(from_points(CODEX_OUTPUT[1], CODEX_OUTPUT[2], CODEX_OUTPUT[0], 5, 32_768))],
    }


def write(folder: Path, name: str, head: dict[str, object], table: dict[str, object]) -> None:
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in {**head, **table}.items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (folder / f"{name}.json").write_text(text.replace("], [", "],\n    ["), encoding="utf-8")
    print(f"{name}: {len(text)} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--traces", type=Path, default=root.parent / "shared" / "data" / "traces")
    parser.add_argument("--out", type=Path, default=root / "src" / "plimsoll" / "workload" / "data" / "presets")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (file, title, aliases, source, note) in FROM_TRACES.items():
        head = {"title": title, "aliases": aliases, **source, "note": note, "source_file": file}
        write(options.out, name, head, from_trace(options.traces / file))
    for name, (title, aliases, prompt, output) in FROM_PERCENTILES.items():
        head = {"title": title, "aliases": aliases, **WORKLOAD_CHOICE, "note": NOT_PUBLISHED}
        write(options.out, name, head, from_percentiles(prompt, output))
    head = {
        "title": "steps of coding agents, whole context (TraceLab 2026)",
        "aliases": ["agent", "agents", "coding-agent", "tool-agent"],
        **TRACELAB,
        "note": AGENTIC_NOTE,
    }
    write(options.out, "agentic", head, agentic())


if __name__ == "__main__":
    main()
