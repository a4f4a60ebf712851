"""The operators suite: which folder it reads, and that it never judges the package's tables in the folder's place."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from plimsoll.core.errors import InputError
from validation import operators

VIDUR = "a100_meta-llama_Llama-2-7b-hf_mlp.csv.gz"
LAYERS = "RTX3090_Llama-3.1-8B_tp1_layers.csv.gz"


def profiles(folder: Path, source: str = "vidur", file: str = VIDUR, content: bytes = b"") -> Path:
    (folder / source).mkdir(parents=True)
    (folder / source / file).write_bytes(gzip.compress(content))
    return folder


@pytest.mark.parametrize(("source", "file"), [("vidur", VIDUR), ("llmservingsim-v0", LAYERS)])
def test_one_source_is_enough(tmp_path: Path, source: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = profiles(tmp_path / "operator-profiles", source, file)
    assert operators._base_of(folder) == operators._base_of(tmp_path) == tmp_path
    (tmp_path / "link").symlink_to(folder)
    assert operators._base_of(tmp_path / "link") == tmp_path
    monkeypatch.chdir(folder)
    assert operators._base_of(Path()) == tmp_path  # as ``--data .``


@pytest.mark.parametrize("inside", [(), ("vidur",), ("vidur", "llmservingsim-v0"), ("splitwise-sim",)])
@pytest.mark.parametrize("around", [False, True])
def test_a_folder_without_profiles_is_refused(tmp_path: Path, inside: tuple[str, ...], around: bool) -> None:
    folder = tmp_path / "operator-profiles"
    folder.mkdir()
    for name in inside:
        (folder / name).mkdir()
    given = tmp_path if around else folder
    with pytest.raises(InputError, match=r"vidur/ or llmservingsim-v0/") as refused:
        operators.run([given])
    assert str(given) in str(refused.value)


def test_profiles_next_to_the_folder_are_not_taken_for_it(tmp_path: Path) -> None:
    profiles(tmp_path / "operator-profiles")
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="give the folder operator-profiles"):
        operators.run([tmp_path / "mine"])
    with pytest.raises(InputError, match="name this folder operator-profiles"):
        operators.run([profiles(tmp_path / "other")])


def test_one_folder_at_a_time(tmp_path: Path) -> None:
    folder = profiles(tmp_path / "operator-profiles")
    with pytest.raises(InputError, match="give one folder"):
        operators.run([folder, folder])


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00\x81" * 50 + b"\n\xff"])
@pytest.mark.parametrize(("source", "file"), [("vidur", VIDUR), ("llmservingsim-v0", LAYERS)])
def test_profiles_of_another_format_are_refused(tmp_path: Path, source: str, file: str, content: bytes) -> None:
    folder = profiles(tmp_path / "operator-profiles", source, file, content)
    with pytest.raises(InputError, match=f"{source}/ files of .* another format"):
        operators.run([folder])


@pytest.mark.parametrize(
    ("source", "file", "content"),
    [
        ("vidur", VIDUR, b"a,b\n"),
        ("vidur", VIDUR.replace("a100", "abacus"), b"a,b\n1,2\n"),
        ("llmservingsim-v0", LAYERS, b"layer_name,input,latency(ns)\nlayernorm,1,5\n"),
    ],
)
def test_profiles_without_a_known_gpus_products_are_refused(
    tmp_path: Path, source: str, file: str, content: bytes
) -> None:
    folder = profiles(tmp_path / "operator-profiles", source, file, content)
    with pytest.raises(InputError, match="measured matrix products of a known GPU"):
        operators.run([folder])


def test_one_card_alone_has_nothing_to_borrow_from(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = profiles(tmp_path / "operator-profiles")
    shutil.copy(shared_data / "operator-profiles" / "vidur" / VIDUR, folder / "vidur" / VIDUR)
    load = operators._load

    def without_tables(paths: list[Path]) -> object:
        fitting = load(paths)
        monkeypatch.setattr(fitting, "aic_file", lambda *_: None)
        return fitting

    monkeypatch.setattr(operators, "_load", without_tables)
    with pytest.raises(InputError, match="two GPUs of one maker"):
        operators.run([folder])
