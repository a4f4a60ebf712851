"""Users of a closed loop who reach one replica in a way of the caller's own."""

from __future__ import annotations

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.arrivals import Arrivals
from plimsoll.engine.cluster import serve_arrivals
from tests.oracle.models import KinkedModel

CONFIG = EngineConfig(num_blocks=300, max_num_seqs=8, max_num_batched_tokens=256)
MODEL = KinkedModel()


def _workload(users: int | None, num: int = 40) -> Workload:
    rng = np.random.default_rng(5)
    prompt, output = rng.integers(10, 200, num), rng.integers(1, 40, num)
    prompt[7] = 16 * 300 + 1  # fits nowhere
    return Workload(
        arrival_s=floats(np.zeros(num)), prompt_tokens=ints(prompt), output_tokens=ints(output), concurrency=users
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_plain_arrivals_are_those_of_simulate(ranks: int) -> None:
    config = EngineConfig(num_blocks=300, max_num_seqs=8, max_num_batched_tokens=256, ranks=ranks)
    own, plain = (serve_arrivals(_workload(6), config, MODEL, Arrivals), simulate(_workload(6), config, MODEL))
    assert np.array_equal(own.first_token_s, plain.first_token_s, equal_nan=True)
    assert np.array_equal(own.finish_s, plain.finish_s, equal_nan=True)
    assert np.array_equal(own.arrival_s, plain.arrival_s, equal_nan=True)
    assert np.array_equal(own.status, plain.status)


def test_the_caller_makes_the_arrivals_of_those_who_fit() -> None:
    seen: list[list[int]] = []

    def make(workload: Workload, accepted: list[int]) -> Arrivals:
        seen.append(accepted)
        return Arrivals(workload, accepted)

    serve_arrivals(_workload(6), CONFIG, MODEL, make)
    assert seen == [[request for request in range(40) if request != 7]]


def test_an_open_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="closed loops"):
        serve_arrivals(_workload(None), CONFIG, MODEL, Arrivals)
