"""From result files to a calibration, and from a calibration into every verb."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from plimsoll.api.calibrating import calibrate
from plimsoll.api.calibrations import step_model_identity
from plimsoll.api.capacity import capacity
from plimsoll.api.planning import plan
from plimsoll.api.simulation import simulate
from plimsoll.calibration import read_calibration, to_text
from plimsoll.cli import main
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.profiler.device import cpu_device, device_toml
from tests.own_profiles import CONFIG, CPUINFO

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
        ({"host_time": 3}, "run plimsoll calibrate again"),
        ({"error_before": 0.1, "error_after": 0.2}, r"10.0% without, 20.0% with it"),
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


VLLM = {"name": "vllm-v1", "api_server": "", "engine_version": ""}


@pytest.fixture
def host_time() -> dict[str, object]:
    """As a fit beside vLLM's own host time records it."""
    document = simulate(**GIVEN, **LOAD, rate_per_s=1.0).to_json_dict()
    found = document["sources"]["host_time"]
    seconds = {name: value for name, value in found.items() if name.endswith("_s")}
    assert seconds  # vLLM's steps take some
    return {**VLLM, "seconds": seconds, "engine_version": document["deployment"]["engine_version"]}


def notes_with(tmp_path: Path, changes: dict[str, object], **fields: object) -> tuple[str, ...]:
    file = tmp_path / "c.json"
    file.write_text(calibration_text(**changes), encoding="utf-8")
    return simulate(**GIVEN, **LOAD, rate_per_s=1.0, calibration=str(file), **fields).notes  # type: ignore[arg-type]


def test_the_same_host_time_goes_without_saying(tmp_path: Path, host_time: dict[str, object]) -> None:
    assert not any("host time" in note for note in notes_with(tmp_path, {"host_time": host_time}))


def test_seconds_beyond_another_host_time_are_refused(tmp_path: Path, host_time: dict[str, object]) -> None:
    for overheads in ("none", "vllm-v1-sync", "api-server-vllm"):
        with pytest.raises(InputError, match="its per-request was fitted beside the host time vllm-v1, here it is"):
            notes_with(tmp_path, {"host_time": host_time}, overheads=overheads)
    other = {**host_time, "seconds": {"per_step_s": 0.5}}
    with pytest.raises(InputError, match=r"vllm-v1 \(per_step_s 0.5\), here it is vllm-v1 \(per_step_s"):
        notes_with(tmp_path, {"host_time": other})


def test_ratios_beside_another_host_time_are_said(tmp_path: Path, host_time: dict[str, object]) -> None:
    ratios = {"host_time": host_time, "factors": {"compute": 2.0}}
    said = "the calibration was fitted beside the host time vllm-v1 (here none)"
    assert said in notes_with(tmp_path, ratios, overheads="none")
    elsewhere = {"host_time": host_time, "circumstances": {"engine": "sglang", "tp": 1}}
    assert said in notes_with(tmp_path, elsewhere, overheads="none")  # of another engine, which is said as well


def test_files_that_do_not_say_are_said(tmp_path: Path) -> None:
    said = "the calibration does not say beside which host time its per-request holds"
    assert said in notes_with(tmp_path, {})
    assert said not in notes_with(tmp_path, {"factors": {"compute": 2.0}})


def test_another_engine_version_is_said(tmp_path: Path, host_time: dict[str, object]) -> None:
    older = {"host_time": {**host_time, "engine_version": "0.1.0"}}
    assert any("fitted for vllm-v1 0.1.0 (here" in note for note in notes_with(tmp_path, older))


def test_what_is_written_says_its_host_time(measured: Path, host_time: dict[str, object]) -> None:
    answer = calibrate(results=results(measured), **GIVEN)
    assert answer.calibration.host_time == host_time
    file = measured / "c.json"
    file.write_text(to_text(answer.calibration), encoding="utf-8")
    assert read_calibration(str(file)).host_time == host_time
    synchronous = calibrate(results=results(measured), **GIVEN, engine="vllm-v1,async_scheduling=false")
    assert synchronous.calibration.host_time["name"] == "vllm-v1-sync"


def test_plan_looks_at_the_host_time_of_its_engines(tmp_path: Path, host_time: dict[str, object]) -> None:
    file = tmp_path / "h100.json"
    file.write_text(calibration_text(host_time=host_time), encoding="utf-8")
    fields = {"model": "Llama-3.1-8B", "prompt_tokens": 300, "output_tokens": 40, "gpus": "H100-SXM:1", "tp": "1",
              "token_budgets": "2048", "ttft_ms": 1000.0, "calibration": str(file), "top": 1}  # fmt: skip
    assert not any("beside the host time" in note for note in plan(**fields).result.notes)
    with pytest.raises(InputError, match="fitted beside the host time vllm-v1, here it is none"):
        plan(**fields, overheads="none")


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


