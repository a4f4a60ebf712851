"""A bundle from which something is missing, or that is not in its units, at its precision or long enough: one line."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plimsoll.cli import main
from plimsoll.core.errors import InfeasibleError, InputError, OutOfRangeError
from plimsoll.perf.profiles.bundle import read_bundle
from plimsoll.perf.profiles.curves import Curve
from plimsoll.perf.profiles.declared import NOTHING_DECLARED, declared_of
from plimsoll.perf.profiles.grids import Slices
from plimsoll.perf.profiles.model import Profiled
from plimsoll.perf.profiles.outside import CountedSteps, extrapolated
from tests.unit.test_perf_profile import CARD, LLAMA, build, write_bundle
from tests.unit.test_perf_profile_ranks import write_moe_bundle

CHUNKS, DECODES, LENGTHS = (16, 32, 64), (1, 2, 4, 8), (16, 32, 64, 100)
META = """model: meta-llama/Llama-3.1-8B
gpu: NVIDIA GeForce RTX 4090
variant: bf16
engine_effective: {max_num_seqs: 8}
attention_grid: {chunks: "0, 16-64 x2", n_decode: "0, 1-8 x2", kv: "0, 16-100 x2.0"}
"""
Line = list[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose meta.yaml declares its grid, and that holds it, with 48 tokens measured later in places."""
    made = write_bundle(tmp_path / "bf16", meta=META)
    rows = [(0, 0, n, kv, 8 + 0.006 * n * kv) for n in DECODES for kv in LENGTHS]
    for chunk, context in itertools.product((*CHUNKS, 48), (0, *LENGTHS)):
        alone = 8 + 0.01 * chunk + chunk * context / 40_000
        rows.append((chunk, context, 0, 0, alone))
        rows += [(chunk, context, n, kv, alone + 0.007 * n * kv) for n in DECODES[:-1] for kv in LENGTHS]
    lines = ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *(",".join(map(str, row)) for row in rows)]
    (made / "tp1" / "attention.csv").write_text("\n".join(lines) + "\n")
    return made


def drop(folder: Path, name: str, gone: Callable[[Line], bool]) -> None:
    """Delete lines of a table."""
    file = folder / "tp1" / name
    with file.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    kept = [row for row in rows if not gone(row)]
    assert len(kept) < len(rows)
    file.write_text("\n".join(",".join(row) for row in [header, *kept]) + "\n")


def scale(folder: Path, name: str, factor: float) -> None:
    """Write a table in another unit."""
    file = folder / "tp1" / name
    header, *lines = file.read_text().splitlines()
    rows = [line.rpartition(",") for line in lines]
    file.write_text("\n".join([header, *(f"{keys},{float(value) * factor!r}" for keys, _, value in rows)]) + "\n")


def arguments(folder: Path, *more: str, option: str = "") -> list[str]:
    return [
        "simulate", "--model", "Llama-3.1-8B", "--gpu", "RTX-4090", "--step-model", f"profile:{folder}{option}",
        "--prompt-tokens", "40", "--output-tokens", "10", "--rate", "1", "--num-requests", "5", *more,
    ]  # fmt: skip


LIMITS = ("--max-num-batched-tokens", "64", "--max-num-seqs", "4", "--max-model-len", "100")


