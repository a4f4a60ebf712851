"""Replicas behind routers that only count: how seldom they are looked at, and that nobody sees the difference."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, cluster, simulate
from plimsoll.engine.fleets import counting
from plimsoll.engine.fleets.counting import CountingFleet, TooPatientError
from plimsoll.engine.fleets.late_outlook import LateOutlook
from plimsoll.engine.fleets.outlook import Outlook
from plimsoll.engine.policies.vllm_v1 import VllmV1
from plimsoll.engine.replicas.replica import Replica
from plimsoll.engine.requests import Requests
from tests.oracle.models import KinkedModel, SkewedModel
from tests.single_steps import UNCOUNTED, Silent, counted_calls, same_as_single_steps

ROUTERS = ["least-loaded", "power-of-two", "prefix-aware"]


def load(num: int, gap_s: float, prompt: int, output: int, seed: int = 0, **columns: Any) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        arrival_s=floats(np.cumsum(rng.exponential(gap_s, num))),
        prompt_tokens=ints(rng.integers(1, prompt + 1, num)),
        output_tokens=ints(rng.integers(1, output + 1, num)),
        **columns,
    )


def engine(router: str = "least-loaded", replicas: int = 4, **changes: Any) -> EngineConfig:
    given: dict[str, Any] = {"num_blocks": 400, "block_size": 4, "max_num_seqs": 16, "max_num_batched_tokens": 64}
    return EngineConfig(replicas=replicas, router=router, **{**given, **changes})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often replicas are turned to, ahead of the arrivals and not."""
    return counted_calls(monkeypatch, (Replica, "advance"), (Outlook, "turn"), (TooPatientError, "__init__"))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("gap_s", [0.001, 0.02, 0.2])
def test_nobody_sees_that_replicas_are_left_alone(router: str, gap_s: float) -> None:
    """From far too much load to hardly any."""
    same_as_single_steps(load(150, gap_s, 90, 40), engine(router), KinkedModel())


@pytest.mark.parametrize("router", ROUTERS)
def test_nor_where_blocks_run_short(router: str) -> None:
    run = same_as_single_steps(load(200, 0.004, 30, 60), engine(router, num_blocks=70), KinkedModel())
    assert run.preemptions.sum() > 20


@pytest.mark.parametrize("layers", [((1, None), (3, 25)), ((1, 10),)])
def test_nor_where_attention_has_windows(layers: Any) -> None:
    same_as_single_steps(load(120, 0.02, 60, 50), engine(), KinkedModel(layers=layers))


def test_nor_where_steps_wait_for_the_longest_decode() -> None:
    same_as_single_steps(load(120, 0.02, 60, 50), engine(), SkewedModel())


@pytest.mark.parametrize("options", [{"cache_own_blocks": True}, {"scheduling_policy": "priority"}])
def test_nor_of_replicas_that_take_blocks_while_they_plan(options: dict[str, Any]) -> None:
    columns = {"priority": ints(np.arange(150) % 3)}
    for gap_s in (0.002, 0.05):
        workload = load(150, gap_s, 60, 40, **columns)
        same_as_single_steps(workload, engine(num_blocks=120, options=options), KinkedModel())


@pytest.mark.parametrize("options", [{"async_scheduling": True}, {"long_prefill_token_threshold": 7}])
def test_nor_with_late_results_or_a_threshold(options: dict[str, Any]) -> None:
    for gap_s in (0.002, 0.05):
        same_as_single_steps(load(150, gap_s, 60, 40), engine(options=options), KinkedModel())


@pytest.mark.parametrize("policy", ["sarathi-serve", "vllm-v0", "orca"])
def test_nor_with_engines_of_the_other_kernel(policy: str) -> None:
    for gap_s in (0.004, 0.05):
        same_as_single_steps(load(100, gap_s, 60, 40), engine(policy=policy), KinkedModel())


