"""The decode set as an aggregate, against sums over requests done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.step import AttentionLayers
from plimsoll.core.workload import Workload
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.replica import window_pairs
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel


def lane_of(prompt: list[int], output: list[int], block_size: int = 4, layers: AttentionLayers = ((1, None),)) -> Lane:
    workload = Workload(arrival_s=floats(np.zeros(len(prompt))), prompt_tokens=ints(prompt), output_tokens=ints(output))
    return Lane(Requests(workload, 1 << 30), 0, block_size, layers)


def finished(lane: Lane) -> list[int]:
    taken = lane.take_finished()
    return list(taken[0] if isinstance(taken, tuple) else taken)  # with the blocks they held


def test_read_and_growth_are_sums_over_the_decode_set() -> None:
    lane = lane_of([5, 9], [4, 3])
    lane.start(0, done=5, remaining=3)
    lane.start(1, done=9, remaining=2)
    assert (lane.num, lane.read, lane.grow) == (2, (5 + 1) + (9 + 1), 2)
    lane.mixed(1.0)
    assert lane.read == 7 + 11
    lane.stop(0, done=6)
    assert (lane.num, lane.read, lane.grow) == (1, 11, 1)


def test_blocks_for_counts_who_steps_into_a_new_block() -> None:
    lane = lane_of([4, 6, 7], [9, 9, 9])
    for request, done in enumerate([4, 6, 7]):
        lane.start(request, done, 8)
    # The step that writes token done + 1 needs a block when done is a multiple of 4.
    assert [lane.blocks_for(0, steps) for steps in range(6)] == [0, 1, 2, 3, 3, 4]
    assert lane.blocks_for(0, 12) == 3 * 3, "three whole cycles: three requests, a block each"
    assert lane.blocks_for(1, 1) == 1, "from step 1 on: the second request only"


def test_steps_within_stops_before_the_step_that_lacks_a_block() -> None:
    lane = lane_of([4, 6, 7], [99, 99, 99])
    for request, done in enumerate([4, 6, 7]):
        lane.start(request, done, 98)
    assert [lane.steps_within(free, 50) for free in range(5)] == [0, 1, 2, 4, 5]
    assert lane.steps_within(3 * 13, 50) == 50
    for free in range(12):
        fit = lane.steps_within(free, 50)
        assert lane.blocks_for(0, fit) <= free < lane.blocks_for(0, fit + 1)


def test_who_finishes_is_taken_in_the_order_of_their_last_steps() -> None:
    lane = lane_of([5, 5, 5], [3, 2, 3])
    lane.start(0, 5, 2)
    lane.start(1, 5, 1)
    lane.start(2, 5, 2)
    assert lane.steps_to_finish() == 1
    assert finished(lane) == []
    lane.mixed(1.0)
    assert finished(lane) == [1]
    assert (lane.num, lane.remaining(0)) == (2, 1)
    lane.mixed(2.0)
    assert finished(lane) == [0, 2]
    assert (lane.num, lane.read, lane.grow, sum(lane.hist)) == (0, 0, 0, 0)


def test_a_stopped_request_leaves_a_stale_finish_that_nobody_sees() -> None:
    lane = lane_of([5, 5], [3, 9])
    lane.start(0, 5, 2)
    lane.start(1, 5, 8)
    lane.stop(0, 5)
    assert lane.steps_to_finish() == 8
    for step in range(2):
        lane.mixed(float(step))
    assert finished(lane) == []


def test_a_full_window_reads_no_more_and_stops_growing() -> None:
    lane = lane_of([3], [9], layers=((2, 5), (1, None)))
    lane.start(0, done=3, remaining=8)
    reads = []
    for step in range(4):
        reads.append(lane.read)
        lane.mixed(float(step))
    # Lengths 4, 5, 6, 7: two layers see at most 5 tokens, one sees all.
    assert reads == [2 * 4 + 4, 2 * 5 + 5, 2 * 5 + 6, 2 * 5 + 7]
    lane.stop(0, done=7)
    assert (lane.read, lane.grow) == (0, 0)


def test_a_stretch_of_steps_is_bit_equal_to_its_single_steps() -> None:
    model = KinkedModel(kink=13)
    stretch, single = lane_of([5, 11], [60, 60]), lane_of([5, 11], [60, 60])
    for lane in (stretch, single):
        lane.start(0, 5, 59)
        lane.start(1, 11, 59)
    end_s = stretch.decode(model, 0.25, 40, float("inf"))
    now_s = 0.25
    for _ in range(40):
        now_s = single.decode(model, now_s, 1, float("inf"))
    assert stretch.ends.tolist() == single.ends.tolist()
    assert end_s == now_s == stretch.ends[-1]
    assert stretch.read == single.read


def test_a_stretch_ends_with_the_step_that_reaches_the_stop() -> None:
    model = KinkedModel(kink=10_000)
    lane = lane_of([5], [60])
    lane.start(0, 5, 59)
    step_s = model.step_s(0, 0, 0, 0, 0, 1, 6)
    end_s = lane.decode(model, 0.0, 40, 2.5 * step_s)
    assert len(lane.ends) == 3
    assert lane.ends[1] < 2.5 * step_s <= end_s


@pytest.mark.parametrize("window", [None, 1, 2, 5, 8, 100])
@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("context", [0, 1, 4, 9])
def test_window_pairs_is_the_sum_over_positions(chunk: int, context: int, window: int | None) -> None:
    most = window if window is not None else 10**9
    by_hand = sum(min(position, most) for position in range(context + 1, context + chunk + 1))
    assert window_pairs(chunk, context, window) == by_hand
