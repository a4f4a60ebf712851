"""Measurements that are of something else, in other units, or of no server: refused before factors are fitted."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plimsoll.api.calibrating import CalibrationResult, calibrate
from plimsoll.api.measured_checks import check_origin, usable_error
from plimsoll.api.simulation import simulate
from plimsoll.calibration import read_measured
from plimsoll.calibration.measured import Origin
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.cli import main
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.report.calibration import verdict_line

GIVEN = {"model": "Llama-3.1-8B", "gpu": "H100-SXM"}
FLAGS = ["--model", "Llama-3.1-8B", "--gpu", "H100-SXM"]
COLUMNS = ("prompt_tokens", "output_tokens", "arrival_s", "first_token_s", "last_token_s")
Row = dict[str, float]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Sixty requests as the roofline serves them: as good a server as any."""
    run = simulate(**GIVEN, prompt_tokens=300, output_tokens=40, num_requests=60, rate_per_s=4.0).run
    columns = (run.prompt_tokens, run.output_tokens, run.arrival_s, run.first_token_s, run.finish_s)
    return [dict(zip(COLUMNS, map(float, row), strict=True)) for row in zip(*columns, strict=True)]


def written(folder: Path, rows: list[Row], meta: object = None) -> str:
    path = folder / "measured.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return str(path)


def times(rows: list[Row], change: Callable[[float], float], names: tuple[str, ...] = COLUMNS[2:]) -> list[Row]:
    return [{**row, **{name: change(row[name]) for name in names}} for row in rows]


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"deployment": {"gpu": "RTX-4090"}}, ["meta.json gpu", "'RTX-4090'", "--gpu H100-SXM", "give --gpu RTX-4090"]),
        ({"hardware": {"device_name": "NVIDIA GeForce RTX 4090"}}, ["GeForce RTX 4090", "give --gpu RTX-4090"]),
        (
            {"model": "meta-llama/Llama-3.2-1B"},
            ["meta.json model", "--model meta-llama/Llama-3.1-8B", "give --model meta-llama/Llama-3.2-1B"],
        ),
    ],
)
def test_runs_of_another_model_or_gpu_are_refused_in_one_line(
    rows: list[Row], meta: object, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", written(tmp_path, rows, meta), *FLAGS]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("meta", "num_notes"),
    [
        ({"model": "meta-llama/Llama-3.1-8B", "deployment": {"gpu": "H100-SXM"}}, 0),
        ({"model": "llama-3.1-8b", "hardware": {"device_name": "NVIDIA H100 80GB HBM3"}}, 0),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct"}, 0),  # the same shape
        ({"model": "our/tuned-llama"}, 1),
        ({"deployment": {"gpu": "Card of the future"}}, 1),
        ({"deployment": None, "hardware": None, "kv_cache": None}, 0),
    ],
)
def test_the_same_thing_under_another_name_is_taken(
    rows: list[Row], meta: object, num_notes: int, tmp_path: Path
) -> None:
    (run,) = read_measured(Path(written(tmp_path, rows, meta)))
    notes = check_origin([run], load_model(GIVEN["model"]), load_accelerator(GIVEN["gpu"]))
    assert len(notes) == num_notes
    assert all("it is taken for" in note and "meta.json" in note for note in notes)


def test_a_meta_of_another_shape_names_what_to_write(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"meta\.json.*deployment\.gpu"):
        read_measured(Path(written(tmp_path, rows, {"deployment": "RTX-4090"})))


def test_a_file_of_the_users_own_gpu_is_never_another_gpu(rows: list[Row], tmp_path: Path) -> None:
    (run,) = read_measured(Path(written(tmp_path, rows, {"deployment": {"gpu": "RTX-4090"}})))
    own = dataclasses.replace(load_accelerator("RTX-4090"), id="my-4090")
    (note,) = check_origin([run], load_model(GIVEN["model"]), own)
    assert "'RTX-4090'; it is taken for --gpu my-4090" in note


