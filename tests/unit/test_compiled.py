"""The engine compiled and interpreted: which is chosen, that both say the same, and that no compiler is needed."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path

import hatch_build
import pytest

import plimsoll
from plimsoll import _compiled

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One of its own, since the choice is made once."""
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one module, as it is beside its source after compiling."""
    monkeypatch.delenv("PLIMSOLL_COMPILED", raising=False)
    folder = tmp_path / "plimsoll"
    folder.mkdir()
    module = folder / "requests.py"
    module.write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(_compiled, "RECORD", folder / "_compiled.json")
    stat = module.stat()
    (tmp_path / f"plimsoll__mypyc{SUFFIX}").touch()
    record = {"suffix": SUFFIX, "sources": {"plimsoll/requests.py": [stat.st_mtime_ns, stat.st_size]}}
    (folder / "_compiled.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_extensions_are_used_while_they_are_as_new_as_their_source(package: Path) -> None:
    assert _compiled._why_interpreted() == ""
    (package / "requests.py").write_text("x = 2 * 1\n", encoding="utf-8")
    assert _compiled._why_interpreted().startswith("plimsoll/requests.py has changed since it was compiled")


def test_an_edit_of_the_same_length_is_seen(package: Path) -> None:
    os.utime(package / "requests.py", ns=(1, 1))
    assert _compiled._why_interpreted().startswith("plimsoll/requests.py has changed since it was compiled")


def test_so_is_one_that_left_no_time_behind(package: Path) -> None:
    module = package / "requests.py"
    stat = module.stat()
    module.write_text("x = 2 * 1\n", encoding="utf-8")
    os.utime(module, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _compiled._why_interpreted().startswith("plimsoll/requests.py has changed since it was compiled")


def test_without_what_all_extensions_share_the_source_counts(package: Path) -> None:
    (package.parent / f"plimsoll__mypyc{SUFFIX}").unlink()
    assert _compiled._why_interpreted() == _compiled.NOT_COMPILED


def test_source_that_is_gone_counts_as_changed(package: Path) -> None:
    (package / "requests.py").unlink()
    assert _compiled._why_interpreted().startswith("plimsoll/requests.py has changed")


def test_nothing_is_taken_from_another_python(package: Path) -> None:
    record = {"suffix": ".cpython-39-of-somebody-else.so", "sources": {}}
    (package / "_compiled.json").write_text(json.dumps(record), encoding="utf-8")
    assert _compiled._why_interpreted() == "it was compiled for another Python"


def test_without_a_record_the_source_counts(package: Path) -> None:
    (package / "_compiled.json").unlink()
    assert _compiled._why_interpreted() == _compiled.NOT_COMPILED


def test_a_record_that_was_cut_off_is_no_record(package: Path) -> None:
    (package / "_compiled.json").write_text('{"suffix": ', encoding="utf-8")
    assert _compiled._why_interpreted() == _compiled.NOT_COMPILED


@pytest.mark.usefixtures("package")
def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIMSOLL_COMPILED", "off")
    assert _compiled._why_interpreted() == "PLIMSOLL_COMPILED=off"


def test_source_is_found_beside_an_extension(tmp_path: Path) -> None:
    (tmp_path / "lane.py").touch()
    (tmp_path / f"lane{SUFFIX}").touch()
    spec = _compiled.SourceOnly().find_spec("plimsoll.lane", [str(tmp_path)])
    assert spec is not None
    assert spec.origin == str(tmp_path / "lane.py")
    assert _compiled.SourceOnly().find_spec("numpy.lane", [str(tmp_path)]) is None
    assert _compiled.SourceOnly().find_spec("plimsoll", None) is None
    assert _compiled.SourceOnly().find_spec("plimsoll.absent", [str(tmp_path)]) is None
    (tmp_path / "lane.py").unlink()
    with pytest.raises(ModuleNotFoundError, match=r"of plimsoll\.lane there is an extension, but no source"):
        _compiled.SourceOnly().find_spec("plimsoll.lane", [str(tmp_path)])


def test_what_is_loaded_is_what_the_version_says() -> None:
    text = "import plimsoll, plimsoll.engine.replicas.lane as m; print(plimsoll._ENGINE); print(m.__file__)"
    for environment in ({}, {"PLIMSOLL_COMPILED": "off"}):
        engine, file = run_python("-c", text, **environment).stdout.split("\n")[:2]
        assert file.endswith(SUFFIX if engine == "engine compiled" else "lane.py")


def test_what_is_compiled_is_there_and_what_is_not_has_a_reason() -> None:
    names = [path.as_posix() for path in hatch_build.modules(ROOT / "src")]
    assert "plimsoll/engine/replicas/lane.py" in names
    for pattern in hatch_build.COMPILED:
        assert list((ROOT / "src").glob(pattern)), pattern
    for name, why in hatch_build.INTERPRETED.items():
        assert name not in names
        assert (ROOT / "src" / name).exists(), name
        assert len(why) > 20


def test_without_a_working_compiler_installing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PLIMSOLL_COMPILED", raising=False)
    monkeypatch.setattr(hatch_build, "COMPILED", ("plimsoll/engine/policy.py",))
    monkeypatch.setenv("CC", "there-is-no-such-compiler")
    assert hatch_build.try_to_compile(ROOT / "src", tmp_path) == []
    captured = capsys.readouterr()
    assert captured.err.startswith("the engine stays interpreted, which is slower: compiling it failed (")
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_compiling_in_place_leaves_a_record_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plimsoll").mkdir()
    (tmp_path / "plimsoll/one.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / f"plimsoll/old{SUFFIX}").touch()
    monkeypatch.setattr(hatch_build, "COMPILED", ("plimsoll/*.py",))
    made: list[Path] = []

    def compile_one(source: Path, folder: Path) -> list[Path]:
        made.append(source)
        (folder / "plimsoll").mkdir()
        (folder / f"plimsoll/one{SUFFIX}").touch()
        return [Path(f"plimsoll/one{SUFFIX}")]

    monkeypatch.setattr(hatch_build, "try_to_compile", compile_one)
    assert hatch_build.compile_in_place(tmp_path)
    assert hatch_build.compile_in_place(tmp_path)
    assert len(made) == 1
    assert (tmp_path / f"plimsoll/one{SUFFIX}").exists()
    assert not (tmp_path / f"plimsoll/old{SUFFIX}").exists()
    (tmp_path / "plimsoll/one.py").write_text("x = 2 * 1\n", encoding="utf-8")
    assert hatch_build.compile_in_place(tmp_path)
    assert len(made) == 2

    def fail(source: Path, folder: Path) -> list[Path]:
        assert not (source / hatch_build.RECORD).exists()  # whoever starts now takes the source
        return []

    (tmp_path / "plimsoll/one.py").write_text("x = 3 * 1\n", encoding="utf-8")
    monkeypatch.setattr(hatch_build, "try_to_compile", fail)
    assert not hatch_build.compile_in_place(tmp_path)
    assert not (tmp_path / hatch_build.RECORD).exists()
    assert not (tmp_path / f"plimsoll/one{SUFFIX}").exists()


def test_where_nothing_may_be_written_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(source: Path) -> None:
        raise OSError(30, "Read-only file system", str(source))

    (tmp_path / "plimsoll").mkdir()
    monkeypatch.setattr(hatch_build, "remove_extensions", refuse)
    assert not hatch_build.compile_in_place(tmp_path)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(plimsoll._ENGINE != "engine compiled", reason="no C compiler, or PLIMSOLL_COMPILED=off")
def test_every_engine_and_router_gives_the_same_bits_compiled_and_interpreted() -> None:
    compiled = run_python("-m", "tests.both_ways").stdout.splitlines()
    interpreted = run_python("-m", "tests.both_ways", PLIMSOLL_COMPILED="off").stdout.splitlines()
    assert len(compiled) > 60
    assert compiled == interpreted
