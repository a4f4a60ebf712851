"""The load of ML.ENERGY's benchmark, and what its client reads off a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from plimsoll.core.errors import UnknownNameError
from plimsoll.core.run import Run, Status, TokenTimeline
from plimsoll.core.step import FULL_ATTENTION
from plimsoll.perf.power import load_power
from validation import _ml_energy_fit as fit
from validation import _ml_energy_load as load
from validation import ml_energy


def test_lengths_have_the_stated_mean_and_spread() -> None:
    task = load.find_task("lm-arena-chat")
    work = load.requests(task, 64, 400)
    assert len(work) == task.num_requests
    assert not work.arrival_s.any()  # all at once
    assert work.concurrency is None
    assert work.prompt_tokens.mean() == pytest.approx(task.prompt_tokens, rel=0.08)
    assert work.output_tokens.mean() == pytest.approx(400, rel=0.08)
    assert work.output_tokens.std() / work.output_tokens.mean() == pytest.approx(task.output_spread, rel=0.1)
    assert work.output_tokens.max() <= task.max_output_tokens
    assert work.prompt_block_ids is None


def test_the_data_set_is_repeated_for_many_seats() -> None:
    # The benchmark's own numbers of repeats, from the sweeps of its configuration files.
    wanted = {
        "lm-arena-chat": {8: 1, 512: 1, 1024: 2, 1536: 3, 2048: 3},
        "gpqa": {128: 1, 256: 2, 512: 3, 768: 5, 1024: 6, 2048: 12, 3072: 18},
    }
    for name, repeats in wanted.items():
        task = dataclasses.replace(load.find_task(name))
        for seats, times in repeats.items():
            most = load.MOST_TURNOVERS * seats
            assert len(load.requests(task, seats, 50)) == min(task.num_requests * times, max(most, load.FEWEST))


def test_copies_of_a_prompt_share_its_blocks() -> None:
    task = load.find_task("lm-arena-chat")
    work = load.requests(task, 1024, 300)
    ids, offsets = work.prompt_block_ids, work.prompt_block_offsets
    assert ids is not None
    assert offsets is not None
    distinct = task.num_requests
    assert np.array_equal(work.prompt_tokens[:distinct], work.prompt_tokens[distinct:])
    for i in (0, 17, distinct - 1):
        first, again = (ids[offsets[k] : offsets[k + 1]] for k in (i, i + distinct))
        assert np.array_equal(first, again)
        assert len(first) == work.prompt_tokens[i] // load.BLOCK
    assert len(np.unique(ids)) == offsets[distinct]
    assert load.requests(task, 1024, 300, contents=False).prompt_block_ids is None


def test_an_unknown_task_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="sourcegraph-fim"):
        load.find_task("poems")
    with pytest.raises(UnknownNameError):
        load.find_task("source")  # a fact of the file, no task


def _run() -> Run:
    """Three requests on one engine; the third gets a seat when the first has finished.

    step      0     1     2     3     4
    ends      1.0   1.5   2.0   4.0   4.5
    request 0 first token token
    request 1 first token token token token
    request 2                   first token
    """
    line = TokenTimeline(
        step_end_s=np.array([1.0, 1.5, 2.0, 4.0, 4.5]),
        lane_offsets=np.array([0, 5]),
        slice_request=np.array([0, 1, 2]),
        slice_begin=np.array([0, 0, 3]),
        slice_end=np.array([3, 5, 5]),
    )
    return Run(
        arrival_s=np.zeros(3), scheduled_s=np.array([0.0, 0.0, 2.0]), first_token_s=np.array([1.0, 1.0, 4.0]),
        finish_s=np.array([2.0, 4.5, 4.5]), prompt_tokens=np.array([10, 20, 30]), output_tokens=np.array([3, 5, 2]),
        cached_tokens=np.array([0, 0, 16]), preemptions=np.zeros(3, int), replica=np.zeros(3, int),
        status=np.full(3, Status.FINISHED, np.int8), timeline=line, end_s=4.5,
    )  # fmt: skip


def test_steps_of_a_run_and_the_median_latency() -> None:
    steps = load.steps_of(_run())
    assert steps.took_s.tolist() == [1.0, 0.5, 0.5, 2.0, 0.5]
    assert steps.tokens.tolist() == [2, 2, 2, 2, 2]
    assert steps.decoding.tolist() == [0, 2, 2, 1, 2]
    assert steps.median_latency_s() == 0.5  # six of seven tokens that are no first ones


def test_lanes_begin_at_zero() -> None:
    run = _run()
    assert run.timeline is not None
    line = dataclasses.replace(run.timeline, lane_offsets=np.array([0, 3, 5]), step_end_s=np.array([1, 1.5, 2, 0.7, 1]))
    steps = load.steps_of(dataclasses.replace(run, timeline=line))
    assert steps.took_s.tolist() == pytest.approx([1.0, 0.5, 0.5, 0.7, 0.3])


def test_the_window_goes_from_full_seats_to_the_first_free_one() -> None:
    run = _run()
    assert load.window(run, 1) == (1.0, 2.0)  # the second-last but one finishes at 2.0
    assert load.window(run, 2) == (1.0, 2.0)
    assert load.window(run, 3) == (0.0, 4.5)  # nobody waits: no steady state, so all of it


def test_the_fit_prices_the_very_steps_of_a_run() -> None:
    table = fit._step_table(_run(), FULL_ATTENTION)
    assert table[:, 0].tolist() == [30, 0, 0, 14, 0]  # prompt tokens, less those in the cache
    assert table[:, 1].tolist() == table[:, 4].tolist() == [2, 0, 0, 1, 0]
    assert table[:, 5].tolist() == [0, 2, 2, 1, 2]
    # request 0 reads 11 then 12, request 1 reads 21 to 24, request 2 reads 31
    assert table[:, 6].tolist() == [0, 32, 34, 23, 24 + 31]
    assert table[3, 2] == 14 * (30 - 7)


def test_the_fit_folds_windows() -> None:
    table = fit._step_table(_run(), ((1, None), (3, 22)))
    full, windowed = [0, 32, 34, 23, 55], [0, 11 + 21, 12 + 22, 22, 22 + 22]
    assert table[:, 6].tolist() == [a + 3 * b for a, b in zip(full, windowed, strict=True)]


ROW = {
    "model": "Qwen/Qwen3-30B-A3B-Instruct-2507", "task": "lm-arena-chat", "weights": "bfloat16", "gpu": "B200",
    "num_gpus": "2", "tp": "1", "ep": "2", "dp": "1", "max_num_seqs": "32", "avg_output_tokens": "60",
    "output_tokens_per_s": "2000", "median_itl_ms": "12", "avg_power_w": "1400", "joules_per_output_token": "0.3",
}  # fmt: skip


def test_the_fit_sees_what_the_suite_says() -> None:
    case = fit.case_of(ROW)
    assert case.num_gpus == 2
    assert case.architecture == "blackwell"
    constants = fit.first_constants([case])
    wanted = {name for name in constants if not name.startswith("hopper")}
    assert set(constants) == wanted
    steps = ml_energy._steps(ROW["model"], "B200", ml_energy._cut(ROW), "bf16")
    now = {**{name: getattr(steps._vllm, name) for name in fit.SHARED}}  # type: ignore[attr-defined]
    now |= {f"blackwell {name}": getattr(steps._vllm, name) for name in fit.OWN["blackwell"]}  # type: ignore[attr-defined]
    ratio = fit.ratios([case], now)[0]
    itl, throughput, watts, _ = ml_energy.row_errors(ROW)
    assert ratio == pytest.approx([1 + itl, 1 + throughput], rel=0.02)
    coefficients = load_power()["blackwell"]
    assert fit.watts_of(case, coefficients) * 2 / 1400 == pytest.approx(1 + watts, rel=1e-6)


def test_a_fit_moves_towards_the_measurements_and_no_further() -> None:
    case = fit.case_of(ROW)
    start = fit.first_constants([case])
    itl, throughput = fit.ratios([case], {**start, "per_step_s": 3e-3})[0]
    row = {
        **ROW,
        "median_itl_ms": str(itl * float(ROW["median_itl_ms"])),
        "output_tokens_per_s": str(throughput * float(ROW["output_tokens_per_s"])),
    }
    asked = dataclasses.replace(case, row=row)
    before, after = (fit.loss(fit.ratios([asked], c)) for c in (start, fit.fit([asked], start)))
    assert after < 0.3 * before
    assert fit.loss(np.array([1.0, 1e9])) == fit.WORST / 2


def test_all_rows_of_a_model_are_in_one_fold() -> None:
    names = ("Qwen/Qwen3-14B", "Qwen/Qwen3-32B", "google/gemma-3-27b-it", "meta-llama/Llama-3.1-8B-Instruct")
    rows = [{**ROW, "model": name, "gpu": gpu} for name in names for gpu in ("H100", "B200")]
    place = fit.folds(rows)
    assert all(place[2 * i] == place[2 * i + 1] for i in range(len(names)))
    assert len(set(place.tolist())) > 1
    # the same shape under another name is the same model
    assert len(set(fit.folds([ROW, {**ROW, "model": "Qwen/Qwen3-Coder-30B-A3B-Instruct"}]).tolist())) == 1
