"""What a capacity search varies: rates, users, requests in flight, requests at once; and the split of pools."""

from __future__ import annotations

from typing import Any

import pytest

import plimsoll
from plimsoll.api.scenario import CapacityScenario
from plimsoll.api.splits import choose_split, with_split
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run
from plimsoll.metrics import Targets
from plimsoll.planner.capacity import AT_ONCE, CapacityOptions, find_whole_capacity
from plimsoll.planner.probes import ProbeLength
from tests.unit.test_planner_capacity import steady_run

DEPLOYMENT: dict[str, Any] = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "prompt_tokens": 500, "output_tokens": 50}
TARGETS: dict[str, Any] = {"ttft_ms": 500.0, "tpot_ms": 30.0}


def test_at_once_is_the_largest_batch_that_meets_its_targets() -> None:
    answer = plimsoll.capacity(**DEPLOYMENT, **TARGETS, at_once=True, num_seeds=1)
    most = round(answer.result.max_load)
    assert answer.result.unit == "requests at once"
    assert answer.result.max_rate_per_s is None
    for count, passes in ((most, True), (most + 1, False)):
        run = plimsoll.simulate(**DEPLOYMENT, **TARGETS, at_once=True, num_requests=count)
        assert run.verdict is not None
        assert run.verdict.passed is passes, count
    assert all(probe.num_requests == probe.num_measured == probe.load for probe in answer.result.probes)


def test_concurrency_is_the_most_requests_in_flight() -> None:
    answer = plimsoll.capacity(**DEPLOYMENT, **TARGETS, concurrency=8, num_seeds=1, num_requests=300)
    most = round(answer.result.max_load)
    document = answer.to_json_dict()
    assert (document["unit"], document["load"]["kind"]) == ("requests in flight", "concurrency")
    assert document["max_rate_per_s"] is None
    assert document["max_load"] == most
    assert answer.result.probes[0].load == 8, "what is given is where the search starts"
    bracket = answer.result.by_seed[0]
    assert (bracket.highest_pass, bracket.lowest_fail) == (most, pytest.approx(most, abs=max(1, 0.02 * most)))


def test_users_think_and_requests_in_flight_do_not() -> None:
    # The median: the burst with which all users begin decides the 99th percentile, thinking or not.
    fields = {**DEPLOYMENT, "tpot_ms": 20.0, "percentile": 50.0, "num_seeds": 1, "num_requests": 400}
    thinking = plimsoll.capacity(**fields, users=8, think_s=2.0)
    assert thinking.result.unit == "users"
    assert thinking.to_json_dict()["load"]["think_s"] == 2.0
    assert thinking.result.max_load > plimsoll.capacity(**fields, concurrency=8).result.max_load


def test_a_rate_keeps_its_own_name() -> None:
    document = plimsoll.capacity(**DEPLOYMENT, **TARGETS, num_seeds=1, num_requests=200).to_json_dict()
    assert document["load"]["kind"] == "rate"
    assert document["max_rate_per_s"] == document["max_load"] > 0


def test_no_closed_loop_has_more_users_than_requests() -> None:
    def endless(users: float, seed: int, num_requests: int) -> Run:
        return steady_run(10.0, 0.001, num_requests, users=round(users))

    options = CapacityOptions(seeds=(0,), length=ProbeLength(min_requests=50, max_requests=50, fixed=True))
    result = find_whole_capacity(endless, Targets(ttft_s=1.0), options)
    assert (result.max_load, result.limited_by) == (50, "none")
    assert "lower bound" in result.note


def test_a_batch_has_as_many_requests_as_its_load() -> None:
    asked: list[float] = []

    def batch(load: float, seed: int, num_requests: int) -> Run:
        asked.append(load)
        return steady_run(1e9, 0.01 * load, round(load))

    length = ProbeLength(min_requests=2, fixed=True, warmup_frac=0.0, warmup_turnovers=0.0)
    options = CapacityOptions(seeds=(0,), length=length, max_load=1000)
    assert find_whole_capacity(batch, Targets(ttft_s=1.0), options, unit=AT_ONCE).max_load == 100
    assert all(load == round(load) for load in asked)


def test_a_number_of_requests_contradicts_at_once() -> None:
    with pytest.raises(InputError, match="is what is searched"):
        plimsoll.capacity(**DEPLOYMENT, **TARGETS, at_once=True, num_requests=10)


@pytest.mark.parametrize("other", [{"rate_per_s": 3.0}, {"users": 3}, {"concurrency": 3}])
def test_two_loads_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give one of"):
        plimsoll.capacity(**DEPLOYMENT, **TARGETS, at_once=True, **other)


# -- splits ------------------------------------------------------------------------------------------------------------


def scenario(**fields: Any) -> CapacityScenario:
    return CapacityScenario(**{**DEPLOYMENT, **TARGETS, **fields})


def test_the_best_split_is_found_without_asking_for_all() -> None:
    asked: list[str] = []

    def look(one: CapacityScenario) -> float:
        asked.append(one.engine)
        prefill = int(one.engine.split("prefill=")[1].split(",")[0])
        return min(3.0 * prefill, 7.0 * (12 - prefill))  # balanced at 8.4

    chosen, tried = choose_split(scenario(split="auto", replicas=12), look)
    assert chosen.engine == "distserve,prefill=8,decode=4"
    assert (chosen.replicas, chosen.split) == (1, None)
    assert len(asked) == len(set(asked)) < 11
    assert [one.prefill for one in tried] == sorted(one.prefill for one in tried)
    assert max(tried, key=lambda one: one.max_load).prefill == 8


def test_a_given_split_keeps_the_engines_options() -> None:
    asked = scenario(split="3:1", engine="splitwise,max_preemptions=2")
    chosen, tried = choose_split(asked, lambda one: 0.0)
    assert chosen.engine == "splitwise,max_preemptions=2,prefill=3,decode=1"
    assert tried == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "3"}, "such as 3:1"),
        ({"split": "0:2"}, "such as 3:1"),
        ({"split": "auto"}, "at least 2"),
        ({"split": "3:1", "replicas": 5}, "has 4"),
    ],
)
def test_impossible_splits_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_split(scenario(**fields), lambda one: 1.0)


def test_an_engine_without_pools_has_no_split() -> None:
    with pytest.raises(InputError, match="orca has no pools"):
        with_split(scenario(engine="orca"), 1, 1)


def test_capacity_names_the_ratio() -> None:
    document = plimsoll.capacity(**DEPLOYMENT, **TARGETS, split="auto", replicas=3, num_seeds=1).to_json_dict()
    best = max(document["splits"], key=lambda split: split["max_load"])
    pools = document["deployment"]["pools"]
    assert pools == {"prefill": best["prefill"], "decode": best["decode"]}
    assert document["deployment"]["num_gpus"] == 3
    text = f"3 GPUs = ({pools['prefill']} prefill + {pools['decode']} decode) × TP 1"
    assert document["deployment"]["arithmetic"] == text
