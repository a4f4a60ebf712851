"""Replicas behind a router that counts tokens: their progress is foretold, and nobody sees the difference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, cluster, simulate
from plimsoll.engine.fleets.course import Course
from plimsoll.engine.fleets.following import FollowingFleet, followed
from plimsoll.engine.policies.vllm_v1 import VllmV1
from plimsoll.engine.replicas.replica import Replica
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel
from tests.single_steps import UNCOUNTED, Silent, counted_calls, same_as_single_steps


def load(num: int, gap_s: float, prompt: int, output: int, seed: int = 0, **columns: Any) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        arrival_s=floats(np.cumsum(rng.exponential(gap_s, num))),
        prompt_tokens=ints(rng.integers(1, prompt + 1, num)),
        output_tokens=ints(rng.integers(1, output + 1, num)),
        **columns,
    )


def engine(replicas: int = 4, **changes: Any) -> EngineConfig:
    given: dict[str, Any] = {"num_blocks": 400, "block_size": 4, "max_num_seqs": 16, "max_num_batched_tokens": 64}
    return EngineConfig(replicas=replicas, router="least-pending-tokens", **{**given, **changes})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often replicas are turned to, and the fleets of whom that is asked."""
    return counted_calls(monkeypatch, (Course, "turn"), (Course, "_foretell"), (FollowingFleet, "least_pending"))


@pytest.mark.parametrize("gap_s", [0.001, 0.02, 0.2])
def test_nobody_sees_that_progress_is_foretold(gap_s: float, calls: Counter[str]) -> None:
    """From far too much load to hardly any."""
    same_as_single_steps(load(150, gap_s, 90, 40), engine(), KinkedModel())
    assert UNCOUNTED or calls["least_pending"] == 150
    assert UNCOUNTED or calls["_foretell"]


def test_nor_where_blocks_run_short(calls: Counter[str]) -> None:
    run = same_as_single_steps(load(200, 0.004, 30, 60), engine(num_blocks=70), KinkedModel())
    assert run.preemptions.sum() > 20
    assert UNCOUNTED or calls["least_pending"] == 200


@pytest.mark.parametrize("column", ["max_output_tokens", "predicted_output_tokens"])
def test_nor_where_more_is_expected_than_there_will_be(column: str, calls: Counter[str]) -> None:
    for gap_s in (0.002, 0.02):
        workload = load(150, gap_s, 60, 40)
        told = {column: workload.output_tokens + ints(np.arange(150) % 37)}
        same_as_single_steps(load(150, gap_s, 60, 40, **told), engine(), KinkedModel())
    assert UNCOUNTED or calls["least_pending"] == 300


def test_where_answers_outlive_what_is_expected_requests_are_counted_one_by_one(calls: Counter[str]) -> None:
    same_as_single_steps(
        load(100, 0.01, 60, 40, predicted_output_tokens=ints(np.full(100, 5))), engine(), KinkedModel()
    )
    assert not calls["least_pending"]


@pytest.mark.parametrize("layers", [((1, None), (3, 25)), ((1, 10),)])
def test_attention_windows_are_not_followed(layers: Any, calls: Counter[str]) -> None:
    """Read tokens are no lengths there."""
    workload, config, model = load(120, 0.02, 60, 50), engine(), KinkedModel(layers=layers)
    assert simulate(workload, config, model).equal(simulate(workload, config, model, observer=Silent()))
    assert not calls["turn"]


def test_nor_are_replicas_that_go_by_priority(calls: Counter[str]) -> None:
    for options in ({"scheduling_policy": "priority"}, {"scheduling_policy": "priority", "async_scheduling": True}):
        workload = load(100, 0.01, 60, 40, priority=ints(np.arange(100) % 3))
        same_as_single_steps(workload, engine(options=options), KinkedModel())
    assert not calls["turn"]
    assert not calls["least_pending"]


