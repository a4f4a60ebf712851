"""The better known of two nearly equal plans leads, and the reason says so."""

from __future__ import annotations

import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.deployment import Parallelism
from plimsoll.core.step import StepModel
from plimsoll.perf.error_bands import ErrorBand
from plimsoll.planner.branch import Choice, sort_key
from plimsoll.planner.pareto import Point
from plimsoll.planner.results import to_json_dict
from plimsoll.planner.search import SearchOptions, search
from plimsoll.planner.space import Candidate, ReplicaConfig
from tests.unit.planner_fakes import FakeParts, plan_request

OBJECTIVES = ("cost", "throughput", "latency")


def band(median: float) -> ErrorBand:
    return ErrorBand(
        low_frac=-2 * median,
        high_frac=2 * median,
        median_abs_frac=median,
        coverage_frac=0.8,
        num_runs=10,
        basis="made up",
        source="https://example.org",
        date="2026-11-20",
    )


class DoubtfulParts(FakeParts):
    """The same parts, but nobody knows how long a step really takes."""

    def error_band(self, model: StepModel) -> ErrorBand | None:
        return band(0.3)


def candidate(pp: int = 1) -> Candidate:
    config = ReplicaConfig(
        accelerator=load_accelerator("H100-SXM"),
        parallelism=Parallelism(tp=1, pp=pp),
        precision="bf16",
        engine="vllm-v1",
        max_num_batched_tokens=None,
    )
    return Candidate(config=config, replicas=1)


def test_at_the_same_cost_fewer_pipeline_stages_come_first_whatever_they_carry() -> None:
    def key(pp: int, cost: float, throughput: float) -> tuple[float, float, float, float, str]:
        point = Point(cost=cost, throughput=throughput, latency=1.0)
        return sort_key("cost", Choice(candidate=candidate(pp), rental=None, point=point, load=1.0))

    assert key(1, 32.0, 30.0) < key(2, 32.0, 37.0)
    assert key(1, 32.0, 30.0) > key(1, 32.0, 37.0)
    assert key(2, 31.0, 30.0) < key(1, 32.0, 37.0), "no veto"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_doubt_counts_as_if_the_figure_were_worse(objective: str) -> None:
    def choice(value: float, doubt: float) -> Choice:
        point = Point(cost=1.0, throughput=1.0, latency=1.0)._replace(**{objective: value})
        return Choice(candidate=candidate(), rental=None, point=point, load=1.0, doubt=doubt)

    better = 1.03 if objective == "throughput" else 0.97
    assert sort_key(objective, choice(better, 0.1)) < sort_key(objective, choice(1.0, 0.1)), "as well known: the better"
    assert sort_key(objective, choice(1.0, 0.1)) < sort_key(objective, choice(better, 0.2)), "the better known"
    much_better = 1.5 if objective == "throughput" else 0.6
    assert sort_key(objective, choice(much_better, 0.2)) < sort_key(objective, choice(1.0, 0.1)), "doubt is no veto"


def test_equal_doubt_changes_no_order() -> None:
    request = plan_request()
    plain, doubtful = (search(request, SearchOptions(parts=parts(request))) for parts in (FakeParts, DoubtfulParts))
    for name in ("plans", "top_cost", "top_throughput", "top_latency"):
        ours = [(plan.arithmetic, plan.deployment.gpu) for plan in getattr(plain, name)]
        assert ours == [(plan.arithmetic, plan.deployment.gpu) for plan in getattr(doubtful, name)]
    assert plain.plans[0].error_band is None
    assert doubtful.plans[0].error_band == band(0.3)
    assert to_json_dict(doubtful)["plans"][0]["error_band"]["median_abs_frac"] == 0.3
