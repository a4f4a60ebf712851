"""Plimsoll's own profile as a step model: a machine that is a formula is found again; everything it is refused for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.cli import main
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InfeasibleError, InputError, OutOfRangeError, UnknownNameError
from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from plimsoll.perf.build import build_step_model
from plimsoll.perf.overheads import Overheads
from plimsoll.perf.profiles.own_format import AGAIN, ATTENTION, TOKENS, is_own, read_own, read_rows
from plimsoll.perf.request import StepModelRequest
from plimsoll.profiler.shapes import Shape, chunks, decodes
from tests.own_profiles import make_profile, step_us

US = 1e-6
HOST_US = (500.0, 20.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_profile(tmp_path_factory.mktemp("own"))


@pytest.fixture
def copy(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "profile"))


def build(folder: Path | str, config: Path, **changes: Any) -> Any:
    own = Path(str(folder).partition(",")[0])
    given = {"model": load_model(str(config)), "gpu": load_accelerator(str(own / "device.toml")), **changes}
    return build_step_model(f"profile:{folder}", StepModelRequest(**given))


def seconds(model: Any, shape: Shape) -> float:
    return float(model.step(shape.step_shape()).time_s)


def expected_s(model: Any, shape: Shape) -> float:
    sizes = dict(model._profile.section("model"))
    return (step_us(sizes, shape) + HOST_US[0] + HOST_US[1] * shape.num_sequences) * US


@pytest.mark.parametrize(
    "shape",
    [
        decodes(1, 16),
        decodes(5, 700),
        decodes(32, 1151),
        chunks(1, 512),
        chunks(1, 100, 300),
        chunks(1, 512, 639),
        chunks(4, 128),
        chunks(7, 33),
        Shape(num_prefill=1, chunk_tokens=200, num_decode=20, decode_length_tokens=400),
        Shape(num_prefill=3, chunk_tokens=50, num_decode=29, decode_length_tokens=900),
    ],
    ids=str,
)
def test_a_step_is_what_the_machine_takes(made: tuple[Path, Path], shape: Shape) -> None:
    model = build(*made)
    # Attention decodes carry a fixed time that the share beside chunks cannot tell from the rest: a percent.
    assert seconds(model, shape) == pytest.approx(expected_s(model, shape), rel=0.01)


def test_measured_points_come_back_exactly(made: tuple[Path, Path]) -> None:
    model = build(*made)
    for shape in (decodes(32, 1151), decodes(1, 1151), chunks(1, 512), chunks(1, 1)):
        assert seconds(model, shape) == pytest.approx(expected_s(model, shape), rel=1e-5)


def test_a_line_is_bit_equal_to_its_steps_and_ends_where_it_bends(made: tuple[Path, Path]) -> None:
    model = build(*made)
    for number in (1, 3, 7, 32):
        read = number * 20
        while read < number * 1100:
            base_s, slope_s, below = model.decode_line(number, read)
            assert below > read
            for tokens in (read, min(below - 1, number * 1151)):
                fresh = build(*made)
                assert base_s + slope_s * tokens == fresh.step_s(0, 0, 0, 0, 0, number, tokens)
            read = below
    assert model.decode_line(0, 0)[0] == HOST_US[0] * US


def test_longer_work_never_takes_less(made: tuple[Path, Path]) -> None:
    model = build(*made)
    times = [seconds(model, decodes(9, length)) for length in range(16, 1151, 7)]
    assert times == sorted(times)
    times = [seconds(model, chunks(1, size)) for size in range(1, 513, 3)]
    assert times == sorted(times)


def test_without_host_times_the_engines_are_used(tmp_path: Path) -> None:
    folder, config = make_profile(tmp_path, host=None)
    overheads = Overheads(per_step_s=0.25, source="given")
    model = build(folder, config, overheads=overheads)
    assert seconds(model, decodes(1, 16)) > 0.25
    assert model.describe()["overheads"] == "given"
    assert build(folder, config).step(decodes(1, 16).step_shape()).source == Source.INTERPOLATED


def test_describes_itself(made: tuple[Path, Path]) -> None:
    facts = build(*made).describe()
    assert facts["step_model"] == "profile"
    assert "Test CPU" in facts["profile"]
    assert facts["overheads"] == "a formula"
    assert facts["interpolation_error_frac"] < 0.01


def test_outside_the_grid_is_refused_or_extrapolated_on_request(made: tuple[Path, Path]) -> None:
    folder, config = made
    strict, loose = build(folder, config), build(f"{folder},allow_extrapolation=true", config)
    beyond = [
        (decodes(33, 100), "33 decodes in a step.*set --max-num-seqs 32"),
        (decodes(2, 1152), "1152 tokens in a decoding sequence.*set --max-model-len 1151"),
        (chunks(1, 513), "513 tokens in a step.*set --max-num-batched-tokens 512"),
        (chunks(2, 300), "600 tokens in a step"),
        (chunks(1, 16, 1500), "1500 tokens of context"),
    ]
    for shape, said in beyond:
        assert not strict.covers(shape.step_shape())
        with pytest.raises(OutOfRangeError, match=said) as caught:
            seconds(strict, shape)
        assert "set --max-" in str(caught.value)
        assert seconds(loose, shape) > 0
        assert loose.step(shape.step_shape()).source == Source.ASSUMED
    assert strict.covers(decodes(32, 1151).step_shape())
    assert seconds(loose, decodes(64, 1151)) > seconds(loose, decodes(32, 1151))
    assert seconds(loose, chunks(1, 1024)) > seconds(loose, chunks(1, 512))


@pytest.mark.parametrize("text", ["allow_extrapolation=yes", "allow_extrapolation", "allow_extrapolation="])
def test_written_options_are_true_or_false(made: tuple[Path, Path], text: str) -> None:
    with pytest.raises(InputError, match="allow_extrapolation=true"):
        build(f"{made[0]},{text}", made[1])


def test_unknown_options_are_named(made: tuple[Path, Path]) -> None:
    with pytest.raises(UnknownNameError, match="allow_extrapolation"):
        build(f"{made[0]},extrapolate=true", made[1])


def test_power_becomes_joules(copy: Path, made: tuple[Path, Path]) -> None:
    (copy / "power.csv").write_text("load,power_w,spread_frac,num_samples\nidle,20,0,1\nbusy,80,0,5\n")
    cost = build(copy, made[1]).step(decodes(4, 64).step_shape())
    assert cost.energy_j == pytest.approx(80 * cost.time_s)
    assert build(*made).step(decodes(4, 64).step_shape()).energy_j is None


def test_devices_that_share_a_layer_exchange_sums(copy: Path, made: tuple[Path, Path]) -> None:
    edit(copy / "profile.toml", lambda text: text.replace("tp = 1", "tp = 2"))
    two = {"parallelism": Parallelism(tp=2)}
    with pytest.raises(InputError, match="no all_reduce"):
        build(copy, made[1], **two)
    (copy / "collectives.csv").write_text(
        "operation,ranks,message_bytes,time_us,spread_frac,num_samples\n"
        "all_gather,2,1024,900,0,9\nall_reduce,4,1024,900,0,9\nall_reduce,2,1024,10,0,9\nall_reduce,2,1048576,40,0,9\n"
    )
    added = seconds(build(copy, made[1], **two), chunks(1, 512)) - seconds(build(*made), chunks(1, 512))
    at = 10 + 30 * (512 * 512 * 2 - 1024) / (1048576 - 1024)
    assert added == pytest.approx(17 * at * US, rel=1e-6)


# Refusals --------------------------------------------------------------------------------------------------------


def edit(file: Path, change: Callable[[str], str]) -> None:
    text = file.read_text()
    changed = change(text)
    assert changed != text
    file.write_text(changed)


def drop(file: Path, keep: Callable[[str], bool]) -> None:
    lines = file.read_text().splitlines()
    kept = [line for line in lines if keep(line)]
    assert len(kept) < len(lines)
    file.write_text("\n".join(kept) + "\n")


def scaled(text: str, factor: float, at: int = 5) -> str:
    head, *lines = text.splitlines()
    rows = [line.split(",") for line in lines]
    return (
        "\n".join([head, *(",".join([*row[:at], str(float(row[at]) * factor), *row[at + 1 :]]) for row in rows)]) + "\n"
    )


@pytest.mark.parametrize(("factor", "said"), [(1e-3, "faster than"), (1e3, "times slower"), (1e6, "times slower")])
def test_swapped_units_are_caught_by_the_hardwares_limit(
    copy: Path, made: tuple[Path, Path], factor: float, said: str
) -> None:
    edit(copy / "tokens.csv", lambda text: scaled(text, factor))
    with pytest.raises(InputError, match=said) as caught:
        build(copy, made[1])
    assert "time_us is in microseconds" in str(caught.value)


@pytest.mark.parametrize("file", ["tokens.csv", "sequences.csv", "attention.csv"])
@pytest.mark.parametrize("factor", [1e-3, 1e6])
def test_swapped_units_are_caught_in_every_table(
    copy: Path, made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], file: str, factor: float
) -> None:
    at = (copy / file).read_text().splitlines()[0].split(",").index("time_us")
    edit(copy / file, lambda text: scaled(text, factor, at))
    with pytest.raises(InputError, match=f"{file}.*(faster|slower) than"):
        build(copy, made[1])
    assert main(simulated(copy, made[1])) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_holes_are_named(copy: Path, made: tuple[Path, Path]) -> None:
    drop(copy / "tokens.csv", lambda line: not (line.startswith("norm,") and ",512," in line))
    with pytest.raises(InputError, match="norm was not measured at 512 tokens") as caught:
        build(copy, made[1])
    assert AGAIN in str(caught.value)


def test_holes_in_attention_are_named(copy: Path, made: tuple[Path, Path]) -> None:
    drop(copy / "attention.csv", lambda line: not line.startswith("8,0,0,0,32,16,"))
    with pytest.raises(InputError, match="number of decodes 32 was not measured at length 16"):
        build(copy, made[1])


@pytest.mark.parametrize(
    ("file", "operator"),
    [("tokens.csv", name) for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")]
    + [("sequences.csv", "head")],
)
def test_a_matrix_product_that_is_missing_is_named(
    copy: Path, made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], file: str, operator: str
) -> None:
    drop(copy / file, lambda line: not line.startswith(f"{operator},"))
    with pytest.raises(InputError, match=f"{file}.*{operator} is missing") as caught:
        build(copy, made[1])
    assert AGAIN in str(caught.value)
    assert main(simulated(copy, made[1])) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{operator} is missing" in said


def test_products_may_have_any_name_as_long_as_their_work_is_there(copy: Path, made: tuple[Path, Path]) -> None:
    edit(copy / "tokens.csv", lambda text: text.replace("qkv_proj,", "attn_in,").replace("o_proj,", "attn_out,"))
    assert seconds(build(copy, made[1]), decodes(4, 64)) == seconds(build(*made), decodes(4, 64))
    drop(copy / "tokens.csv", lambda line: not line.startswith("attn_in,"))
    with pytest.raises(InputError, match="qkv_proj is missing"):
        build(copy, made[1])


@pytest.mark.parametrize(
    ("backend", "file", "part"), [("torch", "tokens.csv", "embedding"), ("vllm", "sequences.csv", "sampler"),
                                  ("vllm", "tokens.csv", "other"), ("torch", "sequences.csv", "sampler")]
)  # fmt: skip
def test_our_own_backends_write_more_than_products(
    copy: Path, made: tuple[Path, Path], backend: str, file: str, part: str
) -> None:
    edit(copy / "profile.toml", lambda text: text.replace('backend = "test"', f'backend = "{backend}"'))
    text = (copy / file).read_text()
    (copy / file).write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith(part)))
    with pytest.raises(InputError, match=f"{file}.*{part} is missing"):
        build(copy, made[1])


def simulated(folder: Path, config: Path) -> list[str]:
    return [
        "simulate", "--model", str(config), "--gpu", str(folder / "device.toml"), "--step-model", f"profile:{folder}",
        "--kv-blocks", "2000", "--max-model-len", "1100", "--prompt-tokens", "100", "--output-tokens", "20",
        "--num-requests", "10", "--rate", "1", "--max-num-seqs", "32", "--max-num-batched-tokens", "512",
    ]  # fmt: skip


def test_long_chunks_may_end_earlier(made: tuple[Path, Path]) -> None:
    rows = [row for row in read_own(made[0]).tables[ATTENTION] if row["num_prefill"] == 1 and not row["num_decode"]]
    furthest = {row["chunk_tokens"]: 0 for row in rows}
    for row in rows:
        furthest[row["chunk_tokens"]] = max(furthest[row["chunk_tokens"]], row["context_tokens"])
    assert furthest[512] < furthest[1]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("profile.toml", lambda t: t.replace("plimsoll-profile-1", "plimsoll-profile-9"), "format"),
        ("profile.toml", lambda t: t + "[", "TOML"),
        ("profile.toml", lambda t: t.replace("hidden_size = 512", "hidden_size = 513"), "hidden_size 513"),
        ("profile.toml", lambda t: t.replace('dtype = "bf16"', 'dtype = "fp16"'), "was measured in fp16"),
        ("profile.toml", lambda t: t.replace("per_step_us = 500.0", "per_step_us = -1.0"), "per_step_us"),
        ("tokens.csv", lambda t: t.replace("time_us", "time_ms"), "write the columns"),
        ("tokens.csv", lambda t: t + t.splitlines()[1] + "\n", "measured in a line above"),
        ("tokens.csv", lambda t: t + "norm,1,0,0,9,nan,0,1\n", "time_us"),
        ("tokens.csv", lambda t: t + "norm,1,0,0,9,0,0,1\n", "above 0"),
        ("tokens.csv", lambda t: t + "norm,1,0,0,9,-3,0,1\n", "above 0"),
        ("tokens.csv", lambda t: t + "norm,1,0,0,nine,3,0,1\n", "whole number"),
        ("tokens.csv", lambda t: t + "norm,1,0,0,9,3,0\n", "8 fields"),
        ("tokens.csv", lambda t: t + ",1,0,0,9,3,0,1\n", "write a name"),
        ("tokens.csv", lambda t: t.splitlines()[0] + "\n", "no measurements"),
        ("tokens.csv", lambda _: "", "write the columns"),
    ],
)
def test_broken_files_are_one_line(
    copy: Path, made: tuple[Path, Path], file: str, change: Callable[[str], str], said: str
) -> None:
    edit(copy / file, change)
    with pytest.raises((InputError, InfeasibleError), match=said) as caught:
        build(copy, made[1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["tokens.csv", "sequences.csv", "attention.csv"])
def test_missing_tables_are_named(copy: Path, made: tuple[Path, Path], file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(InputError, match=file):
        build(copy, made[1])


def test_tables_that_are_not_text_are_refused(copy: Path, made: tuple[Path, Path]) -> None:
    (copy / "tokens.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        build(copy, made[1])


def test_other_deployments_are_refused(made: tuple[Path, Path]) -> None:
    folder, config = made
    with pytest.raises(InputError, match=r"--gpu: 'L4'.*device\.toml"):
        build(folder, config, gpu=load_accelerator("L4"))
    with pytest.raises(InputError, match="--model"):
        build(folder, config, model=load_model("meta-llama/Llama-3.1-8B"))
    with pytest.raises(InputError, match="with hidden_size 512"):
        build(folder, config, model=load_model("mistralai/Mixtral-8x7B-v0.1"))
    with pytest.raises(InputError, match="--tp"):
        build(folder, config, parallelism=Parallelism(tp=2))
    with pytest.raises(InfeasibleError, match="stages"):
        build(folder, config, parallelism=Parallelism(pp=2))
    for changed, flag in (({"precision": "fp8"}, "--precision"), ({"precision": "fp16"}, "--precision bf16"),
                          ({"kv_precision": "fp8"}, "--kv-precision bf16")):  # fmt: skip
        with pytest.raises(InfeasibleError, match=flag) as caught:
            build(folder, config, **changed)
        assert caught.value.constraint == "precision"
    assert build(folder, config, kv_precision="fp16")


def test_other_folders_are_bundles_still(tmp_path: Path) -> None:
    assert not is_own(tmp_path)
    assert not is_own(tmp_path / "nowhere")


def test_an_unfinished_line_is_dropped_only_by_who_goes_on(copy: Path) -> None:
    file = copy / "tokens.csv"
    whole = len(read_rows(file, TOKENS))
    file.write_text(file.read_text() + "norm,17,0,0,99,1")
    assert len(read_rows(file, TOKENS, unfinished=True)) == whole
    with pytest.raises(InputError, match="8 fields"):
        read_rows(file, TOKENS)


def test_steps_without_anything_cost_host_time(made: tuple[Path, Path]) -> None:
    assert build(*made).step(StepShape()).time_s == HOST_US[0] * US
