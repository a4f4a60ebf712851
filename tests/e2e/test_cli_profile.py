"""A profile on the command line: simulated with, refused with, extrapolated with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plimsoll.cli import main
from tests.own_profiles import make_profile


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, config = make_profile(tmp_path_factory.mktemp("profile"))
    return [
        "simulate", "--model", str(config), "--gpu", str(folder / "device.toml"), "--step-model", f"profile:{folder}",
        "--kv-blocks", "2000", "--max-model-len", "1152", "--prompt-tokens", "100", "--output-tokens", "20",
        "--num-requests", "30", "--concurrency", "8",
    ]  # fmt: skip


def replaced(arguments: list[str], flag: str, value: str) -> list[str]:
    at = arguments.index(flag) + 1
    return [*arguments[:at], value, *arguments[at + 1 :]]


def test_a_run_on_a_profiled_cpu(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max-num-seqs", "32", "--max-num-batched-tokens", "512"]
    assert main([*arguments, *limits, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["finished"] == 30
    assert document["sources"]["step_model"]["step_model"] == "profile"
    assert main([*arguments, *limits]) == 0
    assert "cpu-test-cpu-1c" in capsys.readouterr().out


def test_a_grid_that_does_not_cover_the_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = replaced(replaced(arguments, "--prompt-tokens", "900"), "--concurrency", "4")
    wide = [*asked, "--max-num-batched-tokens", "2048"]
    assert main(wide) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "measured up to 512" in said
    assert "allow_extrapolation=true" in said
    at = wide.index("--step-model") + 1
    assert main([*wide[:at], f"{wide[at]},allow_extrapolation=true", *wide[at + 1 :], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["finished"] == 30


def test_another_device_is_told_the_profiles_own(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(replaced(arguments, "--gpu", "L4")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "device.toml" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--backend", "jax"], "did you mean"),
        (["--device", "tpu"], "--device"),
        (["--threads", "none"], "--threads"),
        (["--backend", "vllm"], "tokenizer"),
        (["--max-num-seqs", "1"], "at least 4 sequences"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    from tests.own_profiles import write_config

    config = write_config(tmp_path / "model")
    assert main(["profile", "--model", str(config), "--out", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error or "known" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["profile", "--model", "gpt2", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err
