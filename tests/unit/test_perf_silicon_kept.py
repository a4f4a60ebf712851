"""Kept answers of the measured tables: the same floats, whatever happens to the file."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.perf import silicon_kept
from plimsoll.perf.silicon_kept import KeptAnswers, cache_folder, open_kept, package_digest

TWO_OPS = json.dumps([{"Gemm": {"name": "0", "n": 1}}, {"Gemm": {"name": "1", "n": 2}}])
OTHER = json.dumps([{"Gemm": {"name": "0", "n": 3}}])
QUESTION = (True, (1, 1, 0), 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "gpu.txt"


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of other tests in this process are not ours to write or to hand over."""
    for name in ("_open", "_handed"):
        monkeypatch.setattr(silicon_kept, name, {})
    monkeypatch.setattr(silicon_kept, "_handing", [])


def kept_with(path: Path, answers: dict[int, list[float]], text: str = TWO_OPS) -> KeptAnswers:
    kept = KeptAnswers(path)
    for rows, each_ms in answers.items():
        kept.add(text, (True, (1, 1, 0), rows), each_ms)
    kept.flush()
    return kept


@given(st.lists(st.floats(min_value=0, allow_infinity=False, allow_nan=False), min_size=2, max_size=2))
def test_what_is_kept_comes_back_bit_for_bit(tmp_path_factory: Any, each_ms: list[float]) -> None:
    path = tmp_path_factory.mktemp("kept") / "gpu.txt"
    kept = KeptAnswers(path)
    assert not kept
    kept.add(TWO_OPS, (False, (7, 1024, 3), None), each_ms)
    kept.add_order("context_attention", ["fa3", "fa2"])
    kept.flush()
    again = KeptAnswers(path)
    assert again
    assert again.answers(TWO_OPS) == {(False, (7, 1024, 3), None): each_ms}
    assert again.answers(OTHER) == {}
    assert again.order("context_attention") == ["fa3", "fa2"]
    assert again.order("generation_attention") is None


def test_many_answers_are_many_lines_and_all_come_back(path: Path) -> None:
    wanted = {rows: [rows / 7, rows / 3] for rows in range(3 * silicon_kept.PER_LINE + 1)}
    kept_with(path, wanted)
    assert len([line for line in path.read_bytes().split(b"\n") if line]) == 4
    assert {question[2]: each for question, each in KeptAnswers(path).answers(TWO_OPS).items()} == wanted


def test_nothing_is_written_twice(path: Path) -> None:
    kept = kept_with(path, {1: [1.0, 2.0]})
    size = path.stat().st_size
    kept.flush()
    assert path.stat().st_size == size


@pytest.mark.parametrize("place", [3, 12, 60, -3])
def test_a_changed_byte_costs_its_line_and_no_more(path: Path, place: int) -> None:
    kept_with(path, {1: [1.5, 2.5]})
    whole = bytearray(path.read_bytes())
    whole[place] ^= 0x15
    path.write_bytes(whole)
    kept_with(path, {2: [3.5, 4.5]})
    assert KeptAnswers(path).answers(TWO_OPS) == {(True, (1, 1, 0), 2): [3.5, 4.5]}


@pytest.mark.parametrize("left", range(0, 90, 9))
def test_a_torn_write_does_not_spoil_the_next(path: Path, left: int) -> None:
    kept_with(path, {1: [1.5, 2.5]})
    path.write_bytes(path.read_bytes()[:left])
    kept_with(path, {2: [3.5, 4.5]})
    found = KeptAnswers(path).answers(TWO_OPS)
    assert found.pop((True, (1, 1, 0), 2)) == [3.5, 4.5]
    assert found in ({}, {(*QUESTION[:2], 1): [1.5, 2.5]})


def test_what_parses_but_cannot_be_is_passed_over(path: Path) -> None:
    kept_with(path, {1: [1.5], 2: [1.0, float("nan")], 3: [1.0, 2.0]})
    assert KeptAnswers(path).answers(TWO_OPS) == {(True, (1, 1, 0), 3): [1.0, 2.0]}


