"""Ranks that step together: stretches of decodes by hand, and which engines can."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.step import FULL_ATTENTION
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.cluster import can_step_together
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.lockstep import add_decodes, decode_ends
from plimsoll.engine.replicas.replica import INFINITE
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel

NEVER_S = (INFINITE, INFINITE)


class Line(KinkedModel):
    """A second, a tenth for each sequence and a hundredth for each token read; the line ends at 1000 tokens."""

    def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
        return 1.0 + 0.1 * num_decode, 0.01, 1000 if read < 1000 else 1 << 60


def workload(prompt: list[int], output: int = 50) -> Workload:
    zeros = [0.0] * len(prompt)
    return Workload(arrival_s=floats(zeros), prompt_tokens=ints(prompt), output_tokens=ints([output] * len(prompt)))


def lanes(*prompts: list[int]) -> list[Lane]:
    """A lane for each list, in which prompts of these lengths have got their first token at second 0."""
    requests = Requests(workload([prompt for each in prompts for prompt in each]), 1 << 20)
    made, request = [], 0
    for number, each in enumerate(prompts):
        lane = Lane(requests, number, 16, FULL_ATTENTION)
        lane.ends.append(0.0)
        for prompt in each:
            lane.start(request, prompt, 49)
            request += 1
        made.append(lane)
    return made


def test_a_step_takes_as_long_as_the_slowest_rank_with_everybody_having_its_rows() -> None:
    few, many = lanes([9], [3, 4])
    model = Line()
    decodes = [(few, model), (many, model)]
    # few: 1 + 0.1·2 + 0.01·2·10; many: 1 + 0.1·4 + 0.01·2·(4 + 5), and two tokens a rank more in each step
    ends = decode_ends(decodes, 2, 0.0, 5.0, 3, NEVER_S)
    assert ends.tolist() == pytest.approx([5.0 + 1.58, 5.0 + 1.58 + 1.62, 5.0 + 1.58 + 1.62 + 1.66])
    assert decode_ends(decodes, 2, 1.6, 5.0, 2, NEVER_S).tolist() == pytest.approx([6.6, 8.22])
    (longest,) = lanes([99])
    assert decode_ends([(longest, model)], 1, 0.0, 0.0, 1, NEVER_S).tolist() == pytest.approx([2.1])


def test_a_stretch_stops_behind_a_time_or_one_step_later() -> None:
    (lane,) = lanes([9])
    decodes = [(lane, Line())]
    ends = decode_ends(decodes, 1, 0.0, 0.0, 40, NEVER_S)
    assert len(ends) == 40
    third_s = ends[2]
    assert len(decode_ends(decodes, 1, 0.0, 0.0, 40, (third_s, INFINITE))) == 3, (
        "whoever comes then is in the next plan"
    )
    assert len(decode_ends(decodes, 1, 0.0, 0.0, 40, (INFINITE, third_s))) == 4, "that was planned without them"
    assert len(decode_ends(decodes, 1, 0.0, 0.0, 40, (0.0, 0.0))) == 1


def test_a_stretch_ends_where_a_line_does_and_goes_on_to_the_last_bit() -> None:
    (lane,) = lanes([980])
    decodes = [(lane, Line())]
    first = decode_ends(decodes, 1, 0.0, 0.0, 40, NEVER_S)
    assert len(first) == 1000 - 981
    add_decodes(lane, first)
    assert lane.read == 1000
    assert lane.ends[-1] == first[-1]
    rest = decode_ends(decodes, 1, 0.0, first[-1], 40 - len(first), NEVER_S)
    now_s = 0.0
    for read in range(981, 1021):
        now_s += 1.1 + 0.01 * read
    assert rest[-1] == now_s


@pytest.mark.parametrize(
    "options", [{"async_scheduling": True}, {"scheduling_policy": "priority"}, {"cache_own_blocks": True}, {}]
)
def test_engines_of_vllms_kind_step_together_on_one_stage(options: dict[str, bool]) -> None:
    config = EngineConfig(num_blocks=100, ranks=2, options=options)
    assert can_step_together(config, workload([5]), KinkedModel())
    assert not can_step_together(config, workload([5]), KinkedModel(num_stages=2))


def test_late_ranks_keep_an_arrival_waiting_for_a_step_and_nobody_else() -> None:
    rows = dataclasses.replace(workload([8, 8, 8], 20), arrival_s=floats([0.0, 0.0, 0.02]))
    on_time = EngineConfig(num_blocks=100, ranks=2, options={"enable_prefix_caching": False})
    late = dataclasses.replace(on_time, options={**on_time.options, "async_scheduling": True})
    mine, theirs = simulate(rows, late, KinkedModel()), simulate(rows, on_time, KinkedModel())
    np.testing.assert_array_equal(mine.first_token_s[:2], theirs.first_token_s[:2])
    assert mine.timeline is not None
    step_ends = mine.timeline.token_times_s(0)
    assert theirs.scheduled_s[2] == step_ends[np.searchsorted(step_ends, 0.02)]
    assert mine.scheduled_s[2] == step_ends[np.searchsorted(step_ends, 0.02) + 1]
