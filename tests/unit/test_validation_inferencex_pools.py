"""Prompts and answers on GPUs of their own under a closed loop, and steps that wait for their launches: by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from plimsoll.core.step import StepShape
from tests.oracle.models import KinkedModel
from validation._inferencex_launch import LaunchedPrompts
from validation._inferencex_pools import Pools, simulate_pools

ONE = Pools(
    num_prompt_workers=1, num_answer_workers=1, prompts_per_step=1, seats=8, prompts_s=lambda num: 1.0,
    token_s=lambda num: 0.1, transfer_s=0.5,
)  # fmt: skip


def test_one_user_waits_for_a_prompt_and_its_transfer() -> None:
    ttft_s, tpot_s = simulate_pools(ONE, [11, 21, 5], 1)
    assert ttft_s == pytest.approx([1.5, 1.5, 1.5])
    assert tpot_s == pytest.approx([0.1, 0.1, 0.1])


def test_users_who_come_at_once_queue_for_the_prompt_worker() -> None:
    ttft_s, _ = simulate_pools(ONE, [100] * 4, 4)
    assert ttft_s == pytest.approx([1.5, 2.5, 3.5, 4.5])


def test_prompts_share_a_step_and_workers_share_the_queue() -> None:
    together = dataclasses.replace(ONE, prompts_per_step=2, prompts_s=lambda num: 1.0 + 0.25 * num)
    assert simulate_pools(together, [100] * 4, 4)[0] == pytest.approx([2.0, 2.0, 3.5, 3.5])
    two = dataclasses.replace(ONE, num_prompt_workers=2)
    assert simulate_pools(two, [100] * 4, 4)[0] == pytest.approx([1.5, 1.5, 2.5, 2.5])


def test_answers_slow_each_other_down() -> None:
    crowded = dataclasses.replace(ONE, prompts_per_step=2, token_s=lambda num: 0.1 * num)
    _, tpot_s = simulate_pools(crowded, [11, 21], 2)
    # ten steps of two, 2 s, then ten of one, 1 s
    assert tpot_s == pytest.approx([0.2, 0.15])


def test_a_user_without_a_seat_waits_for_the_end_of_an_answer() -> None:
    single = dataclasses.replace(ONE, seats=1)
    ttft_s, _ = simulate_pools(single, [11, 11], 2)
    assert ttft_s == pytest.approx([1.5, 2.5 + 1.5])


def test_seats_are_handed_out_in_turns_even_where_another_worker_is_free() -> None:
    pair = dataclasses.replace(ONE, num_answer_workers=2, seats=1)
    # The third request comes when the first worker's answer ends and is the first worker's; the fourth, which is the
    # second one's, comes from the same user and waits for the long answer there.
    ttft_s, _ = simulate_pools(pair, [11, 111, 11, 11], 2)
    assert ttft_s[2] == pytest.approx(1.5)
    assert ttft_s[3] == pytest.approx(2.5 + 11.0 - 5.0 + 1.5)


def test_every_request_is_answered_and_nobody_is_early() -> None:
    rng = np.random.default_rng(3)
    output = rng.integers(1, 60, 300).tolist()
    many = dataclasses.replace(ONE, num_answer_workers=3, seats=4, token_s=lambda num: 0.01 + 0.002 * num)
    ttft_s, tpot_s = simulate_pools(many, output, 12)
    assert ttft_s.min() >= 1.5 - 1e-9
    answered = np.array(output) > 1
    assert np.all(tpot_s[answered] >= 0.012 - 1e-9)
    assert np.all(tpot_s[answered] <= 0.018 + 1e-9)


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
