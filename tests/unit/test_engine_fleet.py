"""Tokens still to come, as a fleet tells routers: kept as sums, and the same as counted request by request."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest

from plimsoll.core.columns import floats, ints
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, cluster, simulate
from plimsoll.engine.fleets.fleet import Fleet, expected_tokens
from plimsoll.engine.fleets.following import FollowingFleet
from plimsoll.engine.plugins import list_plugins
from plimsoll.engine.replicas.replica import Replica
from tests.oracle.models import KinkedModel
from tests.single_steps import UNCOUNTED, counted_calls, same_as_single_steps

LATE = {"async_scheduling": True}
KINDS: dict[str, dict[str, Any]] = {
    "late": LATE,
    "late, caching": {**LATE, "cache_own_blocks": True},
    "late, by priority": {**LATE, "scheduling_policy": "priority"},
    "by priority": {"scheduling_policy": "priority"},
    "caching": {"cache_own_blocks": True},
}


def load(num: int, gap_s: float, **changes: Any) -> Workload:
    rng = np.random.default_rng(5)
    workload = Workload(
        arrival_s=floats(np.cumsum(rng.exponential(gap_s, num))),
        prompt_tokens=ints(rng.integers(1, 90, num)),
        output_tokens=ints(rng.integers(1, 60, num)),
        priority=ints(rng.integers(0, 3, num)),
    )
    return dataclasses.replace(workload, **changes)


def engine(options: dict[str, Any], **changes: Any) -> EngineConfig:
    given: dict[str, Any] = {"num_blocks": 400, "block_size": 4, "max_num_seqs": 16, "max_num_batched_tokens": 64}
    return EngineConfig(replicas=3, router="least-pending-tokens", options=options, **{**given, **changes})


def one_by_one(replica: Replica, known: list[int]) -> int:
    """What is left on a replica: whole requests of those who wait, and what the others lack."""
    coming = [*replica.sent[replica.num_arrived :], *replica.waiting]
    left = [max(0, known[request] - replica.cached_tokens(request)) for request in replica.running]
    return sum(known[request] for request in coming) + sum(left)


def asked(monkeypatch: pytest.MonkeyPatch, workload: Workload, config: EngineConfig) -> Counter[str]:
    """Compare what the fleet says at every arrival; what was seen on the way."""
    seen: Counter[str] = Counter()
    known = expected_tokens(workload, workload.output_tokens.tolist())

    class Asks:
        needs_state = True

        def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
            assert type(fleet) is Fleet
            pending = fleet.pending_tokens()
            assert pending == [one_by_one(replica, known) for replica in fleet.replicas]
            chosen = fleet.least_pending()
            assert chosen == pending.index(min(pending))
            assert fleet.pending_tokens() == pending
            seen["asked"] += 1
            seen["somebody waits"] += any(len(replica.waiting) > 3 for replica in fleet.replicas)
            seen["part-way"] += any(replica.prefilling for replica in fleet.replicas)
            seen["lingering"] += any(getattr(replica, "lingering", ()) for replica in fleet.replicas)
            return chosen

    monkeypatch.setattr(cluster, "_build_router", lambda *_: Asks())
    run = simulate(workload, config, KinkedModel())
    seen["evicted"] = int(run.preemptions.sum())
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_blocks", [70, 400])
def test_sums_are_what_is_counted_request_by_request(
    kind: str, num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gap_s in (0.003, 0.03):
        calls = counted_calls(monkeypatch, (Fleet, "_slow_pending"))
        seen = asked(monkeypatch, load(150, gap_s), engine(KINDS[kind], num_blocks=num_blocks))
        assert seen["asked"] == 150
        assert seen["part-way"]
        assert not calls["_slow_pending"]
        if gap_s < 0.01:
            assert seen["somebody waits"] > 50
            assert seen["part-way"] > 20
            assert seen["evicted"] > 5 or num_blocks > 70
        assert seen["lingering"] or not KINDS[kind].get("async_scheduling")


@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_where_more_is_expected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late replicas are then counted request by request, as some are seated that want no more."""
    workload = load(120, 0.01)
    workload = dataclasses.replace(workload, max_output_tokens=workload.output_tokens + ints(np.arange(120) % 37))
    calls = counted_calls(monkeypatch, (Fleet, "_slow_pending"))
    assert asked(monkeypatch, workload, engine(KINDS[kind], num_blocks=90))["asked"] == 120
    assert UNCOUNTED or bool(calls["_slow_pending"]) == bool(KINDS[kind].get("async_scheduling"))


@pytest.mark.parametrize("policy", [name for name in list_plugins("plimsoll.engine.policies") if name != "vllm-v1"])
@pytest.mark.parametrize("with_content", [False, True])
def test_other_engines_count_who_runs_together(policy: str, with_content: bool) -> None:
    """Beside what each of them lacks, evicted, swapped out or kept for a batch as they may be."""
    for num_blocks in (70, 300):
        workload = load(120, 0.006)
        if with_content:
            rows = [[k % 4 * 100 + at for at in range(prompt // 4)] for k, prompt in enumerate(workload.prompt_tokens)]
            offsets = np.cumsum([0, *map(len, rows)])
            workload = dataclasses.replace(
                workload,
                block_tokens=4,
                prompt_block_ids=ints(np.concatenate(rows)),
                prompt_block_offsets=ints(offsets),
            )
        known = expected_tokens(workload, workload.output_tokens.tolist())
        asked_for = []

        class Asks:
            needs_state = True

            def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
                pending = fleet.pending_tokens()
                assert pending == [one_by_one(replica, known) for replica in fleet.replicas]  # noqa: B023
                asked_for.append(request)  # noqa: B023
                return fleet.least_pending()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster, "_build_router", lambda *_: Asks())
            simulate(workload, engine({}, num_blocks=num_blocks, policy=policy), KinkedModel())
        assert len(asked_for) > 50


def test_and_where_answers_outlive_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody counts below zero, so there are no sums."""
    workload = load(100, 0.01, predicted_output_tokens=ints(np.full(100, 5)))
    calls = counted_calls(monkeypatch, (Fleet, "_slow_pending"))
    assert asked(monkeypatch, workload, engine({"scheduling_policy": "priority"}))["asked"] == 100
    assert UNCOUNTED or calls["_slow_pending"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_loop_sees_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = load(120, 0.01, concurrency=30, think_s=0.02)
    assert asked(monkeypatch, workload, engine(KINDS[kind]))["asked"] == 120


@pytest.mark.parametrize("layers", [((1, None), (3, 25)), ((1, 10),)])
def test_windows_are_counted_request_by_request(layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tokens are no lengths there."""
    calls = counted_calls(monkeypatch, (Fleet, "_slow_pending"))
    simulate(load(60, 0.02), engine(LATE), KinkedModel(layers=layers))
    assert UNCOUNTED or calls["_slow_pending"]


@pytest.mark.parametrize("gap_s", [0.003, 0.03])
def test_late_clusters_do_in_stretches_what_they_do_in_steps(gap_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted_calls(monkeypatch, (FollowingFleet, "serve"), (Fleet, "serve"))
    for options in KINDS.values():
        same_as_single_steps(load(120, gap_s), engine(options), KinkedModel())
    assert UNCOUNTED or calls["serve"] == 2 * len(KINDS)
