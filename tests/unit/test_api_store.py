"""Files of a run: whole or not at all, and refused before anything runs where they could not be written."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest

from plimsoll.api.store import check_file, check_folder, open_folder, requests_csv, write_text
from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.txt"
    write_text(path, "one")
    write_text(path, "two × 2")
    assert path.read_text(encoding="utf-8") == "two × 2"
    assert path.stat().st_mode & 0o777 == 0o644

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="disk full"):
        write_text(path, "three")
    assert path.read_text(encoding="utf-8") == "two × 2"
    assert [found.name for found in tmp_path.iterdir()] == ["f.txt"]


def test_checking_a_folder_makes_nothing(tmp_path: Path) -> None:
    check_folder("--out", tmp_path / "a" / "b")
    check_file("--save-scenario", tmp_path / "a" / "s.yaml")
    assert list(tmp_path.iterdir()) == []
    assert open_folder("--out", tmp_path / "a" / "b").is_dir()


def test_a_relative_folder_is_checked_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_folder("--out", "runs/today")
    check_file("--save-scenario", "s.yaml")
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match="is a file; give a folder"):
        check_folder("--out", "runs/today")


def test_places_that_cannot_be_are_named_by_their_flag(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--out: .*file' cannot be used"):
        check_folder("--out", tmp_path / "file")
    with pytest.raises(InputError, match=r"--save-scenario.*this is a folder"):
        check_file("--save-scenario", tmp_path)
    with pytest.raises(InputError, match=r"--out.*cannot be made"):
        open_folder("--out", tmp_path / "file" / "below")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        check_folder("--out", tmp_path / "new")


def test_the_table_has_a_row_a_request_and_an_empty_field_for_never() -> None:
    nan = np.nan
    run = Run(
        arrival_s=floats([0, 0.1234567891, 2]),
        scheduled_s=floats([0, 0.2, nan]),
        first_token_s=floats([1, nan, nan]),
        finish_s=floats([2, nan, nan]),
        prompt_tokens=ints([5, 6, 7]),
        output_tokens=ints([2, 0, 0]),
        cached_tokens=ints([0, 4, 0]),
        preemptions=ints([0, 1, 0]),
        replica=ints([0, 1, -1]),
        status=np.array([Status.FINISHED, Status.UNFINISHED, Status.REJECTED], dtype=np.int8),
        timeline=None,
    )
    rows = list(csv.DictReader(io.StringIO(requests_csv(run))))
    assert [row["status"] for row in rows] == ["finished", "unfinished", "rejected"]
    assert [row["finish_s"] for row in rows] == ["2.000000000", "", ""]
    assert rows[1]["arrival_s"] == "0.123456789"
    assert (rows[1]["preemptions"], rows[1]["cached_tokens"], rows[2]["replica"]) == ("1", "4", "-1")