def test_a_servers_alias_is_noted_not_refused(rows: list[Row], tmp_path: Path) -> None:
    (run,) = read_measured(Path(written(tmp_path, rows)))
    model, gpu = load_model(GIVEN["model"]), load_accelerator(GIVEN["gpu"])
    for alias in ("tiny", "gpt-3.5-turbo", "meta-llama/Llama-3.2-1B"):  # a server may call itself anything
        named = dataclasses.replace(run, origin=Origin(file="r.json", model=alias, is_alias=True))
        (note,) = check_origin([named], model, gpu)
        assert note.startswith(f"r.json: the model is called '{alias}'")
    plain = dataclasses.replace(run, origin=Origin(file="r.json", model="Llama-3.1-8B", is_alias=True))
    assert check_origin([plain], model, gpu) == []


def test_a_vllm_files_model_id_comes_through(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).resolve().parent.parent / "data" / "calibration" / "vllm_bench" / "closed.json"
    main(["calibrate", str(file), *FLAGS, "--json"])
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert sum("the model is called 'tiny'" in note and "closed.json" in note for note in notes) == 1


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1e-3, ["needs", "to read the weights", "are these seconds"]), (1e3, ["times the modelled", "milliseconds"])],
)
def test_other_units_are_refused(
    rows: list[Row], factor: float, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", written(tmp_path, times(rows, lambda s: factor * s)), *FLAGS]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in ("measured.csv", *words))


def test_first_tokens_that_come_at_once_are_refused(rows: list[Row], tmp_path: Path) -> None:
    early = [{**row, "first_token_s": row["arrival_s"] + 1e-4 * (1 + k)} for k, row in enumerate(rows)]
    with pytest.raises(InputError, match=r"median TTFT of 3\.05 ms"):
        calibrate(results=written(tmp_path, early), **GIVEN)


def test_single_token_answers_in_milliseconds_are_refused(rows: list[Row], tmp_path: Path) -> None:
    single = [{**row, "output_tokens": 1, "last_token_s": row["first_token_s"]} for row in rows]
    slow = [
        {**row, "first_token_s": 1e3 * row["first_token_s"], "last_token_s": 1e3 * row["first_token_s"]}
        for row in times(single, lambda s: s, ())
    ]
    with pytest.raises(InputError, match=r"median TTFT.*milliseconds"):
        calibrate(results=written(tmp_path, slow), **GIVEN)


def test_a_server_several_times_slower_is_a_server(rows: list[Row], tmp_path: Path) -> None:
    assert calibrate(results=written(tmp_path, times(rows, lambda s: 3 * s)), **GIVEN).usable


def test_long_queues_are_no_unit(rows: list[Row], tmp_path: Path) -> None:
    """A server that was overloaded where the model is not: first tokens a thousand times later, gaps as they are."""
    late = times(rows, lambda s: s + 30.0, ("first_token_s", "last_token_s"))
    assert calibrate(results=written(tmp_path, late), **GIVEN).runs[0].ttft_s.mean() > 30


@pytest.mark.parametrize("num_different", [1, 5])
def test_copies_of_a_few_rows_are_refused(rows: list[Row], num_different: int, tmp_path: Path) -> None:
    copies = [rows[k % num_different] for k in range(len(rows))]
    with pytest.raises(InputError, match=f"'{num_different} different times in 60 requests'.*copies"):
        calibrate(results=written(tmp_path, copies), **GIVEN)


def test_a_fit_that_stays_far_off_is_not_to_be_used(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty times slower is outside what factors may be: the error shrinks, and is still no use."""
    file = written(tmp_path, times(rows, lambda s: 30 * s))
    assert main(["calibrate", file, *FLAGS, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["improved"] is True
    assert document["usable"] is False
    assert document["error_before"] > document["error_after"] > document["usable_error"]
    assert main(["calibrate", file, *FLAGS]) == 1
    assert capsys.readouterr().out.startswith("Do not use it: still too far off: ")


def test_factors_of_no_use_are_not_kept(rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = written(tmp_path, times(rows, lambda s: 30 * s)), tmp_path / "kept"
    assert main(["calibrate", file, *FLAGS, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == ["result.json", "scenario.yaml"]
    said = printed.err.strip().splitlines()
    assert len(said) == 1
    assert "calibration.json is not written: " in said[0]
    assert "is too far (usable: up to 25%)" in said[0]
    assert json.loads((out / "result.json").read_text())["refusal"] in said[0]
    (out / "calibration.json").write_text("of another day")
    assert main(["calibrate", file, *FLAGS, "--out", str(out), "--json"]) == 1
    assert "an earlier run's" in capsys.readouterr().err
    assert (out / "calibration.json").read_text() == "of another day"


def test_why_factors_are_of_no_use(rows: list[Row], tmp_path: Path) -> None:
    answer: CalibrationResult = calibrate(results=written(tmp_path, times(rows, lambda s: 3 * s)), **GIVEN)
    assert answer.refusal is None
    run = next(iter(answer.fit.before))

    def with_error(after: float, values: dict[str, float]) -> CalibrationResult:
        fit = dataclasses.replace(answer.fit, values=values, before={run: {"e2e": 0.1}}, after={run: {"e2e": after}})
        return dataclasses.replace(answer, fit=fit)

    assert with_error(0.1, {}).refusal == "the data carries no factor"
    worse = with_error(0.2, {"compute": 2.0}).refusal
    assert worse == "its factors do not help what was held back (10.0% before, 20.0% after)"
    assert with_error(0.05, {"compute": 2.0}).refusal is None


def test_what_is_usable_follows_the_step_models_band(rows: list[Row], tmp_path: Path) -> None:
    answer: CalibrationResult = calibrate(results=written(tmp_path, rows), **GIVEN)
    facts = answer.resolved.step_model_facts
    assert usable_error(answer.resolved) == 0.25  # the H100's band ends at -22 % and +18 %
    for changes, bound in (({"gpu": "L40S"}, 0.5), ({"step_model": "nobody's"}, 0.5)):
        other = dataclasses.replace(answer.resolved, step_model_facts={**facts, **changes})
        assert usable_error(other) == bound


def test_the_verdict_in_words() -> None:
    document = {"factors": {"compute": 1.0}, "held_back": "x", "error_before": 0.9, "error_after": 0.4,
                "usable_error": 0.25, "improved": True, "usable": False}  # fmt: skip
    assert verdict_line(document).startswith("Do not use it: still too far off")
    assert verdict_line(document).endswith("90.0% before, 40.0% after (usable: up to 25%)")
    assert verdict_line({**document, "error_after": 0.1, "usable": True}).startswith("Calibrated: ")
    assert "do not carry over" in verdict_line({**document, "error_after": 0.95, "improved": False})


@pytest.mark.parametrize("name", ["per-step", "per_step", "per_step_s", "per-step-s", " per-step "])
def test_factors_are_asked_for_as_help_and_documents_write_them(rows: list[Row], name: str, tmp_path: Path) -> None:
    answer = calibrate(results=written(tmp_path, times(rows, lambda s: 1.3 * s)), **GIVEN, fit=name)
    assert set(answer.fit.values) == {"per_step_s"}


def test_unknown_factors_are_answered_in_the_spelling_of_the_help(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        calibrate(results=written(tmp_path, rows), **GIVEN, fit="host")
    assert "known: bandwidth, compute, per-request, per-step" in str(caught.value)
    assert "per_step" not in str(caught.value)


def test_no_simulation_is_done_twice(rows: list[Row], tmp_path: Path) -> None:
    counts: list[int] = []
    answer = calibrate(results=written(tmp_path, rows), **GIVEN, fit="bandwidth", on_simulation=counts.append)
    assert counts == list(range(1, len(counts) + 1))
    assert np.isfinite(answer.fit.error_after)
