"""HELR against a search through every placement, and what a placement is made of."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from plimsoll.api.placement import place
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from plimsoll.planner.helr import OBJECTIVES, Placed, place_layers
from plimsoll.planner.layered import Hop, LayeredModel
from tests.unit.planner_fakes import LineModel


def every_placement(num_layers: int, counts: list[int]) -> Iterator[tuple[Placed, ...]]:
    """All orders of GPUs and all ways to cut the layers over them."""
    gpus = [kind for kind, count in enumerate(counts) for _ in range(count)]
    for size in range(1, min(len(gpus), num_layers) + 1):
        for order in set(itertools.permutations(gpus, size)):
            for cuts in itertools.combinations(range(1, num_layers), size - 1):
                edges = [0, *cuts, num_layers]
                yield tuple(
                    Placed(kind, low, high) for kind, (low, high) in zip(order, itertools.pairwise(edges), strict=True)
                )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(25))
def test_it_finds_what_a_search_through_everything_finds(objective: str, seed: int) -> None:
    rng = random.Random(seed)
    num_layers, counts = rng.randint(1, 6), [rng.randint(0, 2) for _ in range(rng.randint(1, 3))]
    kinds = range(len(counts))
    most = [rng.randint(0, num_layers) for _ in kinds]
    layer_s = [rng.uniform(0.1, 2.0) for _ in kinds]
    extra_s = [[rng.uniform(0.0, 0.5) for _ in range(num_layers)] for _ in kinds]
    hop_s = [[rng.uniform(0.0, 1.0) for _ in kinds] for _ in kinds]

    def stage_s(kind: int, begin: int, end: int) -> float:
        if end - begin > most[kind]:
            return math.inf
        return (end - begin) * layer_s[kind] + sum(extra_s[kind][begin:end])

    def cost(stages: tuple[Placed, ...]) -> tuple[float, float]:
        seconds = sum(stage_s(*one) for one in stages)
        seconds += sum(hop_s[a.kind][b.kind] for a, b in itertools.pairwise(stages))
        return (seconds, len(stages)) if objective == "latency" else (len(stages), seconds)

    found = place_layers(num_layers, counts, stage_s, lambda a, b: hop_s[a][b], objective)
    feasible = [seen for stages in every_placement(num_layers, counts) if math.inf not in (seen := cost(stages))]
    if found is None:
        assert not feasible
        return
    best = min(feasible)
    assert cost(found.stages) == pytest.approx(best)
    assert found.latency_s == pytest.approx(best[0 if objective == "latency" else 1])
    assert [one.begin for one in found.stages] == [0, *(one.end for one in found.stages[:-1])]
    assert found.stages[-1].end == num_layers
    assert all(sum(one.kind == kind for one in found.stages) <= counts[kind] for kind in kinds)


def test_the_faster_gpu_takes_all_it_can_and_fewest_gpus_may_be_slower() -> None:
    def stage_s(kind: int, begin: int, end: int) -> float:
        return (end - begin) * (1.0, 3.0)[kind] if end - begin <= (4, 10)[kind] else math.inf

    fast = place_layers(10, [2, 1], stage_s, lambda a, b: 0.5)
    assert fast is not None
    assert sorted((one.kind, one.end - one.begin) for one in fast.stages) == [(0, 4), (0, 4), (1, 2)]
    assert fast.latency_s == 4 + 4 + 6 + 2 * 0.5
    few = place_layers(10, [2, 1], stage_s, lambda a, b: 0.5, "gpus")
    assert few is not None
    assert few.stages == (Placed(1, 0, 10),)


def test_nothing_fits_nowhere() -> None:
    assert place_layers(3, [1, 1], lambda *_: math.inf, lambda a, b: 0.0) is None


def test_an_endless_search_is_refused() -> None:
    with pytest.raises(InputError, match="steps are too many"):
        place_layers(80, [16, 16, 16], lambda *_: 1.0, lambda a, b: 0.0)
    with pytest.raises(UnknownNameError):
        place_layers(8, [1], lambda *_: 1.0, lambda a, b: 0.0, "money")


# -- seconds -----------------------------------------------------------------------------------------------------------

FAST, SLOW = LineModel(1e-3, 1e-5, 1e-5, 1e-9), LineModel(4e-3, 4e-5, 4e-5, 4e-9)


def test_a_step_is_the_shares_of_its_gpus_and_the_hops() -> None:
    model = LayeredModel([(0.75, FAST), (0.25, SLOW)], [Hop(fixed_s=1e-4, s_per_token=1e-6)])
    shape = (100, 1, 5050, 0, 1, 8, 4000)
    wanted = 0.75 * FAST.step_s(*shape) + 0.25 * SLOW.step_s(*shape) + 1e-4 + 108e-6
    assert model.step_s(*shape) == pytest.approx(wanted)
    cost = model.step(StepShape(prefill_tokens=100, num_prefill=1, prefill_pairs=5050, num_prefill_done=1,
                                num_decode=8, decode_read_tokens=4000))  # fmt: skip
    assert (cost.time_s, cost.energy_j, cost.source) == (pytest.approx(wanted), None, Source.ASSUMED)


def test_a_decode_line_is_its_steps_to_the_last_bit() -> None:
    model = LayeredModel([(0.3, FAST), (0.3, SLOW), (0.4, FAST)], [Hop(fixed_s=1e-4, s_per_token=1e-6)] * 2)
    base_s, per_token_s, valid_below = model.decode_line(7, 1000)
    for read in (1000, 1007, 5000):
        assert read < valid_below
        assert model.step_s(0, 0, 0, 0, 0, 7, read) == base_s + per_token_s * read


# -- the whole thing ---------------------------------------------------------------------------------------------------

CASE = {"model": "Llama-2-13b", "gpus": "L4:2,A10:1", "workload": "chat", "placement": "helr",
        "ttft_ms": 20000.0, "tpot_ms": 400.0, "top": 1}  # fmt: skip


def test_a_placement_holds_every_layer_once_and_fits() -> None:
    answer = place(**CASE)
    assert answer.result.plans
    for plan in answer.result.plans:
        assert sum(stage.num_layers for stage in plan.stages) == 40
        assert [stage.first_layer for stage in plan.stages] == [
            sum(before.num_layers for before in plan.stages[:k]) for k in range(len(plan.stages))
        ]
        assert all(0.0 < stage.memory_frac <= 1.0 + 1e-9 for stage in plan.stages)
        assert max(stage.memory_frac for stage in plan.stages) > 0.99, "the fullest GPU sets the cache"
        assert plan.request_s >= sum(stage.request_s for stage in plan.stages)
        assert plan.capacity.max_load > 0
        assert plan.metrics is not None
    document = answer.to_json_dict()
    assert document["feasible"]
    assert document["plans"][0]["stages"][0]["gpu"] in ("L4", "A10")
    costs = [plan["usd_per_million_tokens"] for plan in document["plans"]]
    assert costs == sorted(costs)


def test_a_model_that_fits_on_no_selection_says_so() -> None:
    answer = place(**{**CASE, "model": "Llama-2-70b"})
    assert not answer.result.plans
    assert "fit on no selection of these GPUs" in answer.result.verdict


def test_targets_that_nobody_meets_are_told_apart_from_memory() -> None:
    answer = place(**{**CASE, "ttft_ms": 0.01, "tpot_ms": None})
    assert not answer.result.plans
    assert "carries no load within its targets: ttft fails" in answer.result.verdict


@pytest.mark.parametrize("fields", [{"rate_per_s": 1.0}, {"tp": "2"}, {"disaggregated": "auto"}, {"spare": 1}])
def test_what_a_placement_does_not_look_at_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="leave it out with --placement"):
        place(**{**CASE, **fields})


def test_an_unknown_placer_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="helr"):
        place(**{**CASE, "placement": "hlr"})
