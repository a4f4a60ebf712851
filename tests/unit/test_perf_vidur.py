"""Vidur's tables as a step model: sums by hand, the measured tables of an A100, and what is refused."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, OutOfRangeError
from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.perf.build import build_step_model
from plimsoll.perf.profiles.outside import CountedSteps
from plimsoll.perf.request import StepModelRequest

LAYERS = 32
SIZES = {"n_head": 32, "n_kv_head": 32, "n_embd": 4096, "n_expanded_embd": 11008, "vocab_size": 32768}
TIMES_MS = {
    "emb": 0.02, "input_layernorm": 0.01, "attn_pre_proj": 0.13, "attn_rope": 0.01, "attn_post_proj": 0.05,
    "post_attention_layernorm": 0.01, "mlp_up_proj": 0.2, "mlp_act": 0.01, "mlp_down_proj": 0.1, "add": 0.005,
}  # fmt: skip
TOKENS = (1, 64, 512)


def write(path: Path, rows: list[dict[str, Any]], packed: bool = False) -> None:
    with gzip.open(path, "wt", newline="") if packed else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def mlp_rows(tp: int = 1, factor: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            **{f"time_stats.{name}.median": factor * ms * (1 + tokens / 100) for name, ms in TIMES_MS.items()},
            **{f"time_stats.{name}.max": 99.0 for name in TIMES_MS},
            **SIZES,
            "num_tokens": tokens,
            "num_tensor_parallel_workers": tp,
        }
        for tokens in TOKENS
    ]


def attention_rows(tp: int = 1) -> list[dict[str, Any]]:
    decodes = [
        {
            "batch_size": batch,
            "prefill_chunk_size": 0,
            "kv_cache_size": cached,
            "is_prefill": False,
            "time_stats.attn_decode.median": 0.01 + 1e-7 * batch * cached,
            "time_stats.attn_prefill.median": "",
        }
        for batch in (1, 8, 64)
        for cached in (32, 1024, 4096)
    ]
    chunks = [
        {
            "batch_size": 1,
            "prefill_chunk_size": chunk,
            "kv_cache_size": cached,
            "is_prefill": True,
            "time_stats.attn_decode.median": "",
            "time_stats.attn_prefill.median": 0.02 + 1e-7 * chunk * (cached + (chunk + 1) / 2),
        }
        for chunk in (64, 512)
        for cached in (0, 1024, 4096)
    ]
    extra = {"time_stats.attn_input_reshape.median": 0.001, "num_tensor_parallel_workers": tp}
    return [{**row, **extra} for row in decodes + chunks]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "mlp.csv", [*mlp_rows(1), *mlp_rows(2)])
    write(tmp_path / "attention.csv.gz", [*attention_rows(1), *attention_rows(2)], packed=True)
    return tmp_path


def model(folder: Path, tp: int = 1, name: str = "meta-llama/Llama-2-7b-hf", option: str = "") -> StepModel:
    request = StepModelRequest(
        model=load_model(name),
        gpu=load_accelerator("A100-SXM-80GB"),
        parallelism=Parallelism(tp=tp),
        precision="fp16",
    )
    return build_step_model(f"profile:{folder}{option}", request)


def test_a_decode_step_is_the_sum_of_its_operators(folder: Path) -> None:
    tokens_ms = sum(ms * (1 + 64 / 100) * (1 if name == "emb" else LAYERS * (2 if name == "add" else 1))
                    for name, ms in TIMES_MS.items())  # fmt: skip
    attention_ms = LAYERS * (0.01 + 1e-7 * 64 * 1024 + 0.001)
    seconds = model(folder).step_s(0, 0, 0, 0, 0, 64, 64 * 1024)
    assert seconds == pytest.approx((tokens_ms + attention_ms) / 1e3, rel=1e-9)


def test_a_chunk_is_read_by_its_pairs(folder: Path) -> None:
    chunk, context = 512, 1024
    pairs = chunk * context + chunk * (chunk + 1) // 2
    tokens_ms = sum(ms * (1 + 512 / 100) * (1 if name == "emb" else LAYERS * (2 if name == "add" else 1))
                    for name, ms in TIMES_MS.items())  # fmt: skip
    attention_ms = LAYERS * (0.02 + 1e-7 * pairs + 0.001)
    seconds = model(folder).step_s(chunk, 1, pairs, context, 1, 0, 0)
    assert seconds == pytest.approx((tokens_ms + attention_ms) / 1e3, rel=1e-9)


def test_tensor_parallelism_needs_its_messages(folder: Path) -> None:
    with pytest.raises(InputError, match="all_reduce"):
        model(folder, tp=2)
    rows = [
        {"time_stats.all_reduce.median": 0.02 + size * 1e-7, "num_workers": workers, "size": size}
        for size in (2048, 1 << 20, 1 << 24)
        for workers in (2, 4)
    ]
    write(folder / "all_reduce.csv", rows)
    alone, two = model(folder), model(folder, tp=2)
    step = (0, 0, 0, 0, 0, 64, 64 * 1024)
    message_ms = (2 * LAYERS + 1) * (0.02 + 64 * 4096 * 2 * 1e-7)
    assert two.step_s(*step) - alone.step_s(*step) == pytest.approx(message_ms / 1e3, rel=1e-6)


def test_what_was_not_measured_is_refused_or_extrapolated_on_request(folder: Path) -> None:
    step = (0, 0, 0, 0, 0, 8, 8 * 100_000)
    with pytest.raises(OutOfRangeError, match="measured up to"):
        model(folder).step_s(*step)
    assert model(folder, option=",allow_extrapolation=true").step_s(*step) > 0
    with pytest.raises(OutOfRangeError, match=r"degrees \[1, 2\], not 8"):
        model(folder, tp=8)


def test_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="the profile is of a model with num heads 32, this one has 40"):
        model(folder, name="meta-llama/Llama-2-13b-hf")


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_other_units_are_noticed(folder: Path, factor: float) -> None:
    write(folder / "mlp.csv", mlp_rows(1, factor))
    with pytest.raises(InputError, match=r"faster than|slower than"):
        model(folder)


def test_a_broken_table_names_its_line(folder: Path) -> None:
    rows = mlp_rows(1)
    rows[1]["num_tokens"] = "many"
    write(folder / "mlp.csv", rows)
    with pytest.raises(InputError, match="line 3, num_tokens"):
        model(folder)


@pytest.mark.parametrize("name", ["attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj"])
def test_a_product_that_is_missing_is_named(folder: Path, name: str) -> None:
    write(folder / "mlp.csv", [{k: v for k, v in row.items() if f".{name}." not in k} for row in mlp_rows(1)])
    with pytest.raises(InputError, match=f"mlp.csv.*{name} was not measured at 1 tokens"):
        model(folder)


def test_a_size_that_is_missing_is_named(folder: Path) -> None:
    rows = mlp_rows(1)
    rows[1]["time_stats.mlp_act.median"] = ""
    write(folder / "mlp.csv", rows)
    with pytest.raises(InputError, match="mlp_act was not measured at 64 tokens"):
        model(folder)


def test_decodes_that_end_early_are_refused_and_do_not_go_on_for_ever(folder: Path) -> None:
    short = [row for row in attention_rows(1) if not (row["batch_size"] == 8 and row["kv_cache_size"] > 1024)]
    write(folder / "attention.csv.gz", short, packed=True)
    steps = model(folder)
    for number in (8, 9, 2):
        line = steps.decode_line(number, number * 1024)
        assert line[2] == number * 1024 + 1
        with pytest.raises(OutOfRangeError, match="1025 tokens in a decoding sequence, measured up to 1024"):
            steps.decode_line(number, number * 1025)
    assert steps.decode_line(1, 4000)[2] > 4000
    loose = model(folder, option=",allow_extrapolation=true")
    assert loose.decode_line(8, 8 * 2000)[2] > 8 * 2000


def test_attention_in_another_unit_is_noticed(folder: Path) -> None:
    rows = attention_rows(1)
    for row in rows:
        for name in ("time_stats.attn_decode.median", "time_stats.attn_prefill.median"):
            row[name] = row[name] and row[name] / 1e3
    write(folder / "attention.csv.gz", rows, packed=True)
    with pytest.raises(InputError, match=r"attention.csv.*faster than"):
        model(folder)


def test_random_bytes_are_refused(folder: Path) -> None:
    (folder / "attention.csv.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(range(256)))
    with pytest.raises(InputError, match="attention"):
        model(folder)


def test_another_precision_is_refused(folder: Path) -> None:
    given = {"model": load_model("meta-llama/Llama-2-7b-hf"), "gpu": load_accelerator("A100-SXM-80GB")}
    with pytest.raises(InfeasibleError, match="--precision: 'int8'"):
        build_step_model(f"profile:{folder}", StepModelRequest(**given, precision="int8"))
    with pytest.raises(InfeasibleError, match="--kv-precision: 'fp8'"):
        build_step_model(f"profile:{folder}", StepModelRequest(**given, precision="fp16", kv_precision="fp8"))


def test_the_measured_a100_is_near_the_roofline(shared_data: Path, tmp_path: Path) -> None:
    """Vidur's own Llama-2-7B table at short contexts, where attention is little: within a third of the roofline."""
    source = shared_data / "operator-profiles" / "vidur" / "a100_meta-llama_Llama-2-7b-hf_mlp.csv.gz"
    shutil.copy(source, tmp_path / "mlp.csv.gz")
    write(tmp_path / "attention.csv", attention_rows(1))
    request = StepModelRequest(
        model=load_model("meta-llama/Llama-2-7b-hf"), gpu=load_accelerator("A100-SXM-80GB"), precision="fp16"
    )
    roofline = build_step_model("roofline", request)
    for step in ((0, 0, 0, 0, 0, 32, 32 * 32), (512, 1, 512 * 513 // 2, 0, 1, 0, 0)):
        assert model(tmp_path).step_s(*step) == pytest.approx(roofline.step_s(*step), rel=0.33)


def test_counting_steps_outside_changes_no_bit(folder: Path) -> None:
    rng = np.random.default_rng(8)
    workload = Workload(
        arrival_s=np.sort(rng.uniform(0, 5, 40)),
        prompt_tokens=rng.integers(20, 900, 40),
        output_tokens=rng.integers(1, 80, 40),
    )
    config = EngineConfig(num_blocks=4000, max_num_seqs=80, max_num_batched_tokens=512)
    steps = model(folder, option=",allow_extrapolation=true")
    counted = CountedSteps(steps)
    plain, second = simulate(workload, config, steps), simulate(workload, config, counted)
    np.testing.assert_array_equal(plain.finish_s, second.finish_s)
    np.testing.assert_array_equal(plain.first_token_s, second.first_token_s)
    assert counted.num_steps == plain.num_steps
    assert counted.num_outside == 0
    few = CountedSteps(steps)
    long = Workload(arrival_s=np.zeros(1), prompt_tokens=np.array([9000]), output_tokens=np.array([4]))
    simulate(long, config, few)
    assert 0 < few.outside_frac < 1
