"""From result files to a calibration, and from a calibration into every verb."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from plimsoll.api.calibrating import calibrate
from plimsoll.api.capacity import capacity
from plimsoll.api.planning import plan
from plimsoll.api.simulation import simulate
from plimsoll.calibration import read_calibration, to_text
from plimsoll.cli import main
from plimsoll.core.errors import InputError, UnknownNameError

GIVEN = {"model": "Llama-3.1-8B", "gpu": "H100-SXM"}
LOAD = {"prompt_tokens": 300, "output_tokens": 40, "num_requests": 120}


def calibration_text(**changes: object) -> str:
    document: dict[str, object] = {
        "kind": "plimsoll calibration",
        "version": 1,
        "model": "meta-llama/Llama-3.1-8B",
        "gpu": "H100-SXM",
        "step_model": "roofline",
        "circumstances": {"engine": "vllm-v1", "tp": 1},
        "factors": {"compute": 2.0, "bandwidth": 1.5, "per_request_s": 0.05},
        "error_before": 0.3,
        "error_after": 0.02,
        "held_back": "1 of 2 runs",
    }
    return json.dumps({**document, **changes})


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Three loads "measured" on an H100 whose decodes take 1.5 times as long as the roofline says."""
    file = tmp_path / "true.json"
    file.write_text(calibration_text(), encoding="utf-8")
    for k, rate in enumerate((1.0, 5.0, 12.0)):
        run = simulate(**GIVEN, **LOAD, rate_per_s=rate, seed=k, calibration=str(file)).run
        with (tmp_path / f"measured{k}.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["prompt_tokens", "output_tokens", "arrival_s", "first_token_s", "last_token_s"])
            columns = (run.prompt_tokens, run.output_tokens, run.arrival_s, run.first_token_s, run.finish_s)
            writer.writerows(zip(*columns, strict=True))
    return tmp_path


def results(folder: Path) -> str:
    return ",".join(str(folder / f"measured{k}.csv") for k in range(3))


def test_factors_come_back_and_help(measured: Path) -> None:
    answer = calibrate(results=results(measured), **GIVEN, fit="compute, bandwidth, per-request")
    assert answer.improved
    assert answer.calibration.factors["bandwidth"] == pytest.approx(1.5, rel=0.03)
    assert answer.calibration.factors["per_request_s"] == pytest.approx(0.05, rel=0.2)
    assert answer.fit.error_after < 0.03 < answer.fit.error_before


def test_the_file_carries_over_to_simulate_and_capacity(measured: Path) -> None:
    answer = calibrate(results=results(measured), **GIVEN)
    file = measured / "calibration.json"
    file.write_text(to_text(answer.calibration), encoding="utf-8")
    plain = simulate(**GIVEN, **LOAD, rate_per_s=3.0)
    ours = simulate(**GIVEN, **LOAD, rate_per_s=3.0, calibration=str(file))
    true = simulate(**GIVEN, **LOAD, rate_per_s=3.0, calibration=str(measured / "true.json"))
    assert ours.metrics.ttft_s.mean == pytest.approx(true.metrics.ttft_s.mean, rel=0.08)
    assert ours.metrics.tpot_s.mean == pytest.approx(true.metrics.tpot_s.mean, rel=0.03)
    assert plain.metrics.ttft_s.mean < 0.7 * true.metrics.ttft_s.mean
    assert any(note.startswith("calibrated (") for note in ours.notes)
    targets = {"tpot_ms": 12.0, "num_seeds": 1, "num_requests": 100, "prompt_tokens": 300, "output_tokens": 40}
    with_it = capacity(**GIVEN, **targets, calibration=str(file))
    assert with_it.result.max_rate_per_s < capacity(**GIVEN, **targets).result.max_rate_per_s


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "L4"}, "made for gpu L4, this is H100-SXM"),
        ({"model": "Qwen/Qwen2-7B"}, "made for model Qwen/Qwen2-7B"),
        ({"step_model": "silicon"}, "made for step model silicon"),
        ({"kind": "something"}, "no calibration file"),
        ({"version": 7}, "another version"),
        ({"factors": {"compute": "fast"}}, "no number"),
        ({"factors": {"compute": 1e9}}, "between 0.05 and 20"),
        ({"factors": {"per_step_s": -1.0}}, "between 0 and 60"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_calibration_for_something_else_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(calibration_text(**changes), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        simulate(**GIVEN, **LOAD, rate_per_s=1.0, calibration=str(file))


def test_unknown_factor(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(calibration_text(factors={"computer": 1.0}), encoding="utf-8")
    with pytest.raises(UnknownNameError, match="compute"):
        simulate(**GIVEN, **LOAD, rate_per_s=1.0, calibration=str(file))


def test_other_circumstances_are_said(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(calibration_text(circumstances={"tp": 4, "engine": "vllm-v1"}), encoding="utf-8")
    notes = simulate(**GIVEN, **LOAD, rate_per_s=1.0, calibration=str(file)).notes
    assert any("measured with tp 4 (here 1)" in note for note in notes)


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(calibration_text(), encoding="utf-8")
    once = read_calibration(str(file))
    file.write_text(to_text(once), encoding="utf-8")
    assert read_calibration(str(file)) == once


def test_command_line(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = measured / "kept"
    files = [str(measured / f"measured{k}.csv") for k in range(3)]
    flags = ["--model", "Llama-3.1-8B", "--gpu", "H100-SXM"]
    assert main(["calibrate", *files, *flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Calibrated: median error on 1 of 3 runs")
    assert "bandwidth" in printed
    assert read_calibration(str(out / "calibration.json")).gpu == "H100-SXM"
    assert main(["calibrate", *files, *flags, "--fit", "bandwidht"]) == 2
    assert main(["calibrate", str(measured / "nothing.csv"), *flags]) == 2
    assert main(["calibrate", *flags]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert "Traceback" not in "".join(errors)


def test_real_run_is_calibrated_on_its_half(shared_data: Path) -> None:
    """The RTX 4090 run of LLMServingSim: the roofline is a few percent off; half of the run mends the other half."""
    folder = shared_data / "real-vllm" / "runs" / "rtx4090_llama-3_1-8b"
    answer = calibrate(results=str(folder / "measured.csv"), model="Llama-3.1-8B", gpu="RTX-4090",
                       max_num_seqs=256, max_num_batched_tokens=2048)  # fmt: skip
    assert answer.calibration.factors["kv_blocks"] == pytest.approx(2588 / answer.resolved.memory.num_blocks)
    assert answer.improved
    assert answer.fit.error_after < 0.02


def test_plan_takes_a_file_for_each_gpu(tmp_path: Path) -> None:
    file = tmp_path / "h100.json"
    file.write_text(calibration_text(), encoding="utf-8")
    fields = {"model": "Llama-3.1-8B", "prompt_tokens": 300, "output_tokens": 40, "tp": "1", "pp": "1",
              "token_budgets": "2048", "ttft_ms": 1000.0, "tpot_ms": 30.0}  # fmt: skip
    plain = plan(**fields, gpus="H100-SXM:1")
    slower = plan(**fields, gpus="H100-SXM:1", calibration=str(file))
    assert slower.result.plans[0].capacity < 0.8 * plain.result.plans[0].capacity
    assert any(note.startswith("H100-SXM: calibrated (") for note in slower.result.notes)
    with pytest.raises(InputError, match="not among --gpus"):
        plan(**fields, gpus="L4:1", calibration=str(file))