def test_garbage_is_no_cache(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(os.urandom(5000) + b"\n\xff\xfe zzz\n12345678 key not json\n")
    kept = KeptAnswers(path)
    assert not kept
    assert kept.answers(TWO_OPS) == {}


def test_a_file_that_grew_too_large_is_begun_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_with(path, {rows: [1.0, 2.0] for rows in range(1000)})
    monkeypatch.setattr(silicon_kept, "MAX_BYTES", 1000)
    kept_with(path, {1: [5.0, 6.0]})
    assert KeptAnswers(path).answers(TWO_OPS) == {(True, (1, 1, 0), 1): [5.0, 6.0]}


def test_where_nothing_can_be_written_nothing_is_kept_and_nobody_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    kept = kept_with(blocked / "cache" / "gpu.txt", {1: [1.0, 2.0]})
    kept.add(TWO_OPS, QUESTION, [1.0, 2.0])
    kept.flush()
    assert blocked.read_text() == "no folder"


def test_without_a_path_nothing_is_gathered() -> None:
    kept = KeptAnswers(None)
    kept.add(TWO_OPS, QUESTION, [1.0, 2.0])
    kept.flush()
    assert kept.fresh_lines() == {}


def _write(path: Path, first: int) -> None:
    for round_ in range(10):
        kept_with(path, {first + 50 * round_ + k: [float(first), float(k)] for k in range(50)})


def test_two_writers_at_once_lose_nothing(path: Path) -> None:
    multi = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    writers = [multi.Process(target=_write, args=(path, first)) for first in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = KeptAnswers(path).answers(TWO_OPS)
    assert {question[2] for question in found} == {*range(500), *range(1000, 1500)}


def _flush_in_child(kept: KeptAnswers) -> None:
    kept.flush()
    kept.add(TWO_OPS, (True, (1, 1, 0), 2), [3.0, 4.0])
    kept.flush()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_worker_writes_its_own_answers_only(path: Path) -> None:
    kept = KeptAnswers(path)
    kept.add(TWO_OPS, (True, (1, 1, 0), 1), [1.0, 2.0])
    worker = multiprocessing.get_context("fork").Process(target=_flush_in_child, args=(kept,))
    worker.start()
    worker.join()
    assert {question[2] for question in KeptAnswers(path).answers(TWO_OPS)} == {2}
    kept.flush()
    assert {question[2] for question in KeptAnswers(path).answers(TWO_OPS)} == {1, 2}
    assert len([line for line in path.read_bytes().split(b"\n") if line]) == 2


def test_a_long_lived_process_writes_now_and_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silicon_kept, "FLUSH_AT", 3)
    kept = KeptAnswers(path)
    for rows in (1, 2):
        kept.add(TWO_OPS, (True, (1, 1, 0), rows), [1.0, 2.0])
    assert not path.exists()
    kept.add(TWO_OPS, (True, (1, 1, 0), 3), [1.0, 2.0])
    assert len(KeptAnswers(path).answers(TWO_OPS)) == 3


# Which file -----------------------------------------------------------------------------------------------------------


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for word in ("off", "0", "No"):
        monkeypatch.setenv("PLIMSOLL_CACHE", word)
        assert cache_folder() is None
    monkeypatch.setenv("PLIMSOLL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "silicon"
    monkeypatch.delenv("PLIMSOLL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "plimsoll" / "silicon"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "plimsoll" / "silicon"


def package(folder: Path) -> Path:
    (folder / "systems" / "data" / "gpu").mkdir(parents=True)
    (folder / "systems" / "data" / "gpu" / "gemm.parquet").write_bytes(b"12345")
    (folder / "engine.so").write_bytes(b"code")
    return folder


@pytest.mark.parametrize("change", ["table time", "table size", "code", "version", "new file"])
def test_another_installation_has_another_file(tmp_path: Path, change: str) -> None:
    folder = package(tmp_path)
    before = package_digest(folder, "1")
    package_digest.cache_clear()
    assert package_digest(folder, "1") == before
    table = folder / "systems" / "data" / "gpu" / "gemm.parquet"
    if change == "table time":
        os.utime(table, ns=(1, 1))
    elif change == "table size":
        table.write_bytes(b"123456")
    elif change == "code":
        os.utime(folder / "engine.so", ns=(1, 1))
    elif change == "new file":
        (folder / "systems" / "new.yaml").write_text("a: 1")
    package_digest.cache_clear()
    assert package_digest(folder, "2" if change == "version" else "1") != before


def test_files_of_gone_installations_are_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLIMSOLL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "silicon"
    folder.mkdir(parents=True)
    old, young = folder / "gpu-1-old.txt", folder / "gpu-1-young.txt"
    for one in (old, young):
        one.write_text("x")
    os.utime(old, (0, time.time() - 2 * silicon_kept.FORGET_AFTER_S))
    kept = open_kept(package(tmp_path / "package"), "1", "gpu", "../0.24")
    kept.add(TWO_OPS, QUESTION, [1.0, 2.0])
    silicon_kept.flush_all()
    left = sorted(path.name for path in folder.iterdir())
    assert young.name in left
    assert old.name not in left
    assert len(left) == 2  # whatever the version is called, the new one lies in the folder


def test_what_one_process_asked_another_knows(tmp_path: Path) -> None:
    folder = package(tmp_path)
    silicon_kept.hand_over_from_here()
    kept = open_kept(folder, "1", "gpu", "0.24")  # the environment of tests keeps nothing on disk
    kept.add(TWO_OPS, QUESTION, [0.1, 0.2])
    kept.add_order("context_attention", ["fa3"])
    found = silicon_kept.hand_over()
    assert not open_kept(folder, "1", "gpu", "0.24")
    silicon_kept.take_over(found)
    other = open_kept(folder, "1", "gpu", "0.24")
    assert other.answers(TWO_OPS) == {QUESTION: [0.1, 0.2]}
    assert other.order("context_attention") == ["fa3"]
    assert not open_kept(folder, "1", "another", "0.24")


def test_open_tables_learn_what_another_process_asked(tmp_path: Path) -> None:
    folder, lines = package(tmp_path), {silicon_kept._key(TWO_OPS): [b"[[true,1,1,0,64,[0.1,0.2]]]"]}
    kept = open_kept(folder, "1", "gpu", "0.24")
    assert kept.answers(TWO_OPS) == {}
    silicon_kept.take_over({("gpu", "0.24"): lines})
    assert kept.answers(TWO_OPS) == {QUESTION: [0.1, 0.2]}
    assert kept.fresh_lines() == {}  # the other process writes it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_process_hands_over_its_own_answers_only(path: Path) -> None:
    kept = KeptAnswers(path)
    kept.add(TWO_OPS, QUESTION, [1.0, 2.0])
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(kept.fresh_lines()))
    worker.start()
    assert ours.recv() == {}
    worker.join()
    assert list(kept.fresh_lines()) == [silicon_kept._key(TWO_OPS)]


def test_a_missing_package_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLIMSOLL_CACHE", str(tmp_path / "cache"))
    kept = open_kept(tmp_path / "nowhere", "1", "gpu", "0.24")
    kept.add(TWO_OPS, QUESTION, [0.1, 0.2])
    silicon_kept.flush_all()
    assert not (tmp_path / "cache").exists()
