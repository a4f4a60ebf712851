"""Speed and truth of the step models: calls per second, build time, and errors against public measurements.

    PLIMSOLL_DATA=../shared/data python benchmarks/step_cost.py

Measurements: Vidur's matrix products (shapes part of the fit), ML.ENERGY's inter-token latencies on H100 and B200 by
one mean step, with the host time of `vllm-0.11-*` (`python -m validation ml-energy` simulates the same rows), and
`silicon`'s tables. Assumed for ML.ENERGY, which gives no prompt lengths: 250 tokens (chat), 300 (gpqa), 1500 (code
completion); a step decodes the average batch at prompt + half the output, and takes in the prompts that finished ones
make room for; expert parallelism with one data-parallel rank cuts attention over the same GPUs.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.models import list_models, load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import PlimsollError
from plimsoll.core.step import StepShape
from plimsoll.perf.efficiency import find_efficiency
from plimsoll.perf.kernels import Pricing, matrix_seconds
from plimsoll.perf.operators import Gemm
from plimsoll.perf.overheads import Overheads, load_overheads
from plimsoll.perf.roofline import Roofline
from plimsoll.perf.silicon import Silicon, SiliconOptions, silicon_available

DATA = Path(os.environ.get("PLIMSOLL_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
PROMPT_TOKENS = {"lm-arena-chat": 250, "gpqa": 300, "sourcegraph-fim": 1500}
PRECISIONS = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "fp4"}
CARDS = {"H100": "H100-SXM", "B200": "B200"}


def best_us(call: Callable[[], object], number: int = 100_000) -> float:
    return min(timeit.repeat(call, number=number, repeat=3)) / number * 1e6


def speed() -> None:
    for name, card, cut, precision in (
        ("meta-llama/Llama-2-7b-hf", "A100-SXM-80GB", Parallelism(), "bf16"),
        ("deepseek-ai/DeepSeek-V3", "H200", Parallelism(tp=8, ep=8), "fp8"),
    ):
        model, gpu = load_model(name), load_accelerator(card)
        for kind in (Roofline, Silicon):
            if kind is Roofline or silicon_available(gpu):
                print(f"{kind.__name__:9}{name:26} {speed_of(functools.partial(kind, model, gpu, cut, precision))}")


def speed_of(build: Callable[[], Roofline | Silicon]) -> str:
    start = time.perf_counter()
    build()
    first = time.perf_counter()
    step_model = build()
    again = time.perf_counter()
    for tokens in range(1, 513):
        step_model.step_s(tokens, 1, tokens * tokens // 2, 0, 1, tokens % 128, 64_000)
    filled = time.perf_counter()
    mixed = best_us(lambda: step_model.step_s(400, 1, 80_000, 100, 0, 64, 64_000))
    decode = best_us(lambda: step_model.step_s(0, 0, 0, 0, 0, 64, 64_000))
    line = best_us(lambda: step_model.decode_line(64, 64_000))
    return (
        f"build {(first - start) * 1e3:6.1f} ms, again {(again - first) * 1e3:5.1f} ms, tables of 512 tokens"
        f" {(filled - again) * 1e3:6.1f} ms; mixed step {mixed:.2f} us, decode step {decode:.2f} us, line {line:.2f} us"
        f" ({1 / mixed:.1f} to {1 / decode:.1f} million calls/s)"
    )


def vidur() -> None:
    for device, card in (("a100", "A100-SXM-80GB"), ("h100", "H100-SXM"), ("a40", "A40")):
        found = []
        for file in sorted((DATA / "operator-profiles" / "vidur").glob(f"{device}_*_mlp.csv.gz")):
            for r in pl.read_csv(file).iter_rows(named=True):
                ways, h, inter = r["num_tensor_parallel_workers"], r["n_embd"], r["n_expanded_embd"]
                dim = h // r["n_head"]
                query, kv = r["n_head"] // ways * dim, max(1, r["n_kv_head"] // ways) * dim
                shapes = {
                    "attn_pre_proj": (h, query + 2 * kv),
                    "attn_post_proj": (query, h),
                    "mlp_up_proj": (h, 2 * inter // ways),
                    "mlp_down_proj": (inter // ways, h),
                }
                predicted = sum(_gemm_s(k, n, card)(r["num_tokens"]) for k, n in shapes.values())
                measured = sum(r[f"time_stats.{op}.median"] for op in shapes) / 1e3
                found.append(predicted / measured - 1)
        error = np.array(found)
        print(f"vidur    {card:16} matrix products of a layer, n={len(error)}: {_quantiles(error)}")


@functools.cache
def _gemm_s(k: int, n: int, card: str) -> Callable[[float], float]:
    gpu = load_accelerator(card)
    pricing = Pricing(gpu=gpu, family=find_efficiency(gpu).family, plain="bf16")
    return matrix_seconds(Gemm(name="", count=1, k=k, n=n, weight_bits=16, precision="bf16"), pricing)


def _quantiles(error: np.ndarray) -> str:
    bias, median, p90 = np.median(error), np.median(np.abs(error)), np.quantile(np.abs(error), 0.9)
    return f"median {bias:+.3f}, median absolute {median:.3f}, p90 absolute {p90:.3f}"


def find_model(name: str) -> ModelSpec | None:
    known = set(list_models())
    plain = name.replace("-FP8", "").replace("Thinking", "Instruct")
    for candidate in (
        plain,
        plain.replace("-Instruct", ""),
        plain.replace("-Instruct-2507", ""),
        plain.replace("-0528", ""),
    ):
        if candidate in known:
            return load_model(candidate)
    return None


def mean_step(step_model: Roofline | Silicon, row: dict) -> tuple[StepShape, StepShape]:
    """A decode-only step of the row's average batch, and the average step with its share of prompts."""
    batch, prompt = row["avg_batch"], PROMPT_TOKENS[row["task"]]
    length = int(prompt + row["avg_output_tokens"] / 2)
    layers = step_model.attention_layers
    seen = sum(weight * min(length, window or length) for weight, window in layers)
    entering = batch / row["avg_output_tokens"]
    decode = {"num_decode": round(batch), "decode_read_tokens": round(batch) * seen}
    pairs = sum(weight for weight, _ in layers) * entering * prompt * (prompt + 1) / 2
    mixed = StepShape(
        prefill_tokens=round(entering * prompt),
        num_prefill=max(1, round(entering)),
        prefill_pairs=round(pairs),
        **decode,
    )
    return StepShape(**decode), mixed if mixed.prefill_tokens else StepShape(**decode)