@pytest.mark.parametrize("duration_s", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("gap_s", [0.002, 0.05])
def test_a_cut_run_ends_where_it_should(duration_s: float, gap_s: float) -> None:
    workload = load(200, gap_s, 90, 40)
    run = same_as_single_steps(workload, engine(), KinkedModel(), duration_s=duration_s)
    assert np.nanmax(run.timeline.step_end_s) <= duration_s  # type: ignore[union-attr]


def test_a_step_log_is_that_of_replicas_that_are_looked_at_all_the_time() -> None:
    """With a log nobody runs ahead: it says who waited when."""
    workload = load(150, 0.004, 90, 40)
    config = engine(keep_step_log=True)
    log = simulate(workload, config, KinkedModel()).step_log
    full = simulate(workload, config, KinkedModel(), observer=Silent()).step_log
    assert log is not None
    assert full is not None
    for number in range(4):
        mine, theirs = log.replica == number, full.replica == number
        rows = np.searchsorted(full.time_s[theirs], log.time_s[mine])
        assert np.array_equal(full.time_s[theirs][rows], log.time_s[mine])
        assert np.array_equal(full.num_waiting[theirs][rows], log.num_waiting[mine])
        assert np.array_equal(full.num_running[theirs][rows], log.num_running[mine])


@pytest.mark.interpreted
def test_with_little_to_do_replicas_are_turned_to_once_or_twice_a_request(calls: Counter[str]) -> None:
    """Eight replicas, so that of every arrival seven need not hear; a fleet that looks would take eight turns."""
    num = 400
    simulate(load(num, 0.05, 60, 60), engine(replicas=8), KinkedModel())
    assert num / 2 < calls["turn"] < 2 * num
    assert calls["advance"] == 8, "once each, when nobody will look any more"
    assert not calls["__init__"], "no promise was broken"


@pytest.mark.interpreted
def test_under_much_load_replicas_run_far_ahead(calls: Counter[str]) -> None:
    """Arrivals come in a fifth of the time that they take: whoever is in the queue does not hear of those behind."""
    num = 600
    simulate(load(num, 0.002, 60, 60), engine(replicas=4), KinkedModel())
    assert 0 < calls["turn"] < num / 4


@pytest.mark.interpreted
@pytest.mark.parametrize(("gap_s", "turns"), [(0.05, 2.0), (0.002, 0.3)])
def test_late_replicas_are_turned_to_as_seldom(gap_s: float, turns: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted_calls(monkeypatch, (LateOutlook, "turn"), (TooPatientError, "__init__"))
    num, config = 600, engine(replicas=4, options={"async_scheduling": True})
    simulate(load(num, gap_s, 60, 60), config, KinkedModel())
    assert 0 < calls["turn"] < turns * num
    assert not calls["__init__"]


@pytest.mark.interpreted
def test_of_two_replicas_that_are_drawn_the_others_are_left_alone(calls: Counter[str]) -> None:
    num = 400
    workload = load(num, 0.01, 60, 60)
    simulate(workload, engine("least-loaded", replicas=8), KinkedModel())
    all_turns = calls["turn"]
    calls.clear()
    simulate(workload, engine("power-of-two", replicas=8), KinkedModel())
    assert num / 4 < calls["turn"] < 0.8 * all_turns


@pytest.mark.parametrize("kind", [CountingFleet])
def test_however_it_is_asked_a_fleet_counts_the_same(
    kind: type[CountingFleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All counts, one count, and which of two is smaller."""
    asked: list[int] = []

    class Asks:
        needs_state = counts_requests = True

        def choose(self, fleet: Any, request: int, now_s: float, /) -> int:
            assert type(fleet) is CountingFleet
            one = fleet.load(request % 4)
            every = list(fleet.loads())
            assert every[request % 4] == one
            assert fleet.fewer(1, 2) == (2 if every[2] < every[1] else 1)
            assert fleet.fewer(2, 1) == (1 if every[1] < every[2] else 2)
            seen = [replica.outstanding(now_s) for replica in plain.now(now_s)]
            assert every == seen
            asked.append(request)
            plain.send(every.index(min(every)), request, now_s)
            return every.index(min(every))

    workload, config = load(200, 0.02, 60, 40), engine()
    plain = Beside(workload, config)
    monkeypatch.setattr(cluster, "_build_router", lambda *_: Asks())
    simulate(workload, config, KinkedModel())
    assert asked == list(range(200))


class Beside:
    """Replicas that are brought up to date at every arrival."""

    def __init__(self, workload: Workload, config: EngineConfig) -> None:
        requests = Requests(workload, config.max_model_len)
        self.replicas = [Replica(requests, config, KinkedModel(), VllmV1(config), number) for number in range(4)]

    def now(self, now_s: float) -> list[Replica]:
        for replica in self.replicas:
            replica.advance(now_s)
        return self.replicas

    def send(self, number: int, request: int, now_s: float) -> None:
        self.replicas[number].push((request,), (now_s,))


@pytest.mark.interpreted
def test_a_queue_by_priority_is_not_run_ahead(calls: Counter[str]) -> None:
    num = 200
    workload = load(num, 0.002, 60, 60, priority=ints(np.arange(num) % 3))
    simulate(workload, engine(options={"scheduling_policy": "priority"}), KinkedModel())
    by_priority = calls["turn"]
    calls.clear()
    simulate(workload, engine(), KinkedModel())
    assert by_priority > 1.5 * calls["turn"] > 0


def test_ends_at_one_instant_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers end in one step; whoever arrives then finds that replica empty, with every router that counts."""

    class Second(KinkedModel):
        def decode_line(self, num_decode: int, read: int, /) -> tuple[float, float, int]:
            return 1.0, 0.0, 1 << 60

        def step_s(self, *shape: int) -> float:
            return 1.0

    workload = Workload(
        arrival_s=floats([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]), prompt_tokens=ints([4] * 7),
        output_tokens=ints([3, 9, 3, 9, 3, 9, 1]),
    )  # fmt: skip
    run = simulate(workload, engine(replicas=2), Second())
    assert run.replica.tolist() == [0, 1, 0, 1, 0, 1, 0]
    if UNCOUNTED:
        return
    seen: list[list[int]] = []
    original = counting.CountingFleet._catch_up_all

    def catch_up(self: CountingFleet, now_s: float) -> float:
        soon_s = original(self, now_s)
        assert soon_s > now_s
        seen.append(list(self._loads))
        return soon_s

    monkeypatch.setattr(counting.CountingFleet, "_catch_up_all", catch_up)
    simulate(workload, engine(replicas=2), Second())
    assert seen[-1] == [0, 3]


@pytest.mark.parametrize("budget", [24, 64, 512])
def test_a_lane_tells_of_every_end_in_order(budget: int) -> None:
    """Whoever asks a lane gets each answer's time once, whether it ends among decodes, chunks or both."""
    workload = load(120, 0.004, 90, 12, seed=3)
    config = engine(replicas=1, max_num_batched_tokens=budget, num_blocks=90)
    requests = Requests(workload, config.max_model_len)
    replica = Replica(requests, config, KinkedModel(), VllmV1(config), 0)
    told: deque[float] = deque()
    replica.lane.ended = told
    replica.push(list(range(120)), workload.arrival_s.tolist())
    replica.advance(math.inf)
    run = simulate(workload, config, KinkedModel())
    assert list(told) == sorted(run.finish_s.tolist())


def test_arrivals_of_one_instant_are_taken_at_once_and_later_ones_are_not() -> None:
    workload = Workload(arrival_s=floats([1.0, 1.0, 2.0]), prompt_tokens=ints([4] * 3), output_tokens=ints([2] * 3))
    config = engine(replicas=1)
    replica = Replica(Requests(workload, config.max_model_len), config, KinkedModel(), VllmV1(config), 0)
    replica.push([0, 1, 2], [1.0, 1.0, 2.0])
    for now_s, waiting, next_s in ((1.0, [0, 1], 2.0), (1.5, [0, 1], 2.0), (2.0, [0, 1, 2], math.inf)):
        replica.now_s = now_s
        replica._take_arrivals()
        assert list(replica.waiting) == waiting
        assert replica.next_arrival_s == next_s


def test_every_request_knows_its_replica(calls: Counter[str]) -> None:
    """Written down in one go at the end; a request that was refused has none."""
    workload = load(60, 0.01, 60, 30)
    too_long = np.where(np.arange(60) == 7, 3000, workload.prompt_tokens)  # more than the KV memory
    workload = dataclasses.replace(workload, prompt_tokens=ints(too_long))
    for router in (*ROUTERS, "least-pending-tokens"):
        run = simulate(workload, engine(router), KinkedModel())
        assert run.replica[7] == -1
        assert set(np.delete(run.replica, 7).tolist()) == {0, 1, 2, 3}
    assert UNCOUNTED or calls["turn"]
