"""Pools, ranks, placements and batches from the command line: the verdict first, the ratio named, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.commands import DEPLOYMENT, run

Capture = pytest.CaptureFixture[str]
FIXED = ("--prompt-tokens", "400", "--output-tokens", "40", "--ttft-ms", "1000", "--tpot-ms", "50")
CAPACITY = ("capacity", *DEPLOYMENT, *FIXED, "--num-seeds", "1")


def test_a_capacity_at_once_is_in_requests_at_once(capsys: Capture) -> None:
    lines = run(capsys, *CAPACITY, "--at-once").stdout.splitlines()
    assert "requests at once" in lines[0]
    assert any(line.startswith("every probe is one batch at time zero") for line in lines)
    assert any("p99 stands on" in line for line in lines)


def test_a_capacity_within_a_horizon_says_who_was_censored(capsys: Capture) -> None:
    outcome = run(capsys, *CAPACITY, "--duration-s", "30")
    assert outcome.code == 0
    assert "probes of 30 s" in outcome.stdout
    assert "neither a hit nor a miss: TTFT " in outcome.stdout
    document = run(capsys, *CAPACITY, "--duration-s", "30", "--json").json()
    assert document["load"]["duration_s"] == 30.0
    assert all(set(probe["num_censored"]) == {"ttft_s", "tpot_s"} for probe in document["probes"])


def test_a_capacity_of_split_machines_names_the_ratio(capsys: Capture) -> None:
    outcome = run(capsys, *CAPACITY, "--split", "2:1", "--num-requests", "200")
    assert "(2 prefill + 1 decode)" in outcome.stdout.splitlines()[0]
    wrong = run(capsys, *CAPACITY, "--split", "2-1")
    assert (wrong.code, wrong.stdout) == (2, "")
    assert "--split" in wrong.stderr


def test_a_plan_of_pools_prints_both_commands(capsys: Capture, tmp_path: Path) -> None:
    outcome = run(
        capsys, "plan", "--model", "Llama-3.1-8B", *FIXED, "--gpus", "H100-SXM:3", "--tp", "1", "--pp", "1",
        "--token-budgets", "2048", "--split", "2:1", "--optimize", "latency", "--top", "2", "--out", str(tmp_path),
    )  # fmt: skip
    assert outcome.code == 0
    assert "2P:1D × TP1" in outcome.stdout
    texts = [file.read_text() for file in sorted(tmp_path.glob("plan-*-vllm.sh"))]
    (pooled,) = (text for text in texts if "2 prefill + 1 decode" in text)
    assert '"kv_role":"kv_producer"' in pooled
    assert '"kv_role":"kv_consumer"' in pooled
    assert "run this 2 times" in pooled
    assert pooled.count("vllm serve meta-llama/Llama-3.1-8B") == 2
    (sglang,) = (file.read_text() for file in tmp_path.glob("plan-*-sglang.sh") if "2 prefill" in file.read_text())
    assert "--disaggregation-mode prefill" in sglang
    (yaml,) = (file.read_text() for file in tmp_path.glob("plan-*-kubernetes.yaml") if "pools" in file.read_text())
    assert yaml.startswith("# kubernetes: commands for prefill and decode pools are written for")


def test_a_placement_prints_its_gpus_in_order(capsys: Capture) -> None:
    lengths = ("--prompt-tokens", "400", "--output-tokens", "40", "--ttft-ms", "20000", "--tpot-ms", "400")
    common = ("plan", "--model", "Llama-2-13b", *lengths, "--placement", "helr", "--top", "1")
    outcome = run(capsys, *common, "--gpus", "L4:1,A10:1")
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("Place meta-llama/Llama-2-13b-hf (bf16) on 2 GPUs: 40 layers = ")
    assert any("0–" in line for line in lines)
    nothing = run(capsys, *common, "--gpus", "L4:1")
    assert nothing.code == 1
    assert "fit on no selection of these GPUs" in nothing.stdout
    assert run(capsys, *common, "--gpus", "L4:2", "--rate", "3").code == 2
