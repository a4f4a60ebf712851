"""How measured energy rows are read, split and simulated."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.architecture import StateSpace
from plimsoll.catalog.models import load_model
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.perf.compositions import build_composed
from plimsoll.perf.overheads import load_overheads
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.vllm_steps import VllmRoofline
from validation import ml_energy

ROW = {
    "model": "meta-llama/Llama-3.1-8B-Instruct", "task": "lm-arena-chat", "weights": "bfloat16", "gpu": "H100",
    "num_gpus": "1", "tp": "1", "ep": "1", "dp": "1", "max_num_seqs": "16", "avg_output_tokens": "60",
    "output_tokens_per_s": "1800", "median_itl_ms": "8", "avg_power_w": "520", "joules_per_output_token": "0.3",
}  # fmt: skip


def test_a_row_is_answered_with_plausible_figures() -> None:
    itl_s, tokens_per_s, watts, joules = ml_energy.predict(ROW)
    assert 0.004 < itl_s < 0.02
    assert tokens_per_s * itl_s == pytest.approx(16, rel=0.35)  # sixteen seats, less the steps with prompts
    assert 75 < watts < 700
    assert joules == pytest.approx(watts / tokens_per_s)
    assert ml_energy.row_errors(ROW) == pytest.approx(
        (itl_s / 0.008 - 1, tokens_per_s / 1800 - 1, watts / 520 - 1, joules / 0.3 - 1)
    )


def test_the_half_depends_on_model_and_gpu_alone() -> None:
    assert ml_energy.half(ROW) == ml_energy.half({**ROW, "max_num_seqs": "512", "task": "gpqa"})
    models = ("a", "b", "c", "d", "e", "f")
    assert {ml_energy.half({**ROW, "model": model}) for model in models} == {"tune", "judge"}


@pytest.mark.parametrize(
    ("columns", "cut"),
    [
        (("1", "1", "1", "1"), Parallelism()),
        (("4", "2", "1", "1"), Parallelism(tp=2, dp=2)),
        (("8", "1", "8", "1"), Parallelism(tp=8, ep=8)),
        (("8", "1", "8", "8"), Parallelism(dp=8, ep=8)),
    ],
)
def test_layout_columns(columns: tuple[str, ...], cut: Parallelism) -> None:
    names = ("num_gpus", "tp", "ep", "dp")
    assert ml_energy._cut({**ROW, **dict(zip(names, columns, strict=True))}) == cut


def test_steps_are_those_that_commands_build() -> None:
    request = StepModelRequest(
        model=load_model("meta-llama/Llama-3.1-8B"),
        gpu=load_accelerator("H100-SXM"),
        overheads=load_overheads("vllm-v1"),
    )
    for name in ("vllm-roofline", "roofline"):
        ours, theirs = (
            ml_energy._steps(ROW["model"], "H100-SXM", Parallelism(), "bf16", name),
            build_composed(name, request),
        )
        for step in ((0, 0, 0, 0, 0, 16, 9_000), (500, 1, 125_000, 0, 1, 15, 9_000)):
            assert ours.step_s(*step) == theirs.step_s(*step)
        assert ours.describe()["step_model"] == name


def test_the_plain_roofline_misses_what_vllm_adds() -> None:
    row = {**ROW, "max_num_seqs": "256"}
    ours, plain = ml_energy.predict(row), ml_energy.predict(row, "roofline")
    steps, host = VllmRoofline(load_model("meta-llama/Llama-3.1-8B"), load_accelerator("H100-SXM")), "vllm-v1"
    sorting_s = steps.sampler_s(256) + steps.overheads.per_step_s - load_overheads(host).per_step_s
    assert ours[0] - plain[0] == pytest.approx(sorting_s, rel=0.05)  # 8 ms of sorting 256 rows for the most part
    assert plain[1] > 1.15 * ours[1]


def test_rows_are_served_as_the_benchmark_served_them() -> None:
    steps = ml_energy._steps(ROW["model"], "H100-SXM", Parallelism(), "bf16")
    assert isinstance(steps, VllmRoofline)
    hybrid = ml_energy.find_model("nvidia/NVIDIA-Nemotron-Nano-12B-v2")
    states = [group.mixer for group in hybrid.groups if isinstance(group.mixer, StateSpace)]
    assert states
    assert all(state.state_bytes_per_element == 4 for state in states)
    assert ml_energy.find_model(ROW["model"]).groups == load_model("meta-llama/Llama-3.1-8B").groups


def test_data_parallel_ranks_step_together() -> None:
    row = {
        **ROW, "model": "Qwen/Qwen3-30B-A3B-Instruct-2507", "num_gpus": "2", "ep": "2", "dp": "2",
        "task": "sourcegraph-fim", "avg_output_tokens": "40",
    }  # fmt: skip
    ranks, one = ml_energy.predict(row), ml_energy.predict({**row, "dp": "1"})
    assert ranks[1] < one[1]  # each waits for the prompts of the other


def test_more_seats_give_more_tokens_and_longer_gaps() -> None:
    found = [ml_energy.predict({**ROW, "max_num_seqs": seats}) for seats in ("8", "32", "128")]
    for one, more in itertools.pairwise(found):
        assert more[0] > one[0]
        assert more[1] > one[1]
        assert more[2] > one[2]
        assert more[3] < one[3]


@pytest.mark.parametrize("column", ["max_num_seqs", "avg_output_tokens", "num_gpus", "median_itl_ms"])
@pytest.mark.parametrize("value", ["", "many", "0", "-3", "inf"])
def test_impossible_figures_are_refused_in_one_line(column: str, value: str) -> None:
    with pytest.raises(InputError, match=column) as refused:
        ml_energy.row_errors({**ROW, column: value})
    assert "\n" not in str(refused.value)


def write(path: Path, *rows: dict[str, str]) -> Path:
    lines = [",".join(ROW), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_row_that_ends_early_is_named(tmp_path: Path) -> None:
    short = dict(list(ROW.items())[:-2])
    with pytest.raises(InputError, match=r"rows.csv.* row 2 ends before column avg_power_w"):
        ml_energy.run([write(tmp_path / "rows.csv", ROW, short)])


def test_nothing_answered_fails_and_says_so(tmp_path: Path) -> None:
    result = ml_energy.run([write(tmp_path / "rows.csv", {**ROW, "model": "nobody/no-such-model"})])
    assert result["passed"] is False
    assert result["summary"] == "0 of 1 rows; median absolute error: none"
    assert sum(result["figures"]["refused"].values()) == 1


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="gpqa"):
        ml_energy.predict({**ROW, "task": "poems"})
    with pytest.raises(UnknownNameError):
        ml_energy.find_model("nobody/no-such-model")
    path = tmp_path / "rows.csv"
    path.write_text("model,task\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="max_num_seqs"):
        ml_energy.run([path])
    with pytest.raises(InputError, match="leaderboard"):
        ml_energy.run([tmp_path / "none.csv"])


def test_the_suite_reports_both_halves_and_what_it_refused(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "model": "Qwen/Qwen3-14B"}, {**ROW, "model": "nobody/no-such-model"}]
    path = tmp_path / "rows.csv"
    lines = [",".join(ROW), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = ml_energy.run([path])
    path.rename(tmp_path / "llm_text.csv")
    assert ml_energy.run([tmp_path])["figures"] == result["figures"]  # the folder of the data will do
    figures = result["figures"]
    assert set(figures["assumptions"]["lengths"]) == {"lm-arena-chat", "gpqa", "sourcegraph-fim"}
    assert figures["answered_frac"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["itl"]["num_rows"] == 2
    assert sum(figures[half].get("itl", {"num_rows": 0})["num_rows"] for half in ("tune", "judge")) == 2
    assert sum(figures["refused"].values()) == 1
    beside = figures["plain_roofline"]
    assert set(beside) == {"all", "tune", "judge"}
    assert beside["all"]["itl"]["num_rows"] == 2
    assert beside["all"]["itl"] != figures["itl"]
    assert beside["all"].keys() == ml_energy.AIMS.keys()
