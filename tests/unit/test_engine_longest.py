"""The longest decode: kept by hand-made lanes, told to the models that ask, and to no others."""

from __future__ import annotations

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.core.step import StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.policies.vllm_v1 import VllmV1
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.longest import LongestLane, WithLongest, lane_for, needs_longest
from plimsoll.engine.replicas.pipeline import PipelineReplica
from plimsoll.engine.replicas.rank_group import NotingModel
from plimsoll.engine.replicas.replica import Replica
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel, SkewedModel
from validation._replay import seen_s


def workload_of(prompt: list[int], output: list[int], arrival_s: list[float] | None = None) -> Workload:
    return Workload(
        arrival_s=floats(np.zeros(len(prompt)) if arrival_s is None else arrival_s),
        prompt_tokens=ints(prompt),
        output_tokens=ints(output),
    )


def lane_of(prompt: list[int], output: list[int]) -> LongestLane:
    return LongestLane(Requests(workload_of(prompt, output), 1 << 30), 0, 4, ((1, None),))


def test_the_longest_grows_with_the_steps_and_changes_hands() -> None:
    lane = lane_of([5, 9, 2], [20, 3, 20])
    assert lane.longest() == 0
    lane.start(0, 5, 19)
    assert lane.longest() == 6, "with the token that is being written"
    lane.start(1, 9, 2)
    lane.start(2, 2, 19)
    assert lane.longest() == 10
    lane.mixed(1.0)
    assert lane.longest() == 11
    lane.mixed(2.0)
    assert lane.take_finished()[0] == [1]
    assert lane.longest() == 8
    lane.stop(0, 7)
    assert lane.longest() == 5
    lane.mixed(3.0)
    lane.resume(0, 7, 17)
    assert lane.longest() == 8, "it stood still while it was out"
    lane.stop(0, 7)
    lane.stop(2, 5)
    assert lane.longest() == 0


def test_who_stops_and_comes_back_at_once_is_counted_once() -> None:
    lane = lane_of([5, 3], [9, 9])
    lane.start(0, 5, 8)
    lane.start(1, 3, 8)
    lane.stop(0, 5)
    lane.start(0, 5, 8)
    assert lane.longest() == 6
    lane.stop(0, 5)
    assert lane.longest() == 4


def test_the_longest_is_the_maximum_over_requests_done_by_hand() -> None:
    rng = np.random.default_rng(5)
    lane = lane_of([400] * 40, [400] * 40)
    done: dict[int, int] = {}
    for step in range(400):
        for request in range(40):
            if request not in done and rng.random() < 0.03:
                done[request] = int(rng.integers(1, 300))
                lane.start(request, done[request], 390)
            elif request in done and rng.random() < 0.02:
                lane.stop(request, done.pop(request))
        assert lane.longest() == max((n + 1 for n in done.values()), default=0)
        lane.mixed(float(step))
        done = {request: n + 1 for request, n in done.items()}
        for request in lane.take_finished()[0]:
            del done[request]


def replica_of(model: KinkedModel | SkewedModel) -> Replica:
    config = EngineConfig(num_blocks=100)
    kind = PipelineReplica if model.num_stages > 1 else Replica
    return kind(Requests(workload_of([5], [5]), 1 << 30), config, model, VllmV1(config))


def test_models_that_do_not_ask_are_asked_as_ever() -> None:
    model = KinkedModel()
    replica = replica_of(model)
    assert not needs_longest(model)
    assert replica.model is model
    assert type(replica.lane) is Lane
    assert replica.lane.longest() == 0
    assert lane_for(SkewedModel()) is LongestLane


@pytest.mark.parametrize("stages", [1, 3])
def test_models_that_ask_are_told_of_the_replicas_lane(stages: int) -> None:
    model = SkewedModel(num_stages=stages)
    replica = replica_of(model)
    assert isinstance(replica.model, WithLongest)
    assert (replica.model.num_stages, replica.model.attention_layers) == (stages, ((1, None),))
    assert all(isinstance(lane, LongestLane) for lane in replica.lanes)
    replica.lane.start(0, 40, 4)
    assert replica.step_s(0, 0, 0, 0, 0, 1, 41) == model.step_s(0, 0, 0, 0, 0, 1, 41, 41)
    assert replica.model.decode_line(1, 41) == model.decode_line(1, 41, 41)
    assert replica.step_s(8, 1, 36, 0, 1, 0, 0) == model.step_s(8, 1, 36, 0, 1, 0, 0)
    shape = StepShape(num_decode=1, decode_read_tokens=41, longest_decode=41)
    assert replica.model.step(shape) == model.step(shape)


def test_windows_and_the_longest_decode_do_not_go_together() -> None:
    class Windowed(KinkedModel):
        needs_longest = True

    with pytest.raises(InputError, match="Windowed"):
        replica_of(Windowed(layers=((1, 40),)))


def test_uneven_lengths_take_longer_than_even_ones_of_the_same_sum() -> None:
    config = EngineConfig(num_blocks=1000)
    even = simulate(workload_of([200, 200], [50, 50]), config, SkewedModel())
    uneven = simulate(workload_of([20, 380], [50, 50]), config, SkewedModel())
    assert uneven.finish_s.max() > even.finish_s.max()
    plain = [simulate(workload_of(p, [50, 50]), config, KinkedModel()) for p in ([200, 200], [20, 380])]
    assert plain[0].finish_s.max() == pytest.approx(plain[1].finish_s.max(), rel=1e-3)


def test_a_model_that_notes_keeps_the_last_step() -> None:
    model = SkewedModel()
    notes = NotingModel(model)
    assert (notes.needs_longest, notes.num_stages, notes.attention_layers) == (True, 1, model.attention_layers)
    assert notes.step_s(1, 2, 3, 4, 5, 6, 7, 8) == 1.0
    assert notes.shape == StepShape(
        prefill_tokens=1,
        num_prefill=2,
        prefill_pairs=3,
        prefill_read_tokens=4,
        num_prefill_done=5,
        num_decode=6,
        decode_read_tokens=7,
        longest_decode=8,
    )
    assert notes.decode_line(3, 30, 15)[:2] == (1.0, 0.0)
    assert notes.shape == StepShape(num_decode=3, decode_read_tokens=30, longest_decode=15)
    assert not NotingModel(KinkedModel()).needs_longest
    assert notes.step(notes.shape) == model.step(notes.shape)


def run_of(arrival_s: list[float], finish_s: list[float], step_end_s: list[float]) -> Run:
    """A run of which only these columns are looked at."""
    workload = workload_of([4] * len(arrival_s), [1] * len(arrival_s), arrival_s)
    run = simulate(workload, EngineConfig(num_blocks=100), KinkedModel())
    object.__setattr__(run, "finish_s", floats(finish_s))
    assert run.timeline is not None
    object.__setattr__(run.timeline, "step_end_s", floats(step_end_s))
    return run


def test_a_request_is_seen_between_two_steps_or_at_once_where_nothing_runs() -> None:
    run = run_of([0.0, 0.5, 0.5, 3.0, 3.2, 3.2], [1.0, 2.0, 2.0, 4.0, 5.0, 5.0], [1.0, 2.0, 4.0, 5.0])
    assert seen_s(run).tolist() == [0.0, 1.0, 1.0, 3.0, 4.0, 4.0]
    together = run_of([1.0, 1.0, 2.0], [2.0, 2.0, 3.0], [2.0, 3.0])
    assert seen_s(together).tolist() == [1.0, 1.0, 2.0]
