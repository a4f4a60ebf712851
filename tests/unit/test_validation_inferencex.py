"""How measured rows are read, split and answered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from plimsoll.core.source import Source
from validation import inferencex
from validation._inferencex_causes import repetition, split
from validation._inferencex_factors import Factors, front_features, front_terms, kernel_features, load_factors
from validation._inferencex_fit import GRID, _FrontProblem, document, fit, what_runs
from validation._inferencex_model import Prediction, predict
from validation._inferencex_peer import ask, beside, key, table
from validation._inferencex_rows import LAYOUT, Row, layout, read_rows

HEADER = (
    "id", "silicon_data_source", "backend_version", "isl", "osl", "batch_size", "prefill_batch_size",
    "decode_batch_size",
)  # fmt: skip


def _rows(folder: Path, **fields: str) -> list[Row]:
    values = dict.fromkeys((*HEADER, *LAYOUT, "silicon_ttft_ms", "silicon_tpot_ms"), "")
    values |= {
        "id": "a", "silicon_data_source": "db-dump; silicon_concurrency=4;", "model_path": "meta-llama/Llama-3.1-70B",
        "system": "h100_sxm", "backend": "vllm", "mode": "agg", "isl": "512", "osl": "64", "gemm_quant_mode": "fp8",
        "tp_size": "4", "silicon_ttft_ms": "100", "silicon_tpot_ms": "10",
    }  # fmt: skip
    values |= fields
    path = folder / "rows.csv"
    path.write_text(",".join(values) + "\n" + ",".join(values.values()) + "\n", encoding="utf-8")
    return read_rows(path)


def test_the_half_depends_on_the_deployment_alone(tmp_path: Path) -> None:
    (one,) = _rows(tmp_path)
    (other,) = _rows(tmp_path, isl="4096", osl="128", silicon_data_source="x; silicon_concurrency=64;", tp_size="4.0")
    assert one.half == other.half
    halves = {_rows(tmp_path, tp_size=str(tp))[0].half for tp in (1, 2, 4, 8)}
    assert halves == {"tune", "judge"}


def test_disaggregated_rows_without_workers_are_incomplete(tmp_path: Path) -> None:
    assert not _rows(tmp_path, mode="disagg")[0].complete
    counts = {
        "prefill_batch_size": "1",
        "prefill_num_workers": "1",
        "decode_batch_size": "8",
        "decode_num_workers": "2",
    }
    assert _rows(tmp_path, mode="disagg", **counts)[0].complete


@pytest.mark.parametrize(
    ("columns", "cut"),
    [
        ((8, 1, 8, 1), Parallelism(tp=8)),
        ((64, 1, 8, 8), Parallelism(tp=8, ep=8)),
        ((1, 64, 8, 8), Parallelism(dp=8, ep=8)),
        ((16, 1, 4, 4), Parallelism(tp=4, ep=4)),
        ((4, 4, 1, 16), Parallelism(dp=4, ep=4)),
        ((1, 8, 1, 8), Parallelism(dp=8, ep=8)),
        ((36, 1, 36, 1), Parallelism(dp=32, ep=32)),
    ],
)
def test_layout_columns(columns: tuple[int, int, int, int], cut: Parallelism) -> None:
    assert layout(*columns) == cut


def test_a_broken_row_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2"):
        _rows(tmp_path, system="abacus")


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("0.5.10.post1", "0.5.10"),
        ("1.2.0rc6.post3", "1.2.0"),
        ("nightly-dev-20260402-d7", "nightly-dev"),
        ("", "2026-03"),
    ],
)
def test_a_release_is_a_version_without_its_suffixes(tmp_path: Path, version: str, release: str) -> None:
    source = "x; silicon_concurrency=4; measured=2026-03-17T00:00:00Z"
    (row,) = _rows(tmp_path, backend_version=version, silicon_data_source=source)
    assert row.release == release
    assert f"vllm {release} with dense" in kernel_features(row)
    assert f"vllm {release} with dense" in front_features(row)


def test_models_of_one_architecture_share_their_factors(tmp_path: Path) -> None:
    names = ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3", "nvidia/DeepSeek-V3.1-NVFP4")
    features = {tuple(kernel_features(_rows(tmp_path, model_path=name)[0])) for name in names}
    assert len(features) == 1
    assert tuple(kernel_features(_rows(tmp_path, model_path="zhipuai/GLM-5")[0])) not in features


def test_folds_know_a_deployment_by_any_name(tmp_path: Path) -> None:
    plain = {"tp_size": "8", "attention_dp_size": "1", "moe_tp_size": "1", "moe_ep_size": "8"}
    (one,) = _rows(tmp_path, model_path="deepseek-ai/DeepSeek-R1", **plain)
    (same,) = _rows(tmp_path, model_path="deepseek-ai/DeepSeek-V3", **(plain | {"tp_size": "64", "moe_tp_size": "8"}))
    (other,) = _rows(tmp_path, model_path="deepseek-ai/DeepSeek-R1", **(plain | {"tp_size": "4", "moe_ep_size": "4"}))
    assert one.deployment != same.deployment
    assert what_runs(one) == what_runs(same) != what_runs(other)


def test_a_row_is_simulated_in_one_pool_or_in_two(tmp_path: Path) -> None:
    together = predict(_rows(tmp_path)[0])
    stages = {f"{stage}_{name}": "4" for stage in ("prefill", "decode") for name in ("tp_size",)}
    counts = {
        "prefill_batch_size": "1",
        "prefill_num_workers": "1",
        "decode_batch_size": "8",
        "decode_num_workers": "1",
    }
    apart = predict(_rows(tmp_path, mode="disagg", **stages, **counts)[0])
    assert (together.method, apart.method) == ("simulated", "two pools")
    assert apart.source is Source.ASSUMED
    assert apart.tpot_s < together.tpot_s < 3 * apart.tpot_s  # prompts no longer interrupt answers
    assert 0 < apart.ttft_s < 1


def test_launches_hold_up_the_prompts_of_an_engine_that_has_a_recipe_for_it(tmp_path: Path) -> None:
    (plain,) = _rows(tmp_path, backend="vllm", model_path="meta-llama/Llama-3.1-70B")
    launched = dataclasses.replace(plain, backend="sglang")
    assert predict(launched).ttft_s > 80e-3  # 80 layers of a millisecond
    assert predict(plain).ttft_s < 80e-3


def test_factors_scale_steps_and_add_the_front_end(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path)
    base = Prediction(ttft_s=0.1, tpot_s=0.01, method="simulated", source=Source.MODELLED)
    assert Factors().apply(row, base) == base
    terms = {"vllm": (0.03, 1e-5, 0.0, 0.0, 2.0)}
    scaled = Factors(kernel={"vllm on hopper": 0.5}, prompts={"vllm with dense": 0.1}, terms=terms).apply(row, base)
    assert scaled.tpot_s == pytest.approx(0.01 * 1.6487, rel=1e-4)
    assert scaled.ttft_s == pytest.approx(0.1 * 1.6487 * 1.1052 + 0.03 + 512e-5 + 2 * scaled.tpot_s, rel=1e-4)


def _synthetic(tmp_path: Path) -> list[tuple[Row, Prediction]]:
    """Rows whose TPOT is 1.3 times the predicted, and whose TTFT has a front end."""
    pairs = []
    for users in (1, 2, 4, 8, 16, 32, 64, 128):
        for prompt in (256, 1024, 4096, 8192):
            base = Prediction(
                ttft_s=0.02 + 4e-5 * prompt, tpot_s=0.01 + 1e-4 * users, method="", source=Source.MODELLED
            )
            (plain,) = _rows(tmp_path, isl=str(prompt), silicon_data_source=f"silicon_concurrency={users};")
            weights = (0.02, 1e-5, 5e-4, 1e-8, 2.0)
            front = sum(c * x for c, x in zip(weights, front_terms(plain, 1.3 * base.tpot_s), strict=True))
            (row,) = _rows(
                tmp_path, isl=str(prompt), silicon_data_source=f"silicon_concurrency={users};",
                silicon_ttft_ms=str(1e3 * (1.3 * base.ttft_s + front)), silicon_tpot_ms=str(1.3e3 * base.tpot_s),
            )  # fmt: skip
            pairs += [(row, base)] * 20
    return pairs


def test_the_fit_finds_factors_that_made_the_rows(tmp_path: Path) -> None:
    pairs = _synthetic(tmp_path)
    factors = fit(pairs)
    for row, base in pairs:
        ours = factors.apply(row, base)
        assert ours.tpot_s == pytest.approx(row.tpot_s, rel=0.02)
        assert ours.ttft_s == pytest.approx(row.ttft_s, rel=0.12)


def test_written_factors_are_read_again(tmp_path: Path) -> None:
    factors = fit(_synthetic(tmp_path)[::20])
    path = tmp_path / "factors.json"
    path.write_text(json.dumps(document(factors)), encoding="utf-8")
    read = load_factors(path)
    assert read.kernel.keys() == factors.kernel.keys()
    assert read.terms["vllm"] == pytest.approx(factors.terms["vllm"], rel=5e-3)
    with pytest.raises(InputError, match="_inferencex_fit"):
        load_factors(tmp_path / "none.json")


def test_the_gradient_of_the_fit_is_that_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    problem = _FrontProblem(
        tables=np.sort(rng.uniform(-2, 1, (12, len(GRID))), axis=1),
        size=rng.uniform(0, 1, (12, 5)),
        measured=rng.uniform(0.1, 2, 12),
        which=rng.integers(0, 2, 12),
        num_frameworks=2,
        prompts=rng.integers(0, 2, (12, 3)).astype(float),
        front=rng.integers(0, 2, (12, 4)).astype(float),
        prompts_penalty=20.0,
    )
    x = rng.normal(size=10 + 3 + 4) / 3
    _, gradient, curvature = problem.loss(x)
    assert np.linalg.eigvalsh(curvature).min() > 0
    for i in range(len(x)):
        step = np.zeros_like(x)
        step[i] = 1e-6
        slope = (problem.loss(x + step)[0] - problem.loss(x - step)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_the_split_of_the_error_adds_up(tmp_path: Path) -> None:
    pairs = _synthetic(tmp_path)[::20]
    rows = [dataclasses.replace(row, id=str(i)) for i, (row, _) in enumerate(pairs)]
    predictions = {str(i): base for i, (_, base) in enumerate(pairs)}
    table = split(rows, predictions, Factors())
    assert sum(line["accounts for"] for line in table) == pytest.approx(table[0]["median abs error"], abs=3e-4)
    assert table[0]["accounts for"] > 0.05  # a third of the step time is missing
    assert split([], {}, Factors()) == []


def test_repeated_measurements_are_compared_with_their_mean(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path)
    again = dataclasses.replace(row, id="b", ttft_s=1.2 * row.ttft_s)
    assert repetition([row, again]) == pytest.approx(1 / 11)
    assert repetition([row, dataclasses.replace(row, id="b")]) == 0.0


def test_the_peer_is_compared_on_the_rows_that_both_answer(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path)
    other = dataclasses.replace(row, id="other")
    path = tmp_path / "peer.csv"
    path.write_text(f"# note\nrow,ttft_ms,tpot_ms\n{key(row.id)},150,8\n{key('other')},,\n", encoding="utf-8")
    figures = beside([(row, 0.1, -0.05), (other, 0.9, 0.9)], path)
    assert (figures["num_rows"], figures["num_rows_asked"], figures["answered_frac"]) == (1, 2, 0.5)
    assert figures["ttft_median_abs_error"] == pytest.approx(0.5)
    assert figures["ours_ttft_median_abs_error"] == pytest.approx(0.1)
    ours, theirs = table(figures, 1.0)
    assert (ours["TTFT on the same"], theirs["TTFT on the same"]) == (pytest.approx(0.1), pytest.approx(0.5))
    assert beside([(other, 0.9, 0.9)], path) == {}
    assert table({}, 1.0) == []


def test_the_peer_is_asked_with_the_columns_of_the_row(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []

    def estimate(**arguments: object) -> object:
        seen.append(arguments)
        if arguments["backend_version"]:
            raise ValueError("old-style raw version")
        return SimpleNamespace(ttft=100.0, tpot=9.0)

    (row,) = _rows(tmp_path, backend_version="0.19.0", batch_size="4")
    assert ask(row, estimate) == (100.0, 9.0)
    assert [call["backend_version"] for call in seen] == ["0.19.0", None]
    assert seen[0]["model_path"] == "meta-llama/Meta-Llama-3.1-70B"
    assert (seen[0]["batch_size"], seen[0]["tp_size"]) == (4, 4)

    def refuse(**_: object) -> object:
        raise RuntimeError("no such model")

    assert ask(row, refuse) is None


def test_the_suite_reads_what_its_own_format_holds(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path)
    assert inferencex._read(tmp_path / "rows.csv") == [row]


@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf"])
@pytest.mark.parametrize("column", ["silicon_ttft_ms", "silicon_tpot_ms"])
def test_a_measured_time_that_is_none_is_refused(tmp_path: Path, column: str, value: str) -> None:
    _rows(tmp_path, **{column: value})
    with pytest.raises(InputError, match=rf"rows.csv, row a: .*{column}.*milliseconds above 0"):
        inferencex.run([tmp_path / "rows.csv"])


def test_endless_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        _rows(tmp_path, isl="inf")
    with pytest.raises(InputError, match=r"rows.csv.*finite"):
        inferencex.run([tmp_path / "rows.csv"])


def test_a_file_with_nothing_to_judge_by_is_refused(tmp_path: Path) -> None:
    halves = {_rows(tmp_path, tp_size=str(tp))[0].half: str(tp) for tp in (1, 2, 4, 8)}
    _rows(tmp_path, tp_size=halves["tune"])
    with pytest.raises(InputError, match=r"rows.csv.*judging half"):
        inferencex.run([tmp_path / "rows.csv"])
    _rows(tmp_path, tp_size=halves["judge"], model_path="nobody/no-such-model")
    result = inferencex.run([tmp_path / "rows.csv"])
    assert result["passed"] is False
    assert result["summary"].startswith("judging half: 0% answered, no errors to tell (aims")


@pytest.mark.parametrize("column", ["id", "silicon_tpot_ms", "decode_moe_ep_size", "prefill_batch_size"])
def test_every_column_that_is_looked_up_is_needed(tmp_path: Path, column: str) -> None:
    _rows(tmp_path)
    path = tmp_path / "rows.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(column, "other", 1), encoding="utf-8")
    with pytest.raises(InputError, match=rf"rows.csv.* lacks the columns {column}; give a CSV"):
        inferencex.run([path])
