"""Ranks in lockstep with prefix caches, priorities and late results, against so many naive schedulers on one clock."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.step import StepShape
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.replica import Replica
from tests.oracle.models import KinkedModel, SkewedModel, with_longest
from tests.oracle.naive_clock import content_of, settings_of
from tests.oracle.naive_server import Arrival, Served, Server
from tests.property.test_engine_prefix_oracle import random_case, squeezed_case
from validation._replay import seen_s

CASES = int(os.environ.get("PLIMSOLL_ORACLE_CASES", "300"))
Model = KinkedModel | SkewedModel


def counts(shape: StepShape) -> tuple[int, ...]:
    return dataclasses.astuple(shape)[:7]


class Meeting(SkewedModel):
    """Knows what ranks of different shares cost: the slowest, and something for all tokens together."""

    def lockstep_s(self, ranks: Sequence[StepShape], /) -> float:
        tokens = sum(rank.prefill_tokens + rank.num_decode for rank in ranks)
        return max(self.step_s(*counts(rank), rank.longest_decode) for rank in ranks) + 1.7e-6 * tokens


def seconds(model: Model, shapes: Sequence[StepShape]) -> float:
    if isinstance(model, Meeting) and len(shapes) > 1:
        return model.lockstep_s(shapes)
    asked = [tuple(len(shapes) * count for count in counts(shape)) for shape in shapes]
    lengths = [shape.longest_decode for shape in shapes]
    return max(model.step_s(*with_longest(model, args, [n])) for args, n in zip(asked, lengths, strict=True))


def naive(workload: Workload, config: EngineConfig, model: Model, accepted: Sequence[int]) -> list[Served]:
    arrivals = [
        Arrival(
            arrival_s=float(workload.arrival_s[i]),
            prompt_tokens=int(workload.prompt_tokens[i]),
            output_tokens=int(workload.output_tokens[i]),
            content=content_of(workload, i, config.block_size),
            priority=0 if workload.priority is None else int(workload.priority[i]),
        )
        for i in accepted
    ]
    server = Server(
        settings_of(config),
        lambda shapes: seconds(model, shapes),
        ranks=config.ranks,
        asynchronous=bool(config.options["async_scheduling"]),
        layers=model.attention_layers,
    )
    return server.serve(arrivals)


def group_case(seed: int) -> tuple[Workload, EngineConfig, Model]:
    rng = np.random.default_rng([seed, 21])
    make_case = random_case if seed % 3 else squeezed_case
    workload, config, model, _ = make_case(seed)
    workload = dataclasses.replace(workload, concurrency=None, think_s=0.0)
    options = {**config.options}
    if not options["async_scheduling"] and options["scheduling_policy"] == "fcfs":
        options["enable_prefix_caching"] = True  # else they are plain ranks, which have a test of their own
    if seed % 5 == 0:
        model = Meeting(int(rng.choice([13, 200])), int(rng.choice([3, 37])))
    return workload, dataclasses.replace(config, ranks=int(rng.integers(1, 5)), options=options), model


@pytest.mark.parametrize("chunk", range(2))
def test_every_token_time_equals_that_of_naive_schedulers_on_one_clock(chunk: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(chunk, CASES, 2):
        workload, config, model = group_case(seed)
        run = simulate(workload, config, model)
        accepted = np.flatnonzero(run.status != Status.REJECTED)
        where = f"seed {seed}: {config}"
        assert np.all(run.status[accepted] == Status.FINISHED), where
        expected = naive(workload, config, model, accepted.tolist())
        assert run.first_token_s[accepted].tolist() == [facts.first_token_s for facts in expected], where
        assert run.finish_s[accepted].tolist() == [facts.last_token_s for facts in expected], where
        assert run.preemptions[accepted].tolist() == [facts.preemptions for facts in expected], where
        if len(accepted) == len(run) and len(run):
            assert seen_s(run).tolist() == [facts.queued_s for facts in expected], where
        seen["several"] += config.ranks > 1
        seen["late"] += bool(config.options["async_scheduling"])
        seen["evicted"] += bool(run.preemptions.any())
        seen["cached"] += bool(run.cached_tokens.any())
        seen["longest"] += isinstance(model, SkewedModel)
        seen["meeting"] += isinstance(model, Meeting)
    assert len(seen) == 6
    assert min(seen.values()) >= CASES // 20, seen


class Diary:
    """What an observer is told."""

    def __init__(self) -> None:
        self.begins_s: list[float] = []
        self.ends_s: dict[int, list[float]] = {}
        self.finished: list[int] = []

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        del replica, plan
        self.begins_s.append(begin_s)

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        self.ends_s.setdefault(id(replica), []).append(end_s)
        self.finished += finished


@pytest.mark.parametrize("late", [False, True])
def test_who_watches_sees_the_steps_as_they_end_for_all(late: bool) -> None:
    workload, config, model = group_case(4)
    config = dataclasses.replace(
        config,
        ranks=3,
        num_blocks=4000,
        options={**config.options, "async_scheduling": late, "enable_prefix_caching": True},
        keep_step_log=True,
    )
    diary = Diary()
    run = simulate(workload, config, model, observer=diary)
    alone = simulate(workload, config, model)
    assert same(run, alone)
    assert run.timeline is not None
    assert {time_s for times in diary.ends_s.values() for time_s in times} >= set(run.timeline.step_end_s.tolist())
    assert all(times == sorted(times) for times in diary.ends_s.values())
    assert diary.begins_s == sorted(diary.begins_s)
    assert run.step_log is not None
    assert run.step_log.num_running[-1] == 0
    assert run.step_log.used_blocks.max() <= 3 * 4000


def same(left: Run, right: Run) -> bool:
    return bool(np.array_equal(left.finish_s, right.finish_s, equal_nan=True))


def test_a_closed_loop_sends_when_it_is_answered() -> None:
    workload, config, model = group_case(7)
    workload = dataclasses.replace(workload, concurrency=3, think_s=0.25, arrival_s=workload.arrival_s * 0)
    run = simulate(workload, dataclasses.replace(config, ranks=2, num_blocks=4000), model)
    answers = Counter((run.finish_s + 0.25).tolist())
    answers[0.0] += 3
    assert not Counter(run.arrival_s.tolist()) - answers


def test_engines_of_another_kind_do_not_step_together() -> None:
    workload, config, model = group_case(1)
    with pytest.raises(InputError, match="--dp"):
        simulate(workload, dataclasses.replace(config, ranks=2, policy="orca", options={}), model)
