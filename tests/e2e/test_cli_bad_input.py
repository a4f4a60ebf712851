"""What is wrong is said in one line that names the field, the value and the remedy; nothing is left behind."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from tests.e2e.commands import DEPLOYMENT, PLAN, SIMULATE, run, spawn

Capture = pytest.CaptureFixture[str]
LOAD = ("--workload", "chat", "--rate", "4", "--num-requests", "20")
ON_H100 = ("simulate", *DEPLOYMENT)
CAPACITY = ("capacity", *DEPLOYMENT, "--workload", "chat")


def with_flag(*flag: str) -> tuple[str, ...]:
    return (*SIMULATE, *flag)


# Each: the command, and what its one line must hold: the field, the value, the remedy.
TABLE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # names, with the closest ones
    "model": (("simulate", "--model", "Llama-3.1-9B", "--gpu", "L4", *LOAD), ("--model", "3.1-9B", "Llama-3.1-8B")),
    "gpu": (("simulate", "--model", "Llama-3.1-8B", "--gpu", "H100-SMX", *LOAD), ("--gpu", "H100-SMX", "H100-SXM")),
    "gpu of a plan": ((*PLAN, "--gpus", "H100-SMX:8"), ("--gpus", "H100-SMX", "H100-SXM")),
    "workload": ((*ON_H100, "--workload", "chatt", "--rate", "4"), ("--workload", "chatt", "did you mean chat")),
    "engine": (with_flag("--engine", "vlmm-v1"), ("--engine", "vlmm-v1", "vllm-v1")),
    "engine of a plan": ((*PLAN, "--engines", "vlmm-v1"), ("--engines", "vlmm-v1", "vllm-v1")),
    "engine file": (with_flag("--engine", "./nowhere.py"), ("--engine", "nowhere.py", "no such file")),
    "engine option": (with_flag("--engine", "vllm-v1,watermarc=0.1"), ("watermarc", "watermark")),
    "engine option without value": (with_flag("--engine", "vllm-v1,watermark"), ("--engine", "option=value")),
    "engine option of the wrong type": (with_flag("--engine", "vllm-v1,watermark=x"), ("watermark", "'x'", "0.0")),
    "router": (with_flag("--router", "roundrobin"), ("--router", "roundrobin", "round-robin")),
    "precision": (with_flag("--precision", "bf61"), ("--precision", "bf61", "bf16")),
    "precisions of a plan": ((*PLAN, "--precisions", "bf61"), ("--precisions", "bf61", "bf16")),
    "kv precision": (with_flag("--kv-precision", "fp7"), ("--kv-precision", "fp7", "fp8")),
    "step model": (with_flag("--step-model", "rooflin"), ("--step-model", "rooflin", "roofline")),
    "arrivals": (with_flag("--arrivals", "gama"), ("--arrivals", "gama", "gamma")),
    "catalog kind": (("catalog", "gpu"), ("gpu", "did you mean gpus")),
    "catalog entry": (("catalog", "gpus", "H100-SMX"), ("H100-SMX", "H100-SXM")),
    "optimize": ((*PLAN, "--optimize", "costs"), ("--optimize", "costs", "cost")),
    "tolerance": ((*PLAN, "--precision-tolerance", "lo"), ("--precision-tolerance", "lo", "low")),
    "preference": ((*PLAN, "--latency-preference", "fast"), ("--latency-preference", "fast", "interactive")),
    # what is not given
    "no model": (("simulate", "--gpu", "L4", *LOAD), ("--model", "Llama-3.1-8B")),
    "no gpu": (("simulate", "--model", "Llama-3.1-8B", *LOAD), ("--gpu", "H100-SXM")),
    "no workload": (("simulate", *DEPLOYMENT, "--rate", "4"), ("workload", "nothing", "--trace FILE")),
    "no load": ((*ON_H100, "--workload", "chat"), ("load", "--rate R, --concurrency N", "--at-once")),
    "no targets": (CAPACITY, ("targets", "--ttft-ms", "--tpot-ms")),
    "half a length": ((*ON_H100, "--prompt-tokens", "9", "--rate", "1"), ("--output-tokens", "together")),
    # loads and numbers
    "rate 0": ((*ON_H100, "--workload", "chat", "--rate", "0"), ("--rate", "0.0", "above zero")),
    "rate -1": ((*ON_H100, "--workload", "chat", "--rate", "-1"), ("--rate", "-1.0", "above zero")),
    "rate nan": ((*ON_H100, "--workload", "chat", "--rate", "nan"), ("--rate", "nan", "above zero")),
    "rate inf": ((*ON_H100, "--workload", "chat", "--rate", "inf"), ("--rate", "inf", "above zero")),
    "rate without end": ((*ON_H100, "--workload", "chat", "--rate", "1e300"), ("--rate", "1e+300", "to 1e+09")),
    "rate of nothing": ((*ON_H100, "--workload", "chat", "--rate", "1e-300"), ("--rate", "1e-300", "from 1e-09")),
    "rate of a plan": ((*PLAN, "--rate", "0"), ("--rate", "0.0", "above zero")),
    "rate of a capacity": ((*CAPACITY, "--ttft-ms", "9", "--rate", "0"), ("--rate", "0.0", "above zero")),
    "rate in words": ((*ON_H100, "--workload", "chat", "--rate", "fast"), ("--rate", "fast", "give a number")),
    "rate=word": ((*ON_H100, "--workload", "chat", "--rate=fast"), ("--rate", "fast", "give a number")),
    "two loads": (with_flag("--concurrency", "4"), ("--rate and --concurrency", "give one of")),
    "a load and at once": (with_flag("--at-once"), ("--rate and --at-once", "give one of")),
    "rate and users": ((*PLAN, "--rate", "3", "--users", "4"), ("--users", "not both")),
    "two workloads": (with_flag("--trace", "x.csv"), ("--workload and --trace", "give one of")),
    "users 0": ((*PLAN, "--users", "0"), ("--users", "0", "at least one")),
    "format without trace": (with_flag("--trace-format", "azure"), ("--trace-format", "azure", "--trace FILE")),
    "thinking without users": (with_flag("--think-s", "3"), ("--think-s", "3", "--users")),
    "burstiness of poisson": (with_flag("--arrivals", "poisson", "--burstiness", "1"), ("--burstiness", "gamma")),
    "percentile 200": (with_flag("--percentile", "200"), ("--percentile", "200", "between 0 and 100")),
    "percentile nan": (with_flag("--ttft-ms", "9", "--percentile", "nan"), ("--percentile", "nan", "99")),
    "percentile of a plan": ((*PLAN, "--percentile", "200"), ("--percentile", "200", "between 0 and 100")),
    "negative target": (with_flag("--ttft-ms", "-5"), ("--ttft-ms", "-5.0", "milliseconds above zero")),
    "target of zero": ((*CAPACITY, "--tpot-ms", "0"), ("--tpot-ms", "0.0", "milliseconds above zero")),
    "duration 0": (with_flag("--duration-s", "0"), ("--duration-s", "0.0", "above zero")),
    "no requests": ((*ON_H100, "--workload", "chat", "--rate", "1", "--num-requests", "0"), ("--num-requests", "0")),
    "short probes": ((*CAPACITY, "--ttft-ms", "9", "--num-requests", "1"), ("--num-requests", "1", "at least 2")),
    "no seeds": ((*CAPACITY, "--ttft-ms", "9", "--num-seeds", "0"), ("--num-seeds", "0", "at least 1")),
    "negative seed": (with_flag("--seed", "-1"), ("--seed", "-1")),
    "tp 0": (with_flag("--tp", "0"), ("--tp", "0", "at least 1")),
    "tp in words": (with_flag("--tp", "two"), ("--tp", "'two'", "whole number")),
    "tp of a plan in words": ((*PLAN, "--tp", "two"), ("--tp", "'two'", "whole number")),
    "replicas -1": (with_flag("--replicas", "-1"), ("--replicas", "-1", "at least 1")),
    "seats 0": (with_flag("--max-num-seqs", "0"), ("--max-num-seqs", "0", "at least 1")),
    "seats of a plan": ((*PLAN, "--max-num-seqs", "0"), ("--max-num-seqs", "0", "at least 1")),
    "budget -4": (with_flag("--max-num-batched-tokens", "-4"), ("--max-num-batched-tokens", "-4", "at least 1")),
    "length 1": (with_flag("--max-model-len", "1"), ("--max-model-len", "1", "2")),
    "blocks 0": (with_flag("--kv-blocks", "0"), ("--kv-blocks", "0", "at least 1")),
    "block size 0": (with_flag("--block-size", "0"), ("--block-size", "0", "at least 1")),
    "utilization 2": (with_flag("--gpu-memory-utilization", "2"), ("--gpu-memory-utilization", "2.0", "0.9")),
    "utilization of a plan": ((*PLAN, "--gpu-memory-utilization", "3"), ("--gpu-memory-utilization", "3.0", "0.9")),
    "money -1": ((*PLAN, "--budget-usd-per-hour", "-1"), ("--budget-usd-per-hour", "-1.0", "above zero")),
    "money nan": ((*PLAN, "--budget-usd-per-hour", "nan"), ("--budget-usd-per-hour", "nan", "above zero")),
    "no gpus": ((*PLAN, "--gpus", "L4:0"), ("--gpus", "L4:0", "such as H100-SXM:8")),
    "gpus in words": ((*PLAN, "--gpus", "L4:many"), ("--gpus", "L4:many", "such as H100-SXM:8")),
    "token budgets": ((*PLAN, "--token-budgets", "0"), ("--token-budgets", "0", "at least 1")),
    "top 0": ((*PLAN, "--top", "0"), ("--top", "0", "at least 1")),
    "spare -1": ((*PLAN, "--spare", "-1"), ("--spare", "-1", "zero or more")),
    "prefix hit": ((*PLAN, "--prefix-hit", "1.5"), ("--prefix-hit", "1.5", "such as 0.3")),
    "throughput": ((*PLAN, "--throughput-tokens-per-s", "-4"), ("--throughput-tokens-per-s", "-4.0", "above zero")),
    "no command": ((*PLAN, "--start-from", "rm -rf"), ("rm -rf", "vllm serve MODEL")),
    # deployments that would not start
    "fits nowhere": (("simulate", "--model", "Llama-3.1-405B", "--gpu", "T4", *LOAD), ("405B", "T4", "GiB", "short")),
    "tp does not divide": (with_flag("--tp", "3"), ("TP 3", "32 query heads", "use TP 1, 2, 4")),
    "too many stages": (with_flag("--pp", "100"), ("PP 100", "32 layers")),
    "experts of a dense model": (with_flag("--ep", "2"), ("EP 2", "no experts")),
    "longer than memory": (with_flag("--max-model-len", "99999999"), ("99999999", "GiB", "max_model_len")),
    # the parser's own
    "unknown flag": (with_flag("--nope"), ("--nope", "plimsoll simulate --help")),
    "unknown verb": (("simulte",), ("simulte", "plimsoll --help")),
    "extra word": (with_flag("extra"), ("extra", "plimsoll simulate --help")),
    "flag without value": (("simulate", "--model"), ("--model", "plimsoll simulate --help")),
    # scenario files
    "no scenario": (("simulate", "--scenario", "/nowhere.yaml"), ("--scenario", "/nowhere.yaml", "No such file")),
    "scenario is a folder": (("simulate", "--scenario", "/"), ("--scenario", "'/'", "directory")),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_one_line_names_field_value_and_remedy(capsys: Capture, tmp_path: Path, case: str) -> None:
    command, words = TABLE[case]
    keeps = () if command[0] in ("catalog", "simulte") else ("--out", str(tmp_path / "o"))
    if case == "flag without value":
        keeps = ()
    outcome = run(capsys, *command[:1], *keeps, *command[1:])
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", outcome.stderr)
    for word in words:
        assert word in outcome.stderr
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", ("columns", "csv_generic")),
        ("", ("empty",)),
        ("arrival_s,prompt_tokens,output_tokens\n", ("at least one request",)),
        ("arrival_s,prompt_tokens,output_tokens\n0,9,9\n1,nan,5\n", ("line 3, prompt_tokens", "nan", "finite")),
        ("arrival_s,prompt_tokens,output_tokens\nnan,9,5\n", ("line 2, arrival_s", "nan", "finite")),
        ("arrival_s,prompt_tokens,output_tokens\n0,-7,5\n", ("line 2, prompt_tokens", "-7", "at least 1")),
        ("arrival_s,prompt_tokens,output_tokens\n0,7,0\n", ("line 2, output_tokens", "0", "at least 1")),
        ("arrival_s,prompt_tokens,output_tokens\n5,7,3\n1,7,3\n", ("line 3, arrival_s", "sort the file")),
        ("arrival_s,prompt_tokens,output_tokens\n5,7\n", ("line 2", "2 columns")),
        ("\x00\x01\x02\x03", ("binary content",)),
    ],
)  # fmt: skip
def test_a_broken_trace_is_named_with_its_line(
    capsys: Capture, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "trace.csv").write_text(text)
    outcome = run(capsys, *ON_H100, "--trace", str(tmp_path / "trace.csv"), "--out", str(tmp_path / "o"))
    assert outcome.code == 2
    assert re.fullmatch(r"error: [^\n]*trace\.csv[^\n]+\n", outcome.stderr)
    for word in words:
        assert word in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]


def test_a_trace_that_is_not_there_or_damaged(capsys: Capture, tmp_path: Path) -> None:
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n0,1,1\n" * 99, mtime=0)[:40])
    for path, words in ((tmp_path / "no.csv", "no such file"), (tmp_path, "folder"), (cut, "truncated or damaged")):
        outcome = run(capsys, *ON_H100, "--trace", str(path))
        assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
        assert words in outcome.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "one JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"x": "' + "y" * 11_000_000 + '"}', "at most"),
        ('{"architectures": ["FooForCausalLM"], "hidden_size": 8}', "FooForCausalLM"),
        ('{"architectures": ["LlamaForCausalLM"], "hidden_size": -5}', "num_hidden_layers"),
        ('{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 99999999999}', "99999999999"),
    ],
    ids=["broken", "list", "deep", "huge", "architecture", "missing", "absurd"],
)  # fmt: skip
def test_a_broken_or_huge_config_is_refused_by_name(capsys: Capture, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for path in (tmp_path, tmp_path / "config.json"):
        outcome = run(capsys, "simulate", "--model", str(path), "--gpu", "L4", *LOAD)
        assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
        assert "config.json" in outcome.stderr
        assert words in outcome.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\n b: }", ("--scenario", "not YAML")),
        ("just words", ("--scenario", "fields and values")),
        ("- 1\n- 2\n", ("--scenario", "fields and values")),
        ("", ("--scenario", "fields and values")),
        ("modle: x\n", ("modle", "did you mean model")),
        ("rate_per_s: fast\n", ("--rate", "fast", "give a number")),
        ("tp: 1.5\n", ("--tp", "1.5", "whole number")),
        ("model: {a: 1}\n", ("--model", "{'a': 1}", "text")),
        ("at_once: 3\n", ("--at-once", "3", "true or false")),
        ("budget_usd_per_hour: 3\n", ("budget_usd_per_hour",)),
        ("!!python/object/apply:os.system ['true']\n", ("--scenario", "not YAML")),
    ],
)  # fmt: skip
def test_a_broken_scenario_is_refused(capsys: Capture, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "s.yaml").write_text(text)
    outcome = run(capsys, "simulate", "--scenario", str(tmp_path / "s.yaml"))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", outcome.stderr)
    for word in words:
        assert word in outcome.stderr


def test_places_that_cannot_be_written_are_refused_before_anything_runs(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for flag, place in (
        ("--out", file), ("--out", file / "below"), ("--out", Path("/proc/nowhere")),
        ("--save-scenario", tmp_path), ("--save-scenario", file / "s.yaml"),
    ):  # fmt: skip
        outcome = run(capsys, *SIMULATE, flag, str(place))
        assert (outcome.code, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
        assert flag in outcome.stderr
        assert str(place.parent if flag == "--save-scenario" and place != tmp_path else place) in outcome.stderr
    assert file.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


BROKEN = "class Broken:\n    def __init__(self, config):"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Other: pass\n", "class named Broken"),
        ("import nowhere_at_all\n", "ModuleNotFoundError"),
        (f"{BROKEN} raise ValueError('no')\n    def plan(self, r): ...\n", "in __init__(), line 2: ValueError: no"),
        ("import sys\nsys.exit(0)\n", "failed in line 2: SystemExit: 0"),
        (f"{BROKEN} pass\n", "no method plan(view)"),
        (f"{BROKEN} pass\n    def plan(self, r):\n        return 3\n", "plan(), line 3, returned 3;"),
    ],
    ids=["no class", "no import", "raises", "exits", "no plan", "no step plan"],
)  # fmt: skip
def test_a_broken_policy_file_is_named(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    relative = run(capsys, *SIMULATE, "--engine", "./broken.py")
    assert (relative.code, relative.stderr.count("\n")) == (2, 1)
    assert words in relative.stderr
    outcome = run(capsys, *SIMULATE, "--engine", str(tmp_path / "broken.py"))
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
    assert "broken.py" in outcome.stderr
    assert words in outcome.stderr


def test_bad_input_in_a_process_of_its_own_looks_the_same() -> None:
    outcome = spawn(*ON_H100, "--workload", "chat", "--rate", "0", "--json")
    assert (outcome.code, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
