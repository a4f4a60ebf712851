"""Every verb as it is promised: keys, exit codes, streams, files, scenarios."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import plimsoll
from tests.e2e.commands import CAPACITY, DEPLOYMENT, PLAN, SIMULATE, Outcome, run, spawn

Capture = pytest.CaptureFixture[str]
LATENCIES = {"mean", "p50", "p90", "p95", "p99"}
REQUEST_COLUMNS = [
    "request_id", "arrival_s", "scheduled_s", "first_token_s", "finish_s", "prompt_tokens", "output_tokens",
    "preemptions", "status",
]  # fmt: skip
PLAN_KEYS = {
    "rank", "gpu", "num_gpus", "replicas", "tp", "pp", "precision", "engine", "settings", "metrics", "capacity_per_s",
    "usd_per_hour", "usd_per_million_output_tokens", "binding_constraint", "why", "launch",
}  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> Outcome:
    return spawn(*PLAN, "--json")


def without_clock(document: Any) -> Any:
    """The document without what a clock on the wall says."""
    if isinstance(document, dict):
        return {key: without_clock(value) for key, value in document.items() if key != "wall_s"}
    return [without_clock(item) for item in document] if isinstance(document, list) else document


# -- simulate ----------------------------------------------------------------------------------------------------------


def test_simulate_prints_the_document_it_promises(capsys: Capture) -> None:
    outcome = run(capsys, *SIMULATE, "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    document = outcome.json()
    promised = {
        "deployment", "workload", "load", "metrics", "counts", "num_steps", "simulated_s", "wall_s", "sources",
        "version",
    }  # fmt: skip
    assert promised <= set(document)
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        figures = document["metrics"][name]
        assert set(figures) >= LATENCIES
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p95"] <= figures["p99"]
    assert document["metrics"]["output_tokens_per_s"] > document["metrics"]["requests_per_s"] > 0
    counts = {name: document["counts"][name] for name in ("finished", "unfinished", "rejected", "preemptions")}
    assert counts == {"finished": 60, "unfinished": 0, "rejected": 0, "preemptions": 0}
    assert document["num_steps"] > 60
    assert document["simulated_s"] > document["wall_s"] > 0
    assert document["version"] == plimsoll.__version__


def test_the_document_is_the_python_result(capsys: Capture) -> None:
    from_cli = run(capsys, *SIMULATE, "--ttft-ms", "200", "--max-num-batched-tokens", "512", "--json")
    result = plimsoll.simulate(
        model="Llama-3.1-8B", gpu="H100-SXM", workload="chat", rate_per_s=4, num_requests=60, ttft_ms=200,
        max_num_batched_tokens=512,
    )  # fmt: skip
    assert without_clock(from_cli.json()) == without_clock(json.loads(json.dumps(result.to_json_dict())))


def test_a_missed_target_exits_with_1_and_says_so_first(capsys: Capture) -> None:
    outcome = run(capsys, *SIMULATE, "--ttft-ms", "1")
    assert outcome.code == 1
    assert "misses its targets" in outcome.stdout.splitlines()[0]
    assert "MISSES: p99 TTFT" in outcome.stdout
    assert run(capsys, *SIMULATE, "--ttft-ms", "60000").code == 0


def test_a_growing_queue_is_said_in_the_first_line(capsys: Capture) -> None:
    outcome = run(capsys, "simulate", *DEPLOYMENT, "--workload", "chat", "--rate", "200", "--max-num-seqs", "8")
    assert "overloaded, the queue keeps growing" in outcome.stdout.splitlines()[0]


def test_out_keeps_requests_scenario_and_result(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    outcome = run(capsys, *SIMULATE, "--out", str(folder), "--json")
    assert sorted(path.name for path in folder.iterdir()) == ["requests.csv", "result.json", "scenario.yaml"]
    assert (folder / "result.json").read_text() == outcome.stdout
    with (folder / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(REQUEST_COLUMNS)] == REQUEST_COLUMNS
    assert [int(row["request_id"]) for row in rows] == list(range(60))
    for row in rows:
        times = [float(row[name]) for name in REQUEST_COLUMNS[1:5]]
        assert times == sorted(times)
        assert row["status"] == "finished"
    slowest = max(float(row["first_token_s"]) - float(row["arrival_s"]) for row in rows)
    assert slowest >= outcome.json()["metrics"]["ttft_s"]["p99"] - 1e-8


def test_an_unfinished_request_has_empty_times_and_its_status(capsys: Capture, tmp_path: Path) -> None:
    outcome = run(capsys, *SIMULATE, "--duration-s", "3", "--out", str(tmp_path), "--json")
    with (tmp_path / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    unfinished = [row for row in rows if row["status"] == "unfinished"]
    assert len(unfinished) == outcome.json()["counts"]["unfinished"] > 0
    assert {row["finish_s"] for row in unfinished} == {""}


def test_the_same_seed_gives_the_same_bytes_in_any_process(capsys: Capture, tmp_path: Path) -> None:
    run(capsys, *SIMULATE, "--out", str(tmp_path / "here"))
    spawn(*SIMULATE, "--out", str(tmp_path / "there"), env={"PYTHONHASHSEED": "77"})
    run(capsys, *SIMULATE, "--seed", "1", "--out", str(tmp_path / "other"))
    here, there, other = ((tmp_path / name / "requests.csv").read_bytes() for name in ("here", "there", "other"))
    assert here == there
    assert here != other


@pytest.mark.parametrize(
    "load",
    [("--concurrency", "4"), ("--users", "4", "--think-s", "0.5"), ("--at-once",),
     ("--rate", "4", "--arrivals", "constant"), ("--rate", "4", "--arrivals", "gamma", "--burstiness", "0.3")],
    ids=lambda load: " ".join(load),
)  # fmt: skip
def test_every_kind_of_load(capsys: Capture, load: tuple[str, ...]) -> None:
    outcome = run(capsys, "simulate", *DEPLOYMENT, "--workload", "chat", *load, "--num-requests", "40", "--json")
    assert outcome.code == 0
    document = outcome.json()
    assert document["counts"]["finished"] == 40
    assert document["load"]["kind"] == ("closed" if load[0] in ("--concurrency", "--users") else "open")
    assert run(capsys, "simulate", *DEPLOYMENT, "--workload", "chat", *load, "--num-requests", "40").code == 0


def test_a_trace_without_a_load_replays_its_own_times(capsys: Capture, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n3.5,50,2\n9,60,1\n")
    run(capsys, "simulate", *DEPLOYMENT, "--trace", str(trace), "--out", str(tmp_path / "run"))
    with (tmp_path / "run" / "requests.csv").open() as file:
        assert [float(row["arrival_s"]) for row in csv.DictReader(file)] == [0.0, 3.5, 9.0]


def test_parallel_replicas_pipelines_and_policies_run(capsys: Capture) -> None:
    cuts = ("--tp", "2", "--pp", "2", "--replicas", "2", "--router", "least-loaded")
    document = run(capsys, *SIMULATE, *cuts, "--engine", "vllm-v1,watermark=0.02", "--json").json()
    assert document["deployment"]["num_gpus"] == 8
    assert document["deployment"]["arithmetic"] == "8 GPUs = 2 replicas × TP 2 × PP 2"
    assert document["deployment"]["settings"]["options"] == {"watermark": 0.02}


# -- scenarios ---------------------------------------------------------------------------------------------------------


def test_a_saved_scenario_runs_again_and_flags_override_it(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "scenario.yaml"
    first = run(capsys, *SIMULATE, "--seed", "3", "--save-scenario", str(file), "--json").json()
    again = run(capsys, "simulate", "--scenario", str(file), "--json").json()
    assert without_clock(first) == without_clock(again)
    changed = run(capsys, "simulate", "--scenario", str(file), "--rate", "9", "--json").json()
    assert changed["load"]["asked_rate_per_s"] == 9
    fields = yaml.safe_load(file.read_text())
    assert fields["rate_per_s"] == 4
    assert "tp" not in fields, "only what differs from the defaults"


def test_the_scenario_kept_with_a_run_is_that_run(capsys: Capture, tmp_path: Path) -> None:
    run(capsys, *SIMULATE, "--out", str(tmp_path / "a"))
    run(capsys, "simulate", "--scenario", str(tmp_path / "a" / "scenario.yaml"), "--out", str(tmp_path / "b"))
    for name in ("requests.csv", "scenario.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_scenario_may_be_written_as_flags(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("model: Llama-3.1-8B\ngpu: H100-SXM\nworkload: chat\nrate: 4\nnum-requests: 60\n")
    outcome = run(capsys, "simulate", "--scenario", str(file), "--json")
    assert without_clock(outcome.json()) == without_clock(run(capsys, *SIMULATE, "--json").json())


# -- capacity ----------------------------------------------------------------------------------------------------------


def test_capacity_prints_the_document_it_promises(capsys: Capture, tmp_path: Path) -> None:
    outcome = run(capsys, *CAPACITY, "--json", "--out", str(tmp_path))
    assert (outcome.code, outcome.stderr) == (0, "")
    document = outcome.json()
    assert {"max_rate_per_s", "interval", "limited_by", "probes"} <= set(document)
    low, high = document["interval"]
    assert 0 < low <= document["max_rate_per_s"] <= high
    assert document["limited_by"] in ("ttft", "tpot", "stationarity")
    assert {probe["seed"] for probe in document["probes"]} == {0, 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "scenario.yaml"]
    assert (tmp_path / "result.json").read_text() == outcome.stdout


def test_capacity_is_where_simulate_begins_to_miss(capsys: Capture) -> None:
    document = run(capsys, *CAPACITY, "--json").json()
    targets = ("--ttft-ms", "1000", "--tpot-ms", "50", "--num-requests", "600")
    for load_frac, code in ((0.5, 0), (2.0, 1)):
        rate = str(load_frac * document["max_rate_per_s"])
        assert run(capsys, "simulate", *DEPLOYMENT, "--workload", "chat", "--rate", rate, *targets).code == code


def test_capacity_of_nothing_exits_with_1(capsys: Capture) -> None:
    outcome = run(capsys, "capacity", *DEPLOYMENT, "--workload", "chat", "--ttft-ms", "0.01", "--num-seeds", "1")
    assert outcome.code == 1
    assert "carries no load within its targets" in outcome.stdout.splitlines()[0]


def test_capacity_in_users_answers_in_users(capsys: Capture) -> None:
    arguments = ("--workload", "chat", "--tpot-ms", "12", "--users", "8", "--num-seeds", "1", "--num-requests", "200")
    document = run(capsys, "capacity", *DEPLOYMENT, *arguments, "--json").json()
    assert document["unit"] == "users"
    assert {probe["num_requests"] for probe in document["probes"]} == {200}


# -- plan --------------------------------------------------------------------------------------------------------------


def test_plan_prints_the_document_it_promises(plan: Outcome) -> None:
    assert (plan.code, plan.stderr) == (0, "")
    document = plan.json()
    promised = {
        "verdict", "plans", "top_throughput", "top_latency", "top_cost", "pareto", "rejected", "num_candidates",
        "wall_s",
    }  # fmt: skip
    assert promised <= set(document)
    for name in ("plans", "top_throughput", "top_latency", "top_cost", "pareto"):
        assert document[name]
        for found in document[name]:
            assert set(found) >= PLAN_KEYS
            assert "vllm serve" in found["launch"]["vllm"]
    assert all({"config", "reason"} <= set(rejected) for rejected in document["rejected"])
    assert document["plans"][0]["num_gpus"] == 1


def test_plan_is_the_python_result(plan: Outcome) -> None:
    answer = plimsoll.plan(
        model="Llama-3.1-8B", prompt_tokens=200, output_tokens=50, gpus="L40S:1", token_budgets="2048", ttft_ms=1000,
        tpot_ms=100,
    )  # fmt: skip
    assert without_clock(plan.json()) == without_clock(json.loads(json.dumps(answer.to_json_dict())))


def test_plan_keeps_the_commands_of_every_plan(capsys: Capture, tmp_path: Path) -> None:
    outcome = run(capsys, *PLAN, "--out", str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"result.json", "scenario.yaml", "plan-1-vllm.sh", "plan-1-kubernetes.yaml"} <= names
    assert "vllm serve meta-llama/Llama-3.1-8B" in (tmp_path / "plan-1-vllm.sh").read_text()
    assert "vllm serve meta-llama/Llama-3.1-8B" in outcome.stdout


def test_a_plan_that_finds_nothing_exits_with_1_and_says_what_would_have_to_give(capsys: Capture) -> None:
    outcome = run(capsys, *PLAN, "--budget-usd-per-hour", "0.01")
    assert outcome.code == 1
    assert "what would have to give" in outcome.stdout
    assert outcome.stderr == ""
    document = run(capsys, *PLAN, "--budget-usd-per-hour", "0.01", "--json").json()
    assert document["plans"] == []
    assert document["verdict"]
    assert document["rejected"]


def test_plan_and_simulate_agree_on_what_a_request_sees(plan: Outcome, capsys: Capture) -> None:
    """The planner's figures are the simulator's: simulating a plan at its judged load gives its latencies."""
    found = plan.json()["plans"][0]
    settings = {
        name: str(found["settings"][name]) for name in ("max_num_batched_tokens", "max_num_seqs", "max_model_len")
    }
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    outcome = run(
        capsys, "simulate", "--model", "Llama-3.1-8B", "--gpu", "L40S", "--prompt-tokens", "200", "--output-tokens",
        "50", "--rate", str(found["judged_load"]["value"]), *flags, "--json",
    )  # fmt: skip
    assert outcome.json()["metrics"]["tpot_s"]["p50"] == pytest.approx(found["metrics"]["tpot_s"]["p50"], rel=0.05)


# -- catalog and help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["models", "gpus", "engines", "workloads"])
def test_the_catalog_lists_and_shows_one_with_its_sources(capsys: Capture, kind: str) -> None:
    outcome = run(capsys, "catalog", kind, "--json")
    entries = outcome.json()["entries"]
    assert (outcome.code, outcome.stderr) == (0, "")
    assert len(entries) >= {"models": 45, "gpus": 35, "engines": 3, "workloads": 7}[kind]
    name = str(next(iter(entries[0].values())))
    shown = run(capsys, "catalog", kind, name)
    assert shown.code == 0
    assert "http" in shown.stdout
    table = run(capsys, "catalog", kind).stdout
    assert name in table
    assert "…" not in table, "names are there to be copied"


def test_without_arguments_it_prints_its_help(capsys: Capture) -> None:
    outcome = run(capsys)
    assert outcome.code == 0
    assert "simulate" in outcome.stdout
    assert run(capsys, "--version").stdout == f"plimsoll {plimsoll.__version__} ({plimsoll._ENGINE})\n"


def test_help_imports_neither_numpy_nor_polars() -> None:
    script = (
        "import sys\nfrom plimsoll.cli import main\ncode = main(['--help'])\n"
        "heavy = [name for name in ('numpy', 'polars', 'yaml', 'joblib', 'huggingface_hub') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "plimsoll", "catalog", "models", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() in (0, 1)


@pytest.mark.parametrize("verb", [SIMULATE, CAPACITY], ids=["simulate", "capacity"])
def test_what_a_person_reads_has_no_nan_no_none_and_no_markup(capsys: Capture, verb: tuple[str, ...]) -> None:
    text = run(capsys, *verb).stdout
    for word in ("nan", "None", "inf ", "[bold]", "[dim]", "{", "e-0"):
        assert word not in text
    assert "chat" in text
    assert "seed" in text