def refused(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    """The one line with which a command line is refused."""
    assert main(given) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


# Holes -----------------------------------------------------------------------------------------------------------


def test_a_whole_profile_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, *LIMITS, "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["finished"] == 5
    assert document["sources"]["error_band"]["high_frac"] < 0.1


@pytest.mark.parametrize(
    "name", ["qkv_proj", "o_proj", "gate_up_proj", "act_fn", "down_proj", "rotary_emb", "layernorm", "embedding"]
)
def test_an_operator_that_is_missing_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    drop(folder, "dense.csv", lambda row: row[0] == name)
    said = refused(capsys, arguments(folder, *LIMITS))
    assert "dense.csv" in said
    assert f"no {name}" in said
    assert "measure it again" in said


@pytest.mark.parametrize("name", ["lm_head", "sampler"])
def test_a_sequence_operator_that_is_missing_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    drop(folder, "per_sequence.csv", lambda row: row[0] == name)
    said = refused(capsys, arguments(folder, *LIMITS))
    assert "per_sequence.csv" in said
    assert f"no {name}" in said


@pytest.mark.parametrize(
    ("table", "gone", "said"),
    [
        ("dense.csv", lambda r: r[0] == "qkv_proj" and int(r[1]) <= 64, "qkv_proj not measured at 1 tokens"),
        ("dense.csv", lambda r: r[0] == "o_proj" and r[1] == "2048", "o_proj not measured at 2048 tokens"),
        ("per_sequence.csv", lambda r: r[0] == "sampler" and r[1] == "64", "sampler not measured at 64 sequences"),
        ("per_sequence.csv", lambda r: int(r[1]) > 1, "lm_head not measured at 8 sequences"),
        (
            "attention.csv",
            lambda r: r[:3] == ["0", "0", "2"] and int(r[3]) >= 64,
            "2 decodes not measured at length 64",
        ),
        ("attention.csv", lambda r: r[:3] == ["0", "0", "4"], "4 decodes at length 16 not measured"),
        ("attention.csv", lambda r: r[:3] == ["32", "100", "0"], "a chunk of 32 not measured behind a context of 100"),
        ("attention.csv", lambda r: r[:3] == ["32", "0", "0"], "a chunk of 32 not measured behind a context of 0"),
        ("attention.csv", lambda r: r[:3] == ["32", "64", "0"], "a chunk of 32 behind a context of 64 not measured"),
        ("attention.csv", lambda r: r[0] == "64" and r[2] == "0", "a chunk of 64 behind a context of 0 not measured"),
        ("attention.csv", lambda r: r[0] != "0" and r[2] == "4", "beside 4 decodes at length 16 not measured"),
        ("attention.csv", lambda r: r[:3] == ["48", "64", "2"] and r[3] == "100", "chunk of 48 behind a context of 64"),
    ],
)
def test_a_hole_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], table: str, gone: Callable[[Line], bool], said: str
) -> None:
    drop(folder, table, gone)
    answer = refused(capsys, arguments(folder, *LIMITS))
    assert table in answer
    assert said in answer
    assert "hole" in answer


def test_a_grid_that_is_denser_in_places_is_whole(folder: Path) -> None:
    drop(folder, "attention.csv", lambda row: row[0] == "48" and row[1] == "32")
    assert build(folder).step_s(0, 0, 0, 0, 0, 1, 20) > 0


def test_without_a_declared_grid_lines_still_reach_from_end_to_end(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bf16")
    assert read_bundle(folder, 1).declared == NOTHING_DECLARED
    drop(folder, "attention.csv", lambda row: row[:3] == ["16", "0", "64"] and row[3] == "8192")
    with pytest.raises(InputError, match="beside 64 decodes at length 8192 not measured"):
        build(folder)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (lambda row: row[0] == "2048", "2048 tokens not measured"),
        (lambda row: row[:2] == ["64", "2"], "2 experts of 64 tokens"),
        (lambda row: row[:2] == ["64", "8"], "8 experts of 64 tokens"),
        (lambda row: row[:2] == ["2048", "4"], "4 experts of 2048 tokens"),
    ],
)
def test_holes_in_the_experts_are_named(tmp_path: Path, gone: Callable[[Line], bool], said: str) -> None:
    from tests.unit.test_perf_profile_ranks import build as build_moe

    folder = write_moe_bundle(tmp_path / "bf16")
    assert build_moe(folder)
    drop(folder, "moe.csv", gone)
    with pytest.raises(InputError, match=said):
        build_moe(folder)


def test_a_line_that_ends_early_is_refused_and_does_not_go_on_for_ever(folder: Path) -> None:
    """The step model itself, whoever built it: its lines would otherwise end where they begin."""
    bundle = read_bundle(folder, 1)
    ragged = dict(bundle.attention.decode.items)
    ragged[2] = Curve.of({16: 9e-6, 32: 9e-6})
    attention = dataclasses.replace(bundle.attention, decode=Slices.of(ragged))
    model = Profiled(dataclasses.replace(bundle, attention=attention), LLAMA, CARD, parallelism())
    base_s, slope_s, below = model.decode_line(2, 2 * 32)
    assert below == 2 * 32 + 1
    assert base_s + slope_s * 64 > 0
    with pytest.raises(OutOfRangeError, match="33 tokens in a decoding sequence, measured up to 32"):
        model.decode_line(2, 2 * 33)


def parallelism() -> Any:
    from plimsoll.core.deployment import Parallelism

    return Parallelism()


@pytest.mark.parametrize(
    "grid",
    ["{chunks: [16, 32], n_decode: '1-8 x2', kv: '16-64 x2'}", "{chunks: '16-64 x1.5', n_decode: '1', kv: '16'}", "7"],
)
def test_grids_declared_in_another_form_declare_nothing(grid: str) -> None:
    import yaml

    assert declared_of({"attention_grid": yaml.safe_load(grid)}) == NOTHING_DECLARED


