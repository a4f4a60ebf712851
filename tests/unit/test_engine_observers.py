"""What an observer is told, step by step: every step is announced before it ends, also those that nobody works on."""

from __future__ import annotations

import dataclasses

import pytest

from plimsoll.engine import simulate
from plimsoll.engine.policy import StepPlan
from plimsoll.engine.replicas.replica import Replica
from tests.oracle.models import KinkedModel
from tests.property.test_engine_oracle import random_case


class Diary:
    def __init__(self) -> None:
        self.scheduled_steps = self.ended_steps = self.empty_steps = 0

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        self.scheduled_steps += 1
        self.empty_steps += not plan.chunks and replica.lane.num == 0
        assert begin_s == replica.now_s

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        self.ended_steps += 1
        assert self.ended_steps <= self.scheduled_steps
        assert end_s >= 0.0
        assert set(finished).isdisjoint(replica.running)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_step_is_announced_and_ends(stages: int) -> None:
    empty = 0
    for seed in range(60):
        workload, config, _, _ = random_case(seed)
        workload = dataclasses.replace(workload, concurrency=None, think_s=0.0)
        config = dataclasses.replace(config, replicas=1)
        diary = Diary()
        watched = simulate(workload, config, KinkedModel(num_stages=stages), observer=diary)
        assert diary.scheduled_steps == diary.ended_steps, f"seed {seed}: {config}"
        alone = simulate(workload, config, KinkedModel(num_stages=stages))
        assert watched.finish_s.tolist() == pytest.approx(alone.finish_s.tolist(), rel=0, abs=0, nan_ok=True)
        empty += diary.empty_steps
    if stages > 1:
        assert empty, "some requests must evict themselves while the others are in flight"
