"""`python -m validation`: folders for every suite, and readers that leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.core.errors import InputError
from tests.unit.test_validation_schedules import BY_HAND, written
from validation.__main__ import FILES, files_of, main


def test_a_folder_stands_for_the_suites_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("", encoding="utf-8")
    (tmp_path / "inner.jsonl").mkdir()
    zipped, plain = written(tmp_path, name="b.jsonl.gz"), written(tmp_path, name="a.jsonl")
    assert sorted(files_of("schedules", [tmp_path])) == [plain, zipped]
    assert files_of("schedules", [plain, tmp_path / "missing"]) == [plain, tmp_path / "missing"]
    assert files_of("operators", [tmp_path]) == [tmp_path]  # its suite reads folders


@pytest.mark.parametrize("suite", FILES)
def test_a_folder_without_such_files_is_refused(suite: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"this folder holds no .*(jsonl|csv)"):
        files_of(suite, [tmp_path])


def test_a_folder_at_the_command_line(tmp_path: Path) -> None:
    written(tmp_path, BY_HAND, name="a.jsonl")
    written(tmp_path, BY_HAND, name="b.jsonl.gz")
    command = [sys.executable, "-m", "validation", "schedules", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "schedules: passed: 2 of 2 workloads reproduced step by step\n")


def test_a_reader_that_has_gone_is_quiet(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "validation", "schedules", "--data", str(written(tmp_path, BY_HAND)), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


STRANGE = {"bytes": b"\xff\xfe\x00\x81" * 300, "empty": b"", "foreign": b"a,b\n1,2\n", "header": b"a,b\n"}


def ending(suite: str) -> str:
    return ".jsonl" if suite == "schedules" else ".csv"


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("suite", ["schedules", "inferencex", "ml-energy", "operators", "papers"])
def test_a_strange_file_is_one_line_that_names_it(
    suite: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{kind}{ending(suite)}"
    path.write_bytes(STRANGE[kind])
    monkeypatch.setattr(sys, "argv", ["validation", suite, "--data", str(path)])
    assert main() == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("error: ")
    assert path.name in said.err
    assert "; " in said.err, "what to do about it"


@pytest.mark.parametrize("suite", ["operators", "papers"])
@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_without_the_suites_data_is_refused(
    suite: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["validation", suite, "--data", str(tmp_path / name)])
    assert main() == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "operator-profiles" in said.err


def test_the_suites_that_read_files_take_the_folders_of_measured_data(shared_data: Path) -> None:
    assert {path.name for path in files_of("schedules", [shared_data / "vllm-schedules"])} >= {"dev.jsonl.gz"}
    assert [path.name for path in files_of("ml-energy", [shared_data / "ml-energy"])] == ["llm_text.csv"]
