"""How often a growing queue is found, and a stable one is taken for growing: textbook queues with fixed seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plimsoll.core.run import Run
from plimsoll.metrics import is_queue_growing
from tests.metrics_runs import behind_a_link, shared_server, single_server, unhurried_batch

REPETITIONS = 100


def share_growing(load: float, num_requests: int, service_cv: float = 1.0) -> float:
    return share_of(lambda rng: single_server(rng, num_requests, load, service_cv))


def share_of(make: Callable[[np.random.Generator], Run]) -> float:
    rng = np.random.default_rng(7)
    return sum(is_queue_growing(make(rng)).growing for _ in range(REPETITIONS)) / REPETITIONS


@pytest.mark.parametrize(
    ("load", "num_requests", "most"),
    [(0.5, 200, 0.05), (0.8, 200, 0.1), (0.8, 1000, 0.03), (0.8, 10_000, 0.03), (0.9, 3000, 0.05)],
)
def test_a_stable_queue_is_rarely_called_growing(load: float, num_requests: int, most: float) -> None:
    assert share_growing(load, num_requests) <= most


@pytest.mark.parametrize(
    ("load", "num_requests", "least"),
    [(1.1, 1000, 0.7), (1.1, 3000, 0.9), (1.1, 10_000, 0.99), (1.2, 1000, 0.95), (1.5, 200, 0.97)],
)
def test_an_overloaded_queue_is_found(load: float, num_requests: int, least: float) -> None:
    assert share_growing(load, num_requests) >= least


def test_steady_service_is_told_apart_sooner() -> None:
    assert share_growing(1.1, 1000, service_cv=0.3) >= share_growing(1.1, 1000, service_cv=1.0)
    assert share_growing(0.9, 1000, service_cv=0.3) <= 0.03


@pytest.mark.parametrize(("num_requests", "stays_long"), [(100, 5.0), (100, 8.0), (200, 5.0), (400, 5.0), (400, 20.0)])
def test_a_batch_that_fills_up_at_light_load_is_no_overload(num_requests: int, stays_long: float) -> None:
    assert share_of(lambda rng: unhurried_batch(rng, num_requests, stays_long)) <= 0.03


@pytest.mark.parametrize(("load", "num_requests", "least"), [(1.1, 1000, 0.85), (1.2, 300, 0.8), (1.5, 100, 0.85)])
def test_a_shared_server_that_falls_behind_is_found_though_nobody_waits(
    load: float, num_requests: int, least: float
) -> None:
    assert share_of(lambda rng: shared_server(rng, num_requests, load)) >= least


def test_a_shared_server_that_keeps_up_is_stable() -> None:
    assert share_of(lambda rng: shared_server(rng, 300, 0.8)) <= 0.03


@pytest.mark.parametrize(("load", "num_requests", "half_full"), [(0.4, 200, 20.0), (0.5, 200, 15.0), (0.5, 400, 25.0)])
def test_a_batch_whose_steps_get_slower_as_it_fills_is_no_overload(
    load: float, num_requests: int, half_full: float
) -> None:
    """As a mixture of experts reads more of them in a fuller batch."""
    assert share_of(lambda rng: shared_server(rng, num_requests, load, half_full)) <= 0.03


@pytest.mark.parametrize(("load", "num_requests"), [(1.1, 1000), (1.2, 400)])
def test_a_batch_that_is_beyond_its_limit_is_found_though_it_fills_too(load: float, num_requests: int) -> None:
    assert share_of(lambda rng: shared_server(rng, num_requests, load, 15.0)) >= 0.95


@pytest.mark.parametrize(("load", "num_requests", "least"), [(1.2, 1000, 0.95), (2.0, 200, 0.97), (7.0, 200, 0.99)])
def test_an_overloaded_link_between_pools_is_found(load: float, num_requests: int, least: float) -> None:
    assert share_of(lambda rng: behind_a_link(rng, num_requests, load)) >= least


@pytest.mark.parametrize(("load", "num_requests", "most"), [(0.5, 200, 0.01), (0.8, 200, 0.1), (0.9, 1000, 0.05)])
def test_a_link_that_keeps_up_is_stable(load: float, num_requests: int, most: float) -> None:
    assert share_of(lambda rng: behind_a_link(rng, num_requests, load)) <= most