@pytest.mark.parametrize("options", [{"long_prefill_token_threshold": 7}, {"watermark": 0.3}])
def test_thresholds_and_watermarks_are(options: dict[str, Any], calls: Counter[str]) -> None:
    for gap_s in (0.002, 0.02):
        same_as_single_steps(load(150, gap_s, 90, 40), engine(options=options), KinkedModel())
    assert UNCOUNTED or calls["turn"]


def test_a_budget_smaller_than_the_decodes_makes_some_of_them_wait(calls: Counter[str]) -> None:
    """Then not everybody gets a token, and nothing is foretold."""
    same_as_single_steps(load(150, 0.01, 12, 60), engine(max_num_batched_tokens=5), KinkedModel())
    assert UNCOUNTED or calls["turn"]


@pytest.mark.parametrize("duration_s", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("gap_s", [0.002, 0.05])
def test_a_cut_run_ends_where_it_should(duration_s: float, gap_s: float) -> None:
    run = same_as_single_steps(load(200, gap_s, 90, 40), engine(), KinkedModel(), duration_s=duration_s)
    assert np.nanmax(run.timeline.step_end_s) <= duration_s  # type: ignore[union-attr]


@pytest.mark.interpreted
def test_replicas_are_turned_to_two_or_three_times_a_request(calls: Counter[str]) -> None:
    num = 400
    simulate(load(num, 0.05, 60, 60), engine(replicas=8), KinkedModel())
    assert num < calls["turn"] < 3 * num
    calls.clear()
    simulate(load(num, 0.002, 60, 60), engine(), KinkedModel())
    assert 0 < calls["turn"] < num


def test_whenever_it_is_asked_a_fleet_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """At arrivals, at the very ends of steps, and between them."""
    workload, config = load(200, 0.02, 60, 40), engine()
    requests = Requests(workload, config.max_model_len)
    plain = [Replica(requests, config, KinkedModel(), VllmV1(config), number) for number in range(4)]
    seen: list[int] = []

    class Asks:
        needs_state = counts_tokens = True

        def choose(self, fleet: Any, request: int, now_s: float, /) -> int:
            assert type(fleet) is FollowingFleet
            expected = []
            for replica in plain:
                replica.advance(now_s)
                held = [*replica.sent[replica.num_arrived :], *replica.waiting]
                whole = sum(requests.final[one] for one in (*held, *replica.running))
                expected.append(whole - sum(map(replica.cached_tokens, replica.running)))
            assert fleet.pending_tokens() == expected
            chosen: int = fleet.least_pending()
            assert chosen == expected.index(min(expected))
            plain[chosen].push((request,), (now_s,))
            seen.append(request)
            return chosen

    monkeypatch.setattr(cluster, "_build_router", lambda *_: Asks())
    simulate(workload, config, KinkedModel())
    assert seen == list(range(200))


class Even(KinkedModel):
    """Every step takes the eighth of a second, whatever is in it, so that arrivals can meet the ends of steps."""

    def step_s(self, *shape: int) -> float:
        return 0.125

    def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
        return 0.125, 0.0, 1 << 60


def test_arrivals_at_the_very_end_of_a_step_see_what_they_should(calls: Counter[str]) -> None:
    """Where the root is a whole number nobody can tell from it, so steps are run."""
    rng = np.random.default_rng(4)
    workload = load(150, 0.1, 40, 60)
    arrival_s = floats(np.sort(rng.integers(0, 120, 150) * 0.125))
    workload = Workload(arrival_s=arrival_s, prompt_tokens=workload.prompt_tokens, output_tokens=workload.output_tokens)
    config = engine()
    assert simulate(workload, config, Even()).equal(simulate(workload, config, Even(), observer=Silent()))
    assert UNCOUNTED or calls["least_pending"] == 150


def test_who_can_be_followed() -> None:
    workload = load(10, 0.1, 40, 60)
    for changes, expected in (({}, True), ({"keep_step_log": True}, False)):
        config = engine(**changes)
        requests = Requests(workload, config.max_model_len)
        replica = Replica(requests, config, KinkedModel(), VllmV1(config))
        known = followed([replica], requests)
        assert (known is not None) == expected
        assert known is None or known == requests.final
