"""Every example runs, and its answer has the shape that its first line promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.commands import SIMULATE, run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def output_of(*command: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_there_is_a_test_for_every_example() -> None:
    tested = {"plan_a_chat_service.py", "compare_two_token_budgets.py", "simulate_a_trace.sh", "my_policy.py"}
    tested |= {"memory_dropoffs.py"}
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")} == tested


def test_plan_a_chat_service() -> None:
    lines = output_of(sys.executable, str(EXAMPLES / "plan_a_chat_service.py")).splitlines()
    assert lines[0].startswith("Deploy ")
    assert re.match(r"1\. \d+ × \S+: \$[\d.]+ an hour, carries", lines[1])
    assert any(line.startswith("vllm serve meta-llama/Llama-3.1-8B") for line in lines)


def test_compare_two_token_budgets() -> None:
    gaps, first = output_of(sys.executable, str(EXAMPLES / "compare_two_token_budgets.py")).splitlines()
    assert re.search(r"difference -[\d.]+ ±", gaps), "a smaller budget keeps decodes smooth"
    assert re.search(r"difference \+[\d.]+ ±", first), "and delays the first token"


def test_memory_dropoffs(tmp_path: Path) -> None:
    page = tmp_path / "memory.html"
    lines = output_of(sys.executable, str(EXAMPLES / "memory_dropoffs.py"), str(page)).splitlines()
    assert re.search(r"guide: most \d\d%, steepest drop from \d\d% at 20 to \d\d% at 22", lines[0])
    assert any(re.match(r"2 MiB granules: 6% of the memory taken for 16 tokens is used", line) for line in lines)
    assert page.read_text().count("<polyline") == 9


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_simulate_a_trace(tmp_path: Path) -> None:
    text = output_of("sh", str(EXAMPLES / "simulate_a_trace.sh"), str(tmp_path))
    assert "meets its targets" in text.splitlines()[0]
    assert "of 300 in" in text
    assert len((tmp_path / "requests.csv").read_text().splitlines()) == 301


def test_my_policy(capsys: pytest.CaptureFixture[str]) -> None:
    """Shortest first lowers the mean wait of an overloaded server, and hits the longest prompts."""
    common = ("simulate", "--model", "Llama-3.1-8B", "--gpu", "L40S", "--workload", "chat", "--rate", "12",
              "--num-requests", "400", "--max-num-seqs", "16", "--json")  # fmt: skip
    mine = run(capsys, *common, "--engine", str(EXAMPLES / "my_policy.py"))
    theirs = run(capsys, *common)
    assert (mine.code, mine.json()["counts"]["finished"]) == (0, 400)
    mean, other = mine.json()["metrics"]["ttft_s"]["mean"], theirs.json()["metrics"]["ttft_s"]["mean"]
    assert mean < 0.9 * other
    option = run(capsys, *common, "--engine", f"{EXAMPLES / 'my_policy.py'},max_running=4")
    assert option.json()["metrics"]["batch_size"]["max"] == 4


def test_the_policy_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code under the name and with the command that the page gives."""
    section = (EXAMPLES.parent / "docs" / "engines.md").read_text(encoding="utf-8").partition("## Writing one")[2]
    code, _, after = section.partition("```python\n")[2].partition("```")
    command = next(line.split() for line in after.splitlines() if "--engine ./my_policy.py" in line)
    (tmp_path / "my_policy.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    outcome = run(capsys, *command[1:], "--num-requests", "20", "--json")
    assert (outcome.code, outcome.json()["counts"]["finished"]) == (0, 20)
    assert outcome.json()["metrics"]["batch_size"]["max"] == 1


def test_a_plan_that_cannot_be_carried_out_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES / "my_policy.py").read_text(encoding="utf-8")
    (tmp_path / "my_policy.py").write_text(text.replace("holds=UNTIL_SOMETHING_HAPPENS", "holds=0"))
    outcome = run(capsys, *SIMULATE, "--engine", str(tmp_path / "my_policy.py"))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert len(outcome.stderr.splitlines()) == 1
    assert "my_policy.py" in outcome.stderr
    assert "planned holds=0; write a whole number" in outcome.stderr


def test_my_policy_survives_a_shortage_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(
        capsys, "simulate", "--model", "Llama-3.1-8B", "--gpu", "L40S", "--workload", "chat", "--rate", "4",
        "--num-requests", "200", "--kv-blocks", "700", "--max-model-len", "8192", "--engine",
        str(EXAMPLES / "my_policy.py"), "--json",
    )  # fmt: skip
    counts = outcome.json()["counts"]
    assert counts["finished"] == 200
    assert counts["preemptions"] > 0