DATA = Path(__file__).resolve().parent.parent / "data" / "calibration"
SERVER = ["--max-num-seqs", "32", "--max-num-batched-tokens", "512", "--max-model-len", "1152"]
BLOCKS = ["--kv-blocks", "1024", "--block-size", "128"]
ONE_SERVER = [
    "guidellm/v0.3.1.json",
    "aiperf/v0.4.0/profile_export.jsonl",
    "vllm_bench/closed.json",
    "vllm_bench/appended.json",
    "vllm_metrics/before.txt",
    "vllm_metrics/after.txt",
]


@pytest.fixture
def cpu_server(tmp_path: Path) -> list[str]:
    """Flags of the server that the real files are of: its model, and one core of its machine by upper limits."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 4096}), encoding="utf-8")
    (tmp_path / "cpu.toml").write_text(device_toml(cpu_device(1, CPUINFO), 23 * 2**30), encoding="utf-8")
    return ["--model", str(tmp_path / "config.json"), "--gpu", str(tmp_path / "cpu.toml"), *SERVER]


def test_files_of_three_real_tools_in_one_calibration(
    cpu_server: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(DATA / name) for name in ONE_SERVER]
    assert main(["calibrate", *files, *cpu_server, *BLOCKS, "--json", "--out", str(tmp_path / "kept")]) == 0
    document = json.loads(capsys.readouterr().out)
    loads = [(run["num_requests"], run["num_judged"], run["concurrency"]) for run in document["runs"]]
    assert loads == [(22, 22, 2), (22, 22, 4), (22, 22, 3), (24, 24, 3), (24, 24, None), (24, 24, None)]
    rates = [round(run["rate_per_s"], 1) for run in document["runs"] if run["rate_per_s"]]
    assert rates == [8.2, 16.4]  # asked for 8 and 16
    assert document["held_back"] == "3 of 6 runs"
    assert document["factors"]["kv_blocks"] == 1.0
    assert document["error_after"] < document["error_before"]
    assert main(["calibrate", *files, *cpu_server, *BLOCKS]) == 0
    printed = capsys.readouterr().out
    assert "24 requests, 3 at a time" in printed
    assert "24 requests, 16.4/s" in printed


def test_runs_that_contradict_one_another_are_named(cpu_server: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """GuideLLM's closed.json was measured while others had the machine: its TPOT is five times vLLM's own."""
    files = [str(DATA / name) for name in ("guidellm/closed.json", *ONE_SERVER)]
    main(["calibrate", *files, *cpu_server, *BLOCKS, "--json"])
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert sum("the runs disagree" in note and "was the machine busy" in note for note in notes) == 1


def test_block_sizes_that_differ_are_said(cpu_server: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = str(DATA / "aiperf" / "closed" / "profile_export.jsonl")  # its server metrics: 1024 blocks of 128 tokens
    assert main(["calibrate", file, *cpu_server, "--kv-blocks", "8000", "--json"]) in (0, 1)
    document = json.loads(capsys.readouterr().out)
    assert document["factors"]["kv_blocks"] == pytest.approx(1024 * 128 / (8000 * 16))
    assert any("hold 128 tokens, the deployment's 16" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        (["guidellm/failed.json"], BLOCKS, "no answered request"),
        (["guidellm/window.json"], BLOCKS, "13 of 21 requests in the measured window"),
        (["vllm_metrics/after.txt"], BLOCKS, "add a file with requests"),
        (["vllm_bench/closed.json", "vllm_bench/closed.json"], BLOCKS, "given twice"),
        (["aiperf/closed/profile_export.jsonl"], [], "give --kv-blocks 1024 --block-size 128"),
        (["aiperf/closed"], BLOCKS, "directory"),
    ],
)
def test_real_files_that_cannot_serve_exit_with_2(
    cpu_server: list[str], names: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *(str(DATA / name) for name in names), *cpu_server, *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_servers_with_other_blocks_are_not_mixed(tmp_path: Path, cpu_server: list[str]) -> None:
    text = (DATA / "vllm_metrics" / "after.txt").read_text(encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text(text.replace('num_gpu_blocks="1024"', 'num_gpu_blocks="512"'), encoding="utf-8")
    fields = dict(zip(("model", "gpu"), cpu_server[1:4:2], strict=True))
    files = [str(DATA / "vllm_bench" / "closed.json"), str(DATA / "vllm_metrics" / "after.txt"), str(other)]
    with pytest.raises(InputError, match=r"512 of 128 tokens, 1024 of 128 tokens.*different servers"):
        calibrate(results=",".join(files), **fields, max_model_len=1152)


def test_a_calibration_belongs_to_the_step_model_with_its_options_but_to_no_folder() -> None:
    assert step_model_identity("profile:/some/where") == "profile"
    assert step_model_identity("profile:a+h2o,ratio=0.2") == "profile+h2o,ratio=0.2"
    assert step_model_identity("vllm-roofline:sampler=greedy") == "vllm-roofline:sampler=greedy"
    assert step_model_identity("vllm-roofline") == "vllm-roofline"
