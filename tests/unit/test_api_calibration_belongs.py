"""What a calibration belongs to, and where an answer says that it is carried over: plans, versions, damaged files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.calibrating import calibrate
from plimsoll.api.calibrations import gpu_figures, host_time_record, model_shape
from plimsoll.api.placement import place
from plimsoll.api.planning import plan
from plimsoll.api.simulation import simulate
from plimsoll.calibration import read_calibration, to_text
from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.cli import main
from plimsoll.core.errors import InputError
from plimsoll.perf.overheads import choose_host_time
from tests.own_profiles import CONFIG
from tests.unit.test_api_calibration import calibration_text

GIVEN = {"model": "Llama-3.1-8B", "gpu": "H100-SXM"}
LOAD = {"prompt_tokens": 300, "output_tokens": 40, "num_requests": 60, "rate_per_s": 1.0}
PLAN = {"model": "Llama-3.1-8B", "prompt_tokens": 300, "output_tokens": 40, "gpus": "H100-SXM:1", "tp": "1", "pp": "1",
        "token_budgets": "2048", "ttft_ms": 1000.0, "tpot_ms": 30.0, "top": 1}  # fmt: skip
CLOSED = Path(__file__).resolve().parent.parent / "data" / "calibration" / "vllm_bench" / "closed.json"
SERVER = ["--gpu", "RTX-4090", "--max-num-seqs", "32", "--max-num-batched-tokens", "512"]
AT_DEFAULT = {"engine": "vllm-v1", "tp": 1, "pp": 1, "dp": 1, "ep": 1, "precision": "bf16", "kv_precision": "bf16"}
CARRIED = "its factors are carried over"


def file_with(folder: Path, name: str = "c.json", **changes: object) -> str:
    file = folder / name
    file.write_text(calibration_text(**changes), encoding="utf-8")
    return str(file)


def asynchronous(version: str = "0.32.0") -> dict[str, Any]:
    """The host time that a fit of vLLM by its defaults records."""
    return host_time_record(choose_host_time("vllm-v1", {"async_scheduling": True}), version)


def notes_of(calibration: str, **fields: Any) -> tuple[str, ...]:
    return simulate(**{**GIVEN, **LOAD, **fields}, calibration=calibration).notes


def plan_notes(calibration: str, **fields: Any) -> tuple[str, ...]:
    return plan(**{**PLAN, **fields}, calibration=calibration).result.notes


# A replay has every request that was measured


@pytest.mark.parametrize("flags", [["--max-model-len", "80"], ["--kv-blocks", "6"], ["--max-model-len", "122"]])
def test_a_replay_without_some_requests_is_refused(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The longest request takes 123 tokens; one of fewer would be rejected, or cut short of its last tokens."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 4096}), encoding="utf-8")
    asked = ["calibrate", str(CLOSED), "--model", str(tmp_path / "config.json"), *SERVER]
    assert main([*asked, *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "of 24 requests" in line
    assert "--max-model-len and --kv-blocks" in line
    assert main([*asked, "--max-model-len", "123"]) in (0, 1)


# One file a GPU, and GPUs without one


def test_two_files_of_one_gpu_are_refused(tmp_path: Path) -> None:
    files = [
        file_with(tmp_path, name, factors={"compute": ratio}) for name, ratio in (("a.json", 2.0), ("b.json", 1.1))
    ]
    with pytest.raises(InputError, match=r"b\.json' cannot be used; it is of H100-SXM, as .*a\.json is"):
        plan(**PLAN, calibration=",".join(files))


def test_gpus_without_a_file_are_named(tmp_path: Path) -> None:
    file = file_with(tmp_path)
    notes = plan_notes(file, gpus="H100-SXM:1,L40S:1,L4:1")
    assert "GPUs without a calibration: L40S, L4" in notes
    assert not any("without a calibration" in note for note in plan_notes(file))
    assert not any("without a calibration" in note for note in plan(**PLAN).result.notes)


def test_a_placement_says_what_a_plan_says(tmp_path: Path) -> None:
    fields = {"model": "Llama-3.1-8B", "placement": "helr", "gpus": "H100-SXM:1,L40S:1", "prompt_tokens": 300,
              "output_tokens": 40, "ttft_ms": 5000.0, "top": 1}  # fmt: skip
    file = file_with(tmp_path, circumstances={**AT_DEFAULT, "precision": "fp8"}, host_time=asynchronous())
    notes = place(**fields, calibration=file).result.notes
    assert any(note.startswith("H100-SXM: calibrated (") for note in notes)
    assert "GPUs without a calibration: L40S" in notes
    assert any(note.startswith("H100-SXM: ") and "precision fp8 (here bf16)" in note for note in notes)
    with pytest.raises(InputError, match="fitted beside the host time vllm-v1, here it is none"):
        place(**fields, calibration=file, overheads="none")
    assert not any("calibrat" in note for note in place(**fields).result.notes)


# Plans carry over as simulations do


@pytest.mark.parametrize(
    ("circumstances", "said"),
    [
        ({"engine": "sglang"}, "engine sglang (here vllm-v1)"),
        ({"precision": "fp8"}, "precision fp8 (here bf16)"),
        ({"tp": 4, "pp": 2}, "tp 4 (here 1), pp 2 (here 1)"),
        ({}, None),
    ],
)
def test_a_plan_says_what_simulate_says(tmp_path: Path, circumstances: dict[str, Any], said: str | None) -> None:
    factors = {"compute": 1.5, "bandwidth": 1.2}
    file = file_with(tmp_path, circumstances={**AT_DEFAULT, **circumstances}, factors=factors)
    ours = [note for note in plan_notes(file) if CARRIED in note]
    theirs = [note for note in notes_of(file) if CARRIED in note]
    assert ours == [f"H100-SXM: {note}" for note in theirs]
    assert len(ours) == (said is not None)
    assert said is None or said in ours[0]


def test_several_cuts_of_a_plan_are_one_sentence(tmp_path: Path) -> None:
    notes = plan_notes(file_with(tmp_path, circumstances=AT_DEFAULT), gpus="H100-SXM:4", tp="2,4", top=3)
    (said,) = [note for note in notes if CARRIED in note]
    assert "tp 1 (here 2, 4)" in said or "tp 1 (here 4, 2)" in said


def test_a_plan_of_nothing_speaks_of_what_was_searched(tmp_path: Path) -> None:
    file = file_with(tmp_path, circumstances={**AT_DEFAULT, "precision": "fp8"})
    answer = plan(**{**PLAN, "ttft_ms": 0.001}, calibration=file)
    assert not answer.result.feasible
    assert any("precision fp8 (here bf16)" in note for note in answer.result.notes)


def test_pools_and_an_existing_deployment_are_carried_over_too(tmp_path: Path) -> None:
    file = file_with(tmp_path, circumstances=AT_DEFAULT)
    two = {"gpus": "H100-SXM:2", "tpot_ms": 60.0, "ttft_ms": 3000.0}
    pooled = plan(**{**PLAN, **two, "top": 3}, disaggregated="splitwise", calibration=file)
    engines = {one.pools.engine for name in ("plans", "pareto") for one in getattr(pooled.result, name) if one.pools}
    assert engines == {"splitwise"}
    assert any("engine vllm-v1 (here splitwise)" in note for note in pooled.result.notes)
    serve = "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2"
    existing = plan(**{**PLAN, **two}, start_from=serve, calibration=file).result
    assert existing.starting_point is not None
    assert any("tp 1 (here 2)" in note for note in existing.notes)


# An engine in a version is the same engine


@pytest.mark.parametrize("fields", [{}, {"overheads": "none"}])
def test_a_version_with_another_host_time_is_refused_by_both_verbs(tmp_path: Path, fields: dict[str, str]) -> None:
    file = file_with(tmp_path, host_time=asynchronous())
    for verb in (
        lambda: notes_of(file, engine="vllm-v1@0.11.0", **fields),
        lambda: plan_notes(file, engines="vllm-v1@0.11.0", **fields),
    ):
        with pytest.raises(InputError, match="its per-request was fitted beside the host time vllm-v1, here it is"):
            verb()


def test_the_defaults_own_version_is_no_other_engine(tmp_path: Path) -> None:
    version = simulate(**GIVEN, **LOAD).to_json_dict()["deployment"]["engine_version"]
    file = file_with(tmp_path, host_time=asynchronous(version), circumstances=AT_DEFAULT)
    for notes in (notes_of(file, engine=f"vllm-v1@{version}"), plan_notes(file, engines=f"vllm-v1@{version}")):
        assert not any(CARRIED in note or "was fitted" in note for note in notes)
    named = file_with(tmp_path, circumstances={**AT_DEFAULT, "engine": f"vllm-v1@{version}"})
    assert not any(CARRIED in note or "was fitted" in note for note in notes_of(named))


def test_another_version_is_said_by_both_verbs(tmp_path: Path) -> None:
    ratios = {"compute": 1.5}
    recorded = file_with(tmp_path, host_time=asynchronous("0.19.0"), factors=ratios, circumstances=AT_DEFAULT)
    named = file_with(tmp_path, "old.json", factors=ratios, circumstances={**AT_DEFAULT, "engine": "vllm-v1@0.19.0"})
    for file in (recorded, named):
        for notes in (notes_of(file), plan_notes(file)):
            assert any("the calibration was fitted for vllm-v1 0.19.0 (here" in note for note in notes)
            assert not any(CARRIED in note for note in notes)
        for notes in (notes_of(file, engine="sglang"), plan_notes(file, engines="sglang")):
            assert any("engine vllm-v1" in note and "(here sglang)" in note for note in notes)
            assert not any("was fitted for" in note for note in notes)


# Damaged files


def without(name: str) -> str:
    document = json.loads(calibration_text())
    del document[name]
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (calibration_text(circumstances=[1]), "its circumstances is no object"),
        (calibration_text(circumstances={"engine": 3}), "its circumstances engine is 3"),
        (calibration_text(circumstances={"tp": "four"}), "its circumstances tp is 'four'"),
        (calibration_text(circumstances={"tp": [1]}), "its circumstances tp is list"),
        (calibration_text(factors={}), "its factors are empty"),
        (calibration_text(factors=[]), "its factors is no object"),
        (calibration_text(factors={"compute": float("nan")}), "its factors compute is nan, no number"),
        (calibration_text(factors={"compute": 10**400}), "no number"),
        (calibration_text(factors={"compute": True}), "its factors compute is True, no number"),
        (calibration_text(deviations={"compute": None}), "its deviations compute is None, no number"),
        (calibration_text(host_time=3), "its host_time is no object"),
        (calibration_text(host_time={"seconds": [1]}), "its host_time seconds is list"),
        (calibration_text(host_time={"seconds": {"per_step_s": "x"}}), "its host_time seconds per_step_s is 'x'"),
        (calibration_text(host_time={"name": 5}), "its host_time name is 5"),
        (calibration_text(error_after="little"), "its error_after is no number"),
        (calibration_text(error_before=float("nan")), "its error_before is no number"),
        (calibration_text(held_back=None), "its held_back is no text"),
        (calibration_text(gpu=["H100-SXM"]), "its gpu is no text"),
        (calibration_text(surprise=1), "its field 'surprise' is unknown"),
        (calibration_text(name="me"), "its field 'name' is unknown"),
        *((without(name), f"it has no {name}") for name in ("model", "circumstances", "factors", "error_after")),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    file.write_text(text, encoding="utf-8")
    load = ["--prompt-tokens", "300", "--output-tokens", "40"]
    simulated = ["simulate", "--model", "Llama-3.1-8B", "--gpu", "H100-SXM", *load, "--rate", "1"]
    planned = ["plan", "--model", "Llama-3.1-8B", "--gpus", "H100-SXM:1", *load]
    for asked in (simulated, planned):
        assert main([*asked, "--calibration", str(file)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
        assert "run plimsoll calibrate again" in line
        assert "__init__" not in line


@pytest.mark.parametrize("name", ["", " ", ","])
def test_no_file_is_no_calibration(name: str) -> None:
    with pytest.raises(InputError, match=r"--calibration: .*name a file"):
        plan(**PLAN, calibration=name)
    with pytest.raises(InputError, match=r"--calibration: .*(name a file|cannot be read)"):
        simulate(**GIVEN, **LOAD, calibration=name)


# A model under a name that others have too


def test_another_model_under_the_same_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def put(**changes: object) -> None:
        text = json.dumps({**CONFIG, "max_position_embeddings": 4096, **changes})
        Path("config.json").write_text(text, encoding="utf-8")

    put()
    fields: dict[str, Any] = {"model": "config.json", "gpu": "RTX-4090"}
    answer = calibrate(results=str(CLOSED), **fields, max_model_len=1152)
    assert answer.calibration.model_shape == model_shape(load_model("config.json"))
    kept = dataclasses.replace(answer.calibration, error_before=1.0, error_after=0.1, factors={"compute": 1.5})
    Path("new.json").write_text(to_text(kept), encoding="utf-8")
    assert read_calibration("new.json").model_shape == kept.model_shape
    old = json.loads(to_text(kept))
    del old["model_shape"]
    Path("old.json").write_text(json.dumps(old), encoding="utf-8")

    put(max_position_embeddings=8192)  # takes longer sequences, and every step as long as before
    simulate(**fields, **LOAD, calibration="new.json")
    put(num_hidden_layers=CONFIG["num_hidden_layers"] + 4)
    with pytest.raises(InputError, match=r"new\.json' cannot be used; it was made for a model of another shape"):
        simulate(**fields, **LOAD, calibration="new.json")
    with pytest.raises(InputError, match="a model of another shape"):
        plan(**{**PLAN, "model": "config.json", "gpus": "RTX-4090:1"}, calibration="new.json")
    simulate(**fields, **LOAD, calibration="old.json")  # does not say its shape


def test_a_shape_is_of_the_layers_and_not_of_the_name() -> None:
    model = load_model("Llama-3.1-8B")
    assert model_shape(model) == model_shape(dataclasses.replace(model, id="mine", source="here", date="today"))
    for changed in (
        dataclasses.replace(model, hidden_size=model.hidden_size * 2),
        dataclasses.replace(model, groups=(dataclasses.replace(model.groups[0], count=31), *model.groups[1:])),
        dataclasses.replace(model, tied_embeddings=not model.tied_embeddings),
        load_model("Qwen2-7B"),
    ):
        assert model_shape(changed) != model_shape(model)


# A GPU under an id that another file gives too

UNSAID = "does not say which figures"


def gpu_file(**figures: float) -> str:
    """A user's file of a GPU that is called RTX-4090, as the catalogue's is."""
    lines = ['base = "RTX-4090"', *(f"{name} = {value}" for name, value in figures.items())]
    Path("mine.toml").write_text("\n".join(lines), encoding="utf-8")
    return "./mine.toml"


def test_another_gpu_under_the_same_id_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 4096}), encoding="utf-8")
    answer = calibrate(results=str(CLOSED), model="config.json", gpu=gpu_file(), max_model_len=1152)
    assert answer.calibration.gpu_figures == gpu_figures(load_accelerator("RTX-4090"), num_gpus=1)
    kept = dataclasses.replace(answer.calibration, error_before=1.0, error_after=0.1, factors={"compute": 1.5})
    Path("new.json").write_text(to_text(kept), encoding="utf-8")
    assert read_calibration("new.json").gpu_figures == kept.gpu_figures

    fields: dict[str, Any] = {"model": "config.json", "gpu": "./mine.toml"}
    planned = {**PLAN, "model": "config.json", "gpus": "./mine.toml:1"}
    gpu_file(tdp_w=300, intra_node_gb_per_s=1)  # steps of one GPU take as long as before
    assert not any(UNSAID in note for note in simulate(**fields, **LOAD, calibration="new.json").notes)
    gpu_file(bandwidth_gb_per_s=2000)
    said = r"new\.json' cannot be used; it was made for another RTX-4090, of memory_bandwidth_bytes_per_s 1008000000000"
    with pytest.raises(InputError, match=said):
        simulate(**fields, **LOAD, calibration="new.json")
    with pytest.raises(InputError, match=said):
        plan(**planned, calibration="new.json")
    command = ["simulate", "--model", "config.json", "--gpu", "./mine.toml", "--prompt-tokens", "300",
               "--output-tokens", "40", "--num-requests", "60", "--rate", "1", "--calibration", "new.json"]  # fmt: skip
    assert main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "this one has 2000000000000" in line
    assert line.endswith("run plimsoll calibrate")

    Path("old.json").write_text(to_text(dataclasses.replace(kept, gpu_figures={})), encoding="utf-8")
    assert any(UNSAID in note for note in simulate(**fields, **LOAD, calibration="old.json").notes)
    notes = plan(**planned, calibration="old.json").result.notes
    assert any(note.startswith("RTX-4090: ") and UNSAID in note for note in notes)


def test_figures_are_of_steps_and_of_links_only_between_gpus() -> None:
    gpu = load_accelerator("H100-SXM")
    alone, several = (gpu_figures(gpu, num_gpus) for num_gpus in (1, 2))
    other = dataclasses.replace(gpu, id="mine", name="", tdp_w=1.0, idle_w=None, offers=(), year=1999, segment="")
    assert gpu_figures(other, 1) == alone
    slower = dataclasses.replace(gpu, intra_node_bytes_per_s=1e9)
    assert gpu_figures(slower, 1) == alone
    assert gpu_figures(slower, 2) != several
    assert alone.items() < several.items()
    assert json.loads(json.dumps(several)) == several
    for changed in (
        dataclasses.replace(gpu, memory_bytes=gpu.memory_bytes // 2),
        dataclasses.replace(gpu, dense_flop_per_s={**gpu.dense_flop_per_s, "bf16": 1e12}),
        load_accelerator("H200"),
    ):
        assert gpu_figures(changed, 1) != alone


@pytest.mark.parametrize("damage", [["memory_bytes"], {"memory_bytes": None}, {"memory_bytes": [1]}])
def test_figures_that_say_nothing_are_refused(tmp_path: Path, damage: object) -> None:
    with pytest.raises(InputError, match="gpu_figures"):
        read_calibration(file_with(tmp_path, gpu_figures=damage))
