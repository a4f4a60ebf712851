"""Prompts and answers on GPUs of their own under a closed loop, and steps that wait for their launches: by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from tests.oracle.models import KinkedModel
from validation._inferencex_causes import split
from validation._inferencex_factors import Factors, kernel_for
from validation._inferencex_fit import fit
from validation._inferencex_launch import LaunchedPrompts
from validation._inferencex_model import Prediction, _answers_s
from validation._inferencex_pooled import PooledRun
from validation._inferencex_pools import Pools, simulate_pools
from validation._inferencex_rows import Row, _seated
from validation._inferencex_seats import load_seats, recipe_for, seats_of, with_total_read

MOST = 12
ONE = Pools(
    num_prompt_workers=1, num_answer_workers=1, prompts_per_step=1, seats=8, prompts_s=[0.0, 1.0],
    token_s=[0.1] * (MOST + 1), transfer_s=0.5,
)  # fmt: skip


def _by_batch(seconds: Callable[[int], float]) -> list[float]:
    return [seconds(num) for num in range(MOST + 1)]


def test_one_user_waits_for_a_prompt_and_its_transfer() -> None:
    ttft_s, tpot_s = simulate_pools(ONE, [11, 21, 5], 1)
    assert ttft_s == pytest.approx([1.5, 1.5, 1.5])
    assert tpot_s == pytest.approx([0.1, 0.1, 0.1])


def test_users_who_come_at_once_queue_for_the_prompt_worker() -> None:
    ttft_s, _ = simulate_pools(ONE, [100] * 4, 4)
    assert ttft_s == pytest.approx([1.5, 2.5, 3.5, 4.5])


def test_prompts_share_a_step_and_workers_take_them_in_turns() -> None:
    together = dataclasses.replace(ONE, prompts_per_step=2, prompts_s=[0.0, 1.25, 1.5])
    assert simulate_pools(together, [100] * 4, 4)[0] == pytest.approx([2.0, 2.0, 3.5, 3.5])
    two = dataclasses.replace(ONE, num_prompt_workers=2)
    assert simulate_pools(two, [100] * 4, 4)[0] == pytest.approx([1.5, 1.5, 2.5, 2.5])


def test_answers_slow_each_other_down() -> None:
    crowded = dataclasses.replace(
        ONE, prompts_per_step=2, prompts_s=[0.0, 1.0, 1.0], token_s=_by_batch(lambda num: 0.1 * num)
    )
    _, tpot_s = simulate_pools(crowded, [11, 21], 2)
    # ten steps of two, 2 s, then ten of one, 1 s
    assert tpot_s == pytest.approx([0.2, 0.15])


def test_a_prompt_without_a_seat_is_ready_and_waits_for_the_end_of_an_answer() -> None:
    single = dataclasses.replace(ONE, seats=1)
    ttft_s, _ = simulate_pools(single, [11, 11], 2)
    # the first answer runs from 1.5 to 2.5; the second prompt was ready at 2, its cache is sent now
    assert ttft_s == pytest.approx([1.5, 2.5 + 0.5])


def test_users_above_the_seats_wait_for_their_share_of_an_answer() -> None:
    rng = np.random.default_rng(1)
    output = rng.integers(800, 1001, 900).tolist()
    quick = dataclasses.replace(ONE, seats=8, prompts_s=[0.0, 1e-4], token_s=[0.01] * (MOST + 1), transfer_s=1e-4)
    ttft_s, _ = simulate_pools(quick, output, 12)
    # twelve users, eight seats: four always wait, so everybody waits for half an answer
    assert ttft_s[100:-100].mean() == pytest.approx(0.5 * 0.01 * 900, rel=0.02)


def test_seats_are_handed_out_in_turns_even_where_another_worker_is_free() -> None:
    pair = dataclasses.replace(ONE, num_answer_workers=2, seats=1)
    # The third request is the first worker's, whose answer is over; the fourth, which is the second one's, comes from
    # the same user and waits for the long answer there, which ends at 2.5 + 11, its own prompt being ready long before.
    ttft_s, _ = simulate_pools(pair, [11, 111, 11, 11], 2)
    third_sent_s, third_s = 2.5, 4.0
    assert ttft_s[2] == pytest.approx(third_s - third_sent_s)
    assert ttft_s[3] == pytest.approx(2.5 + 11.0 + 0.5 - (third_s + 1.0))


def test_frontends_that_do_not_know_of_one_another_overload_a_worker() -> None:
    rng = np.random.default_rng(2)
    output = rng.integers(800, 1001, 700).tolist()
    seven = dataclasses.replace(
        ONE, num_answer_workers=7, seats=1, prompts_s=[0.0, 1e-3], token_s=[0.01] * (MOST + 1), transfer_s=0.0
    )
    alone = simulate_pools(seven, output, 7)[0].mean()
    many = np.mean(
        [simulate_pools(dataclasses.replace(seven, num_frontends=10), output, 7, s)[0].mean() for s in range(4)]
    )
    assert alone < 0.05 * 9.0  # one frontend: hardly anybody waits
    assert 0.3 * 9.0 < many < 0.8 * 9.0  # ten: half an answer


def test_every_request_is_answered_and_nobody_is_early() -> None:
    rng = np.random.default_rng(3)
    output = rng.integers(1, 60, 300).tolist()
    many = dataclasses.replace(
        ONE, num_answer_workers=3, seats=4, token_s=_by_batch(lambda num: 0.01 + 0.002 * num), num_frontends=3
    )
    ttft_s, tpot_s = simulate_pools(many, output, 12, 5)
    assert ttft_s.min() >= 1.5 - 1e-9
    answered = np.array(output) > 1
    assert np.all(tpot_s[answered] >= 0.012 - 1e-9)
    assert np.all(tpot_s[answered] <= 0.018 + 1e-9)


# A run with other step times


RUN = PooledRun(
    pools=dataclasses.replace(ONE, seats=4, prompts_s=[0.0, 0.1], token_s=_by_batch(lambda num: 0.01 + 0.002 * num)),
    users=8,
    output_tokens=200,
)


def test_scaled_steps_scale_a_run() -> None:
    ttft_s, tpot_s = dataclasses.replace(RUN, pools=dataclasses.replace(RUN.pools, transfer_s=0.0)).means()
    twice = dataclasses.replace(RUN, pools=dataclasses.replace(RUN.pools, transfer_s=0.0)).scaled(2.0).means()
    assert twice == pytest.approx((2 * ttft_s, 2 * tpot_s), rel=1e-6)


def test_slow_prompts_leave_the_answers_alone_and_their_users_waiting() -> None:
    slow = RUN.slower_prompts(10.0)
    assert slow.means()[1] < RUN.means()[1]  # smaller batches
    assert slow.means()[0] > RUN.means()[0]
    assert RUN.means(10.0) == pytest.approx(slow.means())


def test_the_factor_that_explains_a_measured_tpot_is_found() -> None:
    measured_s = RUN.scaled(1.4).means()[1]
    assert RUN.kernel_for(measured_s) == pytest.approx(np.log(1.4), abs=0.03)
    assert abs(RUN.kernel_for(1e9)) <= 1.2


def test_a_run_and_its_scaled_ones_share_what_they_know() -> None:
    scaled = RUN.scaled(1.5)
    scaled.means()
    assert scaled._known is RUN._known


# Seats


def _pooled_row(**changed: object) -> Row:
    fields = {
        "mode": "disagg", "model_path": "deepseek-ai/DeepSeek-R1", "backend_version": "0.8.1.post2",
        "prefill_num_workers": "1", "prefill_tp_size": "1", "prefill_attention_dp_size": "8", "decode_num_workers": "4",
        "decode_tp_size": "8", "decode_attention_dp_size": "1", "decode_batch_size": "9", "batch_size": "",
        "silicon_data_source": "db-dump; silicon_concurrency=36; measured=2026-02-05T00:00",
    }  # fmt: skip
    values: dict[str, Any] = {
        "id": "a", "half": "tune", "complete": True, "deployment": "d", "model": "deepseek-ai/DeepSeek-R1",
        "gpu": "GB200", "backend": "trtllm", "precision": "fp8", "concurrency": 36, "prompt_tokens": 1024,
        "output_tokens": 8192, "ttft_s": 1.0, "tpot_s": 0.01,
    }  # fmt: skip
    own = {key: value for key, value in changed.items() if key in values}
    return Row(**{**values, **own, "fields": {**fields, **{k: v for k, v in changed.items() if k not in values}}})


def test_seats_are_those_of_the_public_recipe() -> None:
    assert seats_of(_pooled_row()) == 8
    assert seats_of(_pooled_row(concurrency=4)) == 1
    spread = {"decode_tp_size": "1", "decode_attention_dp_size": "32", "decode_num_workers": "1"}
    assert seats_of(_pooled_row(concurrency=2048, **spread)) == 64 * 32
    assert seats_of(_pooled_row(concurrency=40)) == 8  # near enough


def test_a_layout_without_a_recipe_has_a_seat_for_everybody() -> None:
    assert seats_of(_pooled_row(concurrency=200)) == 200
    assert seats_of(_pooled_row(decode_num_workers="5")) == 36
    assert seats_of(_pooled_row(backend="sglang")) == 36
    assert seats_of(_pooled_row(model="moonshotai/Kimi-K2.5")) == 36
    early = {"silicon_data_source": "silicon_concurrency=48; measured=2025-12-19T00"}
    assert seats_of(_pooled_row(**early)) == 36


def _total_row(gpus: int, users: int, **changed: object) -> Row:
    layout = dict.fromkeys(
        [
            f"{stage}{name}"
            for stage in ("prefill_", "decode_")
            for name in ("num_workers", "tp_size", "attention_dp_size")
        ],
        "",
    )
    source = {"silicon_data_source": f"silicon_concurrency={users}; measured=2025-11-17T00", "mode": "agg"}
    return _pooled_row(
        **{**layout, **source, "tp_size": str(gpus), "precision": "fp4", "concurrency": users, "output_tokens": 1024}
        | changed
    )


def test_a_number_of_gpus_and_users_tell_the_layout_of_a_public_recipe() -> None:
    found = with_total_read(_total_row(12, 2252))
    assert found.is_disaggregated
    assert found.cut("decode_", is_mixture=True) == Parallelism(dp=8, ep=8)
    assert found.cut("prefill_", is_mixture=True) == Parallelism(dp=4, ep=4)
    recipe = recipe_for(found)
    assert recipe is not None
    assert (recipe.drafts, recipe.seats, recipe.num_gpus) == (1, 256 * 8, 12)
    latency = with_total_read(_total_row(36, 8))
    assert latency.fields["decode_num_workers"] == "4"
    assert latency.cut("decode_", is_mixture=True) == Parallelism(tp=8, ep=8)
    spread = with_total_read(_total_row(72, 5376, backend="sglang", precision="fp8"))
    assert (spread.num_ways("num_workers", "prefill_"), spread.num_ways("attention_dp_size", "decode_")) == (3, 48)
    assert seats_of(spread) == 5376


def test_a_row_that_is_no_total_stays_as_it_is() -> None:
    for row in (_total_row(8, 64), _total_row(16, 64), _pooled_row(), _total_row(12, 2252, gpu="B200")):
        assert with_total_read(row) is row


def test_drafts_make_tokens_quicker_as_long_as_few_rows_are_verified() -> None:
    def step_s(rows: int, sequences: int) -> float:
        return 0.01 + 1e-4 * rows + 1e-5 * sequences

    assert _answers_s(step_s, 8, 0, 0.0) == step_s(8, 8)
    few, many = (_answers_s(step_s, batch, 3, 0.05) / step_s(batch, batch) for batch in (1, 4096))
    assert few < 0.6 < 1 < many


def test_every_recipe_of_the_file_is_read_and_a_broken_one_is_named(tmp_path: Path) -> None:
    recipes = [recipe for found in load_seats().values() for recipe in found]
    assert len(recipes) > 100
    assert all(recipe.users for recipe in recipes)
    # the published numbers of users are about the seats of their recipe
    together = [recipe.num_answer_workers * recipe.seats / max(recipe.users) for recipe in recipes]
    assert 0.6 < np.median([share for share in together if share]) < 1.1
    path = tmp_path / "pools.toml"
    path.write_text('["x"]\nctx1_gen1_wide8 = [4]\n', encoding="utf-8")
    with pytest.raises(InputError, match="ctx1_gen1_wide8"):
        load_seats(path)


def test_users_are_a_batch_of_every_rank_where_the_row_does_not_say() -> None:
    fields = {"mode": "disagg", "decode_batch_size": "7", "decode_num_workers": "2", "decode_attention_dp_size": "8"}
    assert _seated(fields) == 112
    assert _seated({"mode": "agg", "batch_size": "5"}) == 5


# Factors of such rows


def test_factors_go_into_the_simulation() -> None:
    row = _pooled_row()
    ttft_s, tpot_s = RUN.means()
    base = Prediction(ttft_s=ttft_s, tpot_s=tpot_s, method="two pools", source=Source.ASSUMED, pooled=RUN)
    factors = Factors(
        kernel={"in two pools": 0.3}, prompts={"trtllm in two pools": 1.0}, terms={"in two pools": (0.25, 0, 0, 0, 0)}
    )
    ours = factors.apply(row, base)
    again = RUN.scaled(np.exp(0.3)).means(np.e)
    assert (ours.ttft_s, ours.tpot_s) == pytest.approx((again[0] + 0.25, again[1]))
    assert kernel_for(row, dataclasses.replace(ours, pooled=RUN)) == pytest.approx(RUN.kernel_for(row.tpot_s), abs=1e-9)


def test_the_fit_finds_what_made_rows_of_two_pools() -> None:
    pairs = []
    for users in (2, 4, 8, 12) * 4:
        for prompts in ("4", "8"):
            run = dataclasses.replace(RUN, users=users, _known={})
            base = Prediction(
                ttft_s=run.means()[0], tpot_s=run.means()[1], method="two pools", source=Source.ASSUMED, pooled=run
            )
            ttft_s, tpot_s = run.scaled(1.25).means(1.3)
            row = _pooled_row(
                id=f"{users}{prompts}{len(pairs)}", concurrency=users, ttft_s=ttft_s + 0.2, tpot_s=tpot_s,
                prefill_num_workers=prompts,
            )  # fmt: skip
            pairs.append((row, base))
    factors = fit(pairs)
    for row, base in pairs:
        ours = factors.apply(row, base)
        assert ours.tpot_s == pytest.approx(row.tpot_s, rel=0.08)
        assert ours.ttft_s == pytest.approx(row.ttft_s, rel=0.25)


def test_the_split_of_the_error_takes_rows_of_two_pools() -> None:
    rows, predictions = [], {}
    for users in (2, 4, 8, 12):
        run = dataclasses.replace(RUN, users=users, _known={})
        slow_s, tpot_s = run.scaled(1.4).means()
        rows.append(_pooled_row(id=str(users), concurrency=users, ttft_s=slow_s, tpot_s=tpot_s))
        predictions[str(users)] = Prediction(
            ttft_s=run.means()[0], tpot_s=run.means()[1], method="two pools", source=Source.ASSUMED, pooled=run
        )
    table = split(rows, predictions, Factors())
    # steps were 1.4 times as long, and nothing else was wrong (the transfer, half a second, has no factor)
    assert table[0]["median abs error"] > 0.1
    assert table[0]["with this part exact"] < 0.1 * table[0]["median abs error"]


# Launches


def test_steps_with_prompts_take_no_less_than_their_launches() -> None:
    inner = KinkedModel()
    model = LaunchedPrompts(inner, 10.0)
    prompts = (64, 1, 64 * 65 // 2, 0, 1, 3, 300)
    assert model.step_s(*prompts) == 10.0
    assert LaunchedPrompts(inner, 0.0).step_s(*prompts) == inner.step_s(*prompts)
    assert model.step_s(0, 0, 0, 0, 0, 3, 300) == inner.step_s(0, 0, 0, 0, 0, 3, 300)
    assert model.decode_line(3, 300) == inner.decode_line(3, 300)
    assert (model.num_stages, model.attention_layers) == (inner.num_stages, inner.attention_layers)
    shape = StepShape(prefill_tokens=64, num_prefill=1, prefill_pairs=64 * 65 // 2, num_prefill_done=1)
    assert model.step(shape).time_s == 10.0
    assert model.step(StepShape(num_decode=3, decode_read_tokens=300)) == inner.step(
        StepShape(num_decode=3, decode_read_tokens=300)
    )