def test_a_declared_grid_is_what_was_swept() -> None:
    import yaml

    declared = declared_of(yaml.safe_load(META))
    assert (declared.chunks, declared.decodes, declared.lengths) == (CHUNKS, DECODES, LENGTHS)
    shapes = list(declared.shapes())
    assert len(shapes) == len(set(shapes)) == 4 * 4 + 3 * 5 + 3 * 5 * 3 * 4, "eight decodes fill the engine alone"


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["dense.csv", "per_sequence.csv", "attention.csv"])
@pytest.mark.parametrize("content", [bytes(range(256)) * 8, b"\xff\xfe", b'"' + b"a" * 200_000, b""])
def test_random_bytes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], table: str, content: bytes
) -> None:
    (folder / "tp1" / table).write_bytes(content)
    assert table in refused(capsys, arguments(folder, *LIMITS))


def test_a_meta_of_random_bytes_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "meta.yaml").write_bytes(bytes(range(128, 256)))
    assert "meta.yaml" in refused(capsys, arguments(folder, *LIMITS))


def test_a_measurement_given_twice_is_refused(folder: Path) -> None:
    file = folder / "tp1" / "dense.csv"
    file.write_text(file.read_text() + "o_proj,64,3\n")
    with pytest.raises(InputError, match="line above"):
        build(folder)


# Units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["dense.csv", "per_sequence.csv", "attention.csv"])
@pytest.mark.parametrize("factor", [1e-3, 1e6])
def test_another_unit_is_caught_in_every_table(tmp_path: Path, table: str, factor: float) -> None:
    folder = write_bundle(tmp_path / "bf16")
    assert build(folder)
    scale(folder, table, factor)
    with pytest.raises(InputError, match=f"{table}.*(faster|slower) than") as caught:
        build(folder)
    assert "microseconds" in str(caught.value)


def test_a_head_in_milliseconds_is_refused_on_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale(folder, "per_sequence.csv", 1e-3)
    said = refused(capsys, arguments(folder, *LIMITS))
    assert "lm_head of 256 rows" in said
    assert "faster than RTX-4090 can be" in said


def test_an_operator_of_no_time_at_all_is_refused(folder: Path) -> None:
    file = folder / "tp1" / "dense.csv"
    file.write_text("".join(scaled_line(line, "act_fn") for line in file.read_text().splitlines(keepends=True)))
    with pytest.raises(InputError, match=r"act_fn: 0\.00"):
        build(folder)


def scaled_line(line: str, name: str) -> str:
    keys, _, value = line.rstrip("\n").rpartition(",")
    return f"{keys},{float(value) / 1e3}\n" if line.startswith(f"{name},") else line


def test_experts_in_another_unit_are_caught(tmp_path: Path) -> None:
    from tests.unit.test_perf_profile_ranks import build as build_moe

    folder = write_moe_bundle(tmp_path / "bf16")
    scale(folder, "moe.csv", 1e-3)
    with pytest.raises(InputError, match=r"8 experts of 2048 tokens.*faster than"):
        build_moe(folder)


# Precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "option", "said"),
    [
        (("--precision", "fp8"), "", ("--precision", "'fp8'", "--precision bf16")),
        (("--precision", "int4"), "", ("--precision", "'int4'", "--precision bf16")),
        (("--kv-precision", "fp8"), "", ("--kv-precision", "'fp8'", "--kv-precision bf16")),
        ((), "+awq", ("bf16", "no composition that quantises weights")),
        ((), "+smoothquant", ("bf16", "no composition that quantises weights")),
    ],
)
def test_another_precision_than_the_profiles_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], option: str, said: tuple[str, ...]
) -> None:
    answer = refused(capsys, arguments(folder, *LIMITS, *flags, option=option))
    assert all(part in answer for part in said), answer
    assert str(folder) in answer


def test_the_precision_is_that_of_the_meta_or_else_of_the_folder(tmp_path: Path) -> None:
    stated = META.replace("variant: bf16", "variant: fp8") + "\n"
    eight = write_bundle(tmp_path / "a" / "x", meta=stated.replace("attention_grid", "other"))
    with pytest.raises(InfeasibleError, match="measured in fp8"):
        build(eight)
    assert build(eight, precision="fp8")
    with pytest.raises(InfeasibleError, match="measured in int8") as caught:
        build(write_bundle(tmp_path / "b" / "int8"))
    assert caught.value.constraint == "precision", "a search over precisions goes on without it"
    assert build(write_bundle(tmp_path / "c" / "bf16"), precision="fp16", kv_precision="fp16")