def ml_energy_rows() -> list[tuple[dict, Parallelism, ModelSpec]]:
    rows = []
    for row in pl.read_csv(DATA / "ml-energy" / "llm_text.csv").iter_rows(named=True):
        model = find_model(row["model"])
        if model is not None:
            if row["ep"] > 1:
                dp = row["dp"]
                cut = Parallelism(tp=row["num_gpus"] // dp, dp=dp, ep=row["ep"])
            else:
                cut = Parallelism(tp=row["tp"], dp=row["num_gpus"] // row["tp"])
            rows.append((row, cut, model))
    return rows


def host_time(row: dict) -> Overheads:
    generation = "blackwell" if row["gpu"] == "B200" else "hopper"
    return load_overheads(f"vllm-0.11-{generation}{'-ep' if row['ep'] > 1 else ''}")


def ml_energy(kind: str) -> None:
    groups: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    refused = 0
    rows = ml_energy_rows()
    for row, cut, model in rows:
        gpu = load_accelerator(CARDS[row["gpu"]])
        args = (model, gpu, cut, PRECISIONS[row["weights"]], "auto", host_time(row))
        try:
            built = Roofline(*args) if kind == "roofline" else Silicon(*args, SiliconOptions(allow_fallback=True))
        except PlimsollError:
            refused += 1
            continue
        decode, mixed = mean_step(built, row)
        itl = built.step(decode).time_s / (row["median_itl_ms"] / 1e3) - 1
        cost = built.step(mixed)
        mean = cost.time_s / (row["avg_batch"] / row["output_tokens_per_s"]) - 1
        watts = cost.energy_j / cost.time_s / row["avg_power_w"] - 1 if cost.energy_j else float("nan")
        groups.setdefault((row["gpu"], row["model"]), []).append((itl, mean, watts))
    answered = f"{len(rows) - refused} of {len(rows)} rows of catalogued models"
    print(f"\nML.ENERGY, {kind}: {answered}")
    for (gpu, model), values in sorted(groups.items()):
        itl, mean, watts = np.array(values).T
        print(
            f"  {gpu} {model:44} n={len(itl):<3} ITL {np.median(itl):+.2f} (abs {np.median(abs(itl)):.2f})"
            f"  mean step {np.median(mean):+.2f} (abs {np.median(abs(mean)):.2f})  watts {np.median(watts):+.2f}"
        )
    for gpu in CARDS:
        every = np.array([v for (g, _), vs in groups.items() if g == gpu for v in vs])
        watts = np.median(abs(every[:, 2]))
        print(f"  {gpu}: ITL {_quantiles(every[:, 0])}; watts median absolute {watts:.3f}")


def agreement() -> None:
    """Roofline over silicon on steps of dense models: two independent views of the same tables."""
    shapes = [StepShape(num_decode=n, decode_read_tokens=1000 * n) for n in (1, 4, 16, 64, 256)]
    shapes += [
        StepShape(prefill_tokens=t, num_prefill=1, prefill_pairs=t * t // 2, num_prefill_done=1)
        for t in (128, 512, 2048, 8192)
    ]
    for card in ("A100-SXM-80GB", "H100-SXM", "H200", "B200", "L40S", "RTX-PRO-6000"):
        gpu = load_accelerator(card)
        if not silicon_available(gpu):
            continue
        ratios = []
        for name, ways in (("meta-llama/Llama-3.1-8B", 1), ("Qwen/Qwen3-14B", 1), ("meta-llama/Llama-3.1-70B", 4)):
            args = (load_model(name), gpu, Parallelism(tp=ways))
            modelled, measured = Roofline(*args), Silicon(*args)
            ratios += [modelled.step(shape).time_s / measured.step(shape).time_s - 1 for shape in shapes]
        print(f"roofline against silicon {card:16} n={len(ratios)}: {_quantiles(np.array(ratios))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    speed()
    agreement()
    if not DATA.is_dir():
        print(f"no measured data at {DATA}: set PLIMSOLL_DATA for the comparisons with Vidur and ML.ENERGY")
        return
    vidur()
    ml_energy("roofline")
    if silicon_available(load_accelerator("H100-SXM")):
        ml_energy("silicon")


if __name__ == "__main__":
    main()
