"""The suite on the measured runs: figures within their bounds, and a run that cannot be predicted is named."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.api.simulation import simulate
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from plimsoll.core.step import StepShape
from plimsoll.perf.profiles.model import Profiled
from tests.oracle.naive_server import Arrival, Served, Server
from tests.oracle.naive_vllm_full import Settings
from validation import real_vllm


def test_both_measured_runs_are_predicted_within_their_bounds(shared_data: Path) -> None:
    result = real_vllm.run([shared_data / "real-vllm"])
    assert result["passed"], result["summary"]
    assert set(result["figures"]) == {"rtx4090_llama-3_1-8b", "rtxpro6000_llama-3_1-8b"}
    for figures in result["figures"].values():
        for metric in ("ttft", "tpot", "latency"):
            assert set(figures[metric]) == {"mean", "median", "p90", "p95", "p99"}
        assert figures["steps_outside_profile_frac"] == 0.0
        assert figures["wall_s"] < 0.5


QWEN, MOE = "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B-Instruct-2507"
CARDS = [(QWEN, 2, 1, 1), (MOE, 1, 2, 2)]
"""The deployments on two cards whose profiles lie in the data: model, TP, DP, EP."""


def write_run(
    folder: Path, data: Path, deployment: tuple[str, int, int, int], rows: list[dict[str, Any]], **arguments: Any
) -> Path:
    """A run folder as the measured ones are, of our own requests, with profiles beside it."""
    model, tp, dp, ep = deployment
    folder.mkdir(exist_ok=True)
    if not (folder / "profiles").exists():
        (folder / "profiles").symlink_to(data / "real-vllm" / "profiles")
        (folder / "machines.json").symlink_to(data / "real-vllm" / "machines.json")
    run = folder / "runs" / f"invented_tp{tp}_dp{dp}"
    run.mkdir(parents=True)
    meta = {
        "model": model,
        "vllm_version": "0.19.0",
        "engine_kwargs": {
            "model": model,
            "tensor_parallel_size": tp,
            "data_parallel_size": dp,
            "enable_expert_parallel": ep > 1,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 2048,
            "max_model_len": 24000,
            "dtype": "bfloat16",
            **arguments,
        },
        "num_requests": len(rows),
        "kv_cache": {"num_gpu_blocks": 1801 * dp, "block_size": 16, "enable_prefix_caching": True},
        "deployment": {"gpu": "RTX-PRO-6000", "tp": tp, "dp": dp, "ep": ep, "profile": f"RTXPRO6000/{model}/bf16"},
    }
    (run / "meta.json").write_text(json.dumps(meta))
    columns = ["request_id", "prompt_tokens", "output_tokens", "queued_s", "first_token_s", "last_token_s"]
    lines = [",".join(repr(row[name]) for name in columns) for row in rows]
    (run / "measured.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    with gzip.open(run / "workload.jsonl.gz", "wt") as file:
        for row in rows:
            file.write(json.dumps({"request_id": row["request_id"], "prefix_blocks_16": row["blocks"]}) + "\n")
    return run


def requests_of(seed: int, num: int = 120, longest: int = 1500) -> list[dict[str, Any]]:
    """Requests that come faster than they are served, with prompts that begin alike in four groups."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    time_s = 0.0
    for number in range(num):
        time_s += float(rng.exponential(0.03))
        prompt, group = int(rng.integers(10, longest)), int(rng.integers(4))
        shared = min(prompt // 16, int(rng.integers(1, 30)))
        blocks = [group * 1000 + k for k in range(shared)] + [10**6 + number * 1000 + k for k in range(prompt // 16)]
        rows.append(
            {
                "request_id": number,
                "prompt_tokens": prompt,
                "output_tokens": int(rng.integers(1, 150)),
                "arrival_s": time_s,
                "blocks": blocks[: prompt // 16],
            }
        )
    return rows


def measured_row(row: dict[str, Any]) -> dict[str, Any]:
    """The request with some measurement or other."""
    return {**row, "queued_s": row["arrival_s"], "first_token_s": 1.0, "last_token_s": 2.0}


def naive_run(
    run: Path, rows: list[dict[str, Any]], deployment: tuple[str, int, int, int], asynchronous: bool
) -> tuple[list[Served], float]:
    """What a naive server on the same profile makes of it, and the share of its steps that nobody measured."""
    model, tp, dp, ep = deployment
    gpu, spec, parallelism = load_accelerator("RTX-PRO-6000"), load_model(model), Parallelism(tp=tp, dp=dp, ep=ep)
    meta = json.loads((run / "meta.json").read_text())
    profile = real_vllm._step_model(run, meta, spec, gpu, parallelism, extrapolate=True)
    config, _ = real_vllm._config(meta, spec, gpu, parallelism)
    outside = 0

    def step_s(shapes: Sequence[StepShape]) -> float:
        nonlocal outside
        outside += not all(profile.covers(shape, 1) for shape in shapes)
        if dp > 1:
            return profile.lockstep_s(shapes)
        return profile.step(shapes[0]).time_s

    settings = Settings(
        num_blocks=config.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
    )
    server = Server(settings, step_s, ranks=dp, asynchronous=asynchronous)
    arrivals = [
        Arrival(
            arrival_s=row["arrival_s"],
            prompt_tokens=row["prompt_tokens"],
            output_tokens=row["output_tokens"],
            blocks=tuple(row["blocks"]),
        )
        for row in rows
    ]
    return server.serve(arrivals), outside / server.num_steps


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("deployment", CARDS)
def test_a_run_on_two_cards_that_went_as_predicted_has_no_error(
    shared_data: Path, tmp_path: Path, deployment: tuple[str, int, int, int], asynchronous: bool
) -> None:
    """The measurements are what naive schedulers on the same profile give: no figure may be off by a single bit."""
    rows = requests_of(3)
    for row in rows:  # a first writing, only for its meta.json
        row |= {"queued_s": 0.0, "first_token_s": 1.0, "last_token_s": 2.0}
    draft = write_run(tmp_path / "draft", shared_data, deployment, rows, async_scheduling=asynchronous)
    served, _ = naive_run(draft, rows, deployment, asynchronous)
    for row, facts in zip(rows, served, strict=True):
        row |= {
            "queued_s": facts.queued_s,
            "first_token_s": facts.first_token_s,
            "last_token_s": facts.last_token_s,
        }
    run = write_run(tmp_path / "kept", shared_data, deployment, rows, async_scheduling=asynchronous)
    result = real_vllm.run([run])
    assert result["passed"], result
    (figures,) = result["figures"].values()
    assert {value for metric in ("ttft", "tpot", "latency") for value in figures[metric].values()} == {0.0}
    assert figures["preemptions"] == sum(facts.preemptions for facts in served)
    assert figures["steps_outside_profile_frac"] == 0.0
    assert figures["step_model"]["profile"].endswith(f"tp{deployment[1]}")
    assert figures["wall_s"] < 0.5
    off = [{**row, "last_token_s": 1.2 * row["last_token_s"]} for row in rows]
    run = write_run(tmp_path / "off", shared_data, deployment, off, async_scheduling=asynchronous)
    assert not real_vllm.run([run])["passed"]


@pytest.mark.parametrize("deployment", CARDS)
def test_steps_that_nobody_measured_are_counted(
    shared_data: Path, tmp_path: Path, deployment: tuple[str, int, int, int]
) -> None:
    rows = requests_of(5, num=12)
    rows[4]["prompt_tokens"], rows[4]["blocks"] = 22_000, []
    run = write_run(tmp_path, shared_data, deployment, [measured_row(row) for row in rows])
    (figures,) = real_vllm.run([run])["figures"].values()
    _, outside_frac = naive_run(run, rows, deployment, asynchronous=True)
    assert figures["steps_outside_profile_frac"] == pytest.approx(outside_frac, abs=1e-12)
    assert 0 < outside_frac < 1


def test_a_request_that_no_such_server_takes_is_named(shared_data: Path, tmp_path: Path) -> None:
    rows = [measured_row(row) for row in requests_of(6, num=3)]
    rows[1]["prompt_tokens"] = 30_000
    run = write_run(tmp_path, shared_data, CARDS[0], rows)
    assert "longer than this server" in str(real_vllm.run([run])["refused"])


@pytest.mark.parametrize(("ranks", "deployment"), [(1, CARDS[0]), (2, CARDS[1])])
def test_recorded_blocks_are_of_all_ranks_together(
    shared_data: Path, tmp_path: Path, ranks: int, deployment: tuple[str, int, int, int]
) -> None:
    """vLLM sums the blocks of its data-parallel engines at start, and that sum is what a run records."""
    run = write_run(tmp_path, shared_data, deployment, [measured_row(row) for row in requests_of(7, num=5)])
    meta = json.loads((run / "meta.json").read_text())
    assert meta["kv_cache"]["num_gpu_blocks"] == 1801 * ranks
    (figures,) = real_vllm.run([run])["figures"].values()
    assert figures["num_kv_blocks"] == 1801


def test_blocks_that_nobody_recorded_are_those_of_the_runs_own_version(shared_data: Path, tmp_path: Path) -> None:
    """vLLM took 0.90 of the memory by default before 0.20, and 0.92 since; a version may have a suffix."""
    rows = [measured_row(row) for row in requests_of(9, num=5)]
    found = {}
    for version in ("0.19.0", "0.19.1rc1+cu128", "0.28.0"):
        run = write_run(tmp_path / version, shared_data, CARDS[0], rows)
        meta = json.loads((run / "meta.json").read_text())
        del meta["kv_cache"]
        (run / "meta.json").write_text(json.dumps({**meta, "vllm_version": version}))
        (figures,) = real_vllm.run([run])["figures"].values()
        assert "not recorded" in figures["notes"][0]
        found[version] = figures["num_kv_blocks"]
    assert found["0.19.0"] == found["0.19.1rc1+cu128"]
    assert 1.02 < found["0.28.0"] / found["0.19.0"] < 1.05
    (run / "meta.json").write_text(json.dumps({**meta, "vllm_version": "nightly"}))
    assert "vllm_version" in str(real_vllm.run([run])["refused"])


def test_a_server_told_to_leave_its_own_sums_takes_the_ring(shared_data: Path, tmp_path: Path) -> None:
    rows = [measured_row(row) for row in requests_of(8, num=20)]
    mean_tpot = {}
    for disabled in (False, True):
        run = write_run(tmp_path / str(disabled), shared_data, CARDS[0], rows, disable_custom_all_reduce=disabled)
        (figures,) = real_vllm.run([run])["figures"].values()
        mean_tpot[disabled] = 1 + figures["tpot"]["mean"]
    # One hop as this machine is described takes longer than a short ring as it was measured between such cards.
    assert mean_tpot[True] < 0.99 * mean_tpot[False]


def test_what_cannot_be_predicted_is_named(shared_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "unknown"
    shutil.copytree(shared_data / "real-vllm" / "runs" / "rtxpro6000_llama-3_1-8b", run)
    run.chmod(0o755)
    (run / "meta.json").chmod(0o644)
    meta = json.loads((run / "meta.json").read_text())
    meta["deployment"]["gpu"] = "Abacus"
    (run / "meta.json").write_text(json.dumps(meta))
    result = real_vllm.run([tmp_path])
    assert not result["passed"]
    assert "Abacus" in result["refused"]["unknown"]
    with pytest.raises(InputError, match="runs/"):
        real_vllm.run([tmp_path / "runs"])


def test_asynchronous_scheduling_delays_who_arrives_during_a_step() -> None:
    """Steps of one second. The second request arrives during the first step of the first one."""
    arrivals = [
        Arrival(arrival_s=0.0, prompt_tokens=10, output_tokens=4),
        Arrival(arrival_s=0.5, prompt_tokens=10, output_tokens=1),
    ]
    kept = Settings(num_blocks=100)
    synchronous = Server(kept, lambda shapes: 1.0, asynchronous=False).serve(arrivals)
    asynchronous = Server(kept, lambda shapes: 1.0, asynchronous=True).serve(arrivals)
    assert [s.first_token_s for s in synchronous] == [1.0, 2.0]
    assert [s.first_token_s for s in asynchronous] == [1.0, 3.0]
    assert [s.queued_s for s in asynchronous] == [0.0, 1.0]
    assert synchronous[0].last_token_s == asynchronous[0].last_token_s == 4.0


def test_ranks_share_the_requests_and_wait_for_one_another() -> None:
    arrivals = [Arrival(arrival_s=0.0, prompt_tokens=10, output_tokens=2) for _ in range(4)]
    seen = []

    def step_s(shapes):  # type: ignore[no-untyped-def]
        seen.append([shape.prefill_tokens + shape.num_decode for shape in shapes])
        return 1.0

    served = Server(Settings(num_blocks=100), step_s, ranks=2, asynchronous=False).serve(arrivals)
    assert seen == [[20, 20], [2, 2]]
    assert {s.last_token_s for s in served} == {2.0}


def test_simulate_tells_a_profile_the_longest_decode(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = shared_data / "real-vllm/profiles/RTXPRO6000/meta-llama/Llama-3.1-8B/bf16"
    asked = {
        "model": "Llama-3.1-8B",
        "gpu": "RTX-PRO-6000",
        "workload": "chat",
        "rate_per_s": 4,
        "duration_s": 20,
        "step_model": f"profile:{profile}",
        "max_num_batched_tokens": 1900,
        "max_num_seqs": 128,
    }
    told = simulate(**asked).run
    monkeypatch.setattr(Profiled, "needs_longest", False)
    untold = simulate(**asked).run
    both = np.isfinite(told.finish_s) & np.isfinite(untold.finish_s)
    slower = told.finish_s[both] - told.first_token_s[both] > untold.finish_s[both] - untold.first_token_s[both]
    assert slower.mean() > 0.9, "who decodes beside a longer request waits for it"