def test_a_profile_with_an_8_bit_cache_is_of_that_cache(tmp_path: Path) -> None:
    meta = "model: meta-llama/Llama-3.1-8B\nengine_effective: {kv_cache_dtype: fp8_e4m3}\n"
    folder = write_bundle(tmp_path / "bf16", meta=meta)
    assert build(folder, kv_precision="fp8")
    with pytest.raises(InfeasibleError, match=r"--kv-precision: 'auto'.*--kv-precision fp8"):
        build(folder)


# Range -----------------------------------------------------------------------------------------------------------


def replaced(given: list[str], flag: str, value: str) -> list[str]:
    at = given.index(flag) + 1
    return [*given[:at], value, *given[at + 1 :]]


@pytest.mark.parametrize(
    ("flag", "wide", "fits", "changes"),
    [
        ("--max-num-batched-tokens", "256", "64", {"--prompt-tokens": "90"}),
        ("--max-num-seqs", "64", "8", {"--rate": "5000", "--num-requests": "40", "--prompt-tokens": "5"}),
        ("--max-model-len", "1000", "100", {"--output-tokens": "200"}),
    ],
)
def test_a_refusal_names_the_flag_and_the_value_that_fits(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str, wide: str, fits: str, changes: dict[str, str]
) -> None:
    given = arguments(folder, *LIMITS)
    for name, value in {**changes, flag: wide}.items():
        given = replaced(given, name, value)
    said = refused(capsys, given)
    assert f"set {flag} {fits}" in said
    assert "allow_extrapolation=true" in said
    assert main(replaced(given, flag, fits)) == 0


def test_drafted_tokens_count_and_the_refusal_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = replaced(arguments(folder, *LIMITS, option="+speculative,tokens=3"), "--rate", "5000")
    said = refused(capsys, given)
    assert "with +speculative" in said
    assert main(replaced(replaced(given, "--max-num-seqs", "2"), "--max-num-batched-tokens", "58")) == 0


def test_no_band_is_given_for_steps_that_are_extrapolated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = replaced(arguments(folder, *LIMITS, option=",allow_extrapolation=true"), "--prompt-tokens", "90")
    assert main([*replaced(long, "--max-num-batched-tokens", "256"), "--json"]) == 0
    outside = json.loads(capsys.readouterr().out)
    assert outside["sources"]["error_band"] is None
    assert outside["sources"]["step_model"]["outside_frac"] > 0
    assert any("lie outside" in note and "how far off is not known" in note for note in outside["notes"])
    assert main(replaced(long, "--max-num-batched-tokens", "256")) == 0
    printed = capsys.readouterr().out
    assert "extrapolated, how far off is not known" in printed
    assert "around it in four runs" not in printed
    inside = replaced(long, "--prompt-tokens", "40")
    assert main([*inside, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sources"]["step_model"]["outside_frac"] == 0
    assert document["sources"]["error_band"]["high_frac"] < 0.1, "all of it lies inside"


def test_under_a_composition_steps_are_not_counted_and_no_band_is_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(folder, *LIMITS, option=",allow_extrapolation=true+speculative"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sources"]["error_band"] is None
    assert any("not counted" in note for note in document["notes"])


def test_a_verb_that_does_not_count_gives_no_band_where_extrapolation_is_allowed(folder: Path) -> None:
    strict, loose = build(folder), build(folder, options={"allow_extrapolation": True})
    assert not extrapolated(strict.describe())
    assert extrapolated(loose.describe())
    assert not extrapolated({**loose.describe(), "outside_frac": 0.0})
    assert CountedSteps(loose).can_count


# The bundles at hand ---------------------------------------------------------------------------------------------


def test_measured_bundles_are_whole_and_a_copy_with_a_cut_line_is_refused(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = shared_data / "real-vllm" / "profiles" / "RTX4090" / "meta-llama" / "Llama-3.1-8B" / "bf16"
    assert main(arguments(measured)) == 0
    capsys.readouterr()
    copy = tmp_path / "bf16"
    shutil.copytree(measured, copy, copy_function=shutil.copyfile)
    drop(copy, "attention.csv", lambda row: row[:3] == ["0", "0", "2"] and int(row[3]) >= 1024)
    assert "2 decodes not measured at length 1024" in refused(capsys, arguments(copy))
