"""Speculative decoding in the token timeline, against a loop over every token."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.catalog.models import load_model
from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Run, Status, TokenTimeline
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.bursts import burst_draw, with_bursts
from plimsoll.metrics.gaps import pooled_gaps, requests_beyond
from plimsoll.perf.compositions import build_composed
from plimsoll.perf.compositions._acceptance import draw_tokens, expected_tokens
from plimsoll.perf.request import StepModelRequest
from tests.oracle.models import KinkedModel

ACCEPTANCE = (0.8, 0.6, 0.5)
DRAW = functools.partial(draw_tokens, ACCEPTANCE)


class Drafting(KinkedModel):
    """A model that speculates."""

    @staticmethod
    def draw_bursts(num_steps: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        return DRAW(num_steps, rng)


class Wholly(KinkedModel):
    """A composition around a model that does not."""

    draw_bursts = None


def load(num: int = 60, seed: int = 0, output: int = 40) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        arrival_s=floats(np.cumsum(rng.exponential(0.02, num))),
        prompt_tokens=ints(rng.integers(1, 40, num)),
        output_tokens=ints(rng.integers(1, output, num)),
    )


def engine(**changes: Any) -> EngineConfig:
    return EngineConfig(**{"num_blocks": 300, "block_size": 4, "max_num_seqs": 8, **changes})


def by_hand(slices: list[list[int]], draws: list[int]) -> list[int]:
    """Steps at which one request's tokens appear; `draws` begin anew with each slice, as many as it has tokens."""
    shown, used = [], 0
    for place, steps in enumerate(slices):
        own, used = draws[used : used + len(steps)], used + len(steps)
        done = 0
        while done < len(steps):
            size = 1 if place == 0 and done == 0 else own[0]
            own = own[1:]
            end = min(done + size, len(steps))
            shown += [steps[end - 1]] * (end - done)
            done = end
    return shown


def one_request(slices: list[list[int]], num_steps: int = 30) -> Run:
    begin, end = [steps[0] for steps in slices], [steps[-1] + 1 for steps in slices]
    last_s = float(end[-1])
    return Run(
        arrival_s=floats([0.0]), scheduled_s=floats([0.0]), first_token_s=floats([begin[0] + 1.0]),
        finish_s=floats([last_s]), prompt_tokens=ints([4]), output_tokens=ints([sum(map(len, slices))]),
        cached_tokens=ints([0]), preemptions=ints([len(slices) - 1]), replica=ints([0]),
        status=np.array([Status.FINISHED], dtype=np.int8),
        timeline=TokenTimeline(
            step_end_s=floats(np.arange(1.0, num_steps + 1)), lane_offsets=ints([0, num_steps]),
            slice_request=ints([0] * len(slices)), slice_begin=ints(begin), slice_end=ints(end),
        ),
    )  # fmt: skip


def test_the_picture_of_the_text() -> None:
    run = with_bursts(one_request([list(range(9))]), [lambda num, _: ints([7, 3, 1, 2, 2, 9, 9, 9, 9][:num])], 0)
    assert run.timeline is not None
    assert run.timeline.token_times_s(0).tolist() == [1, 4, 4, 4, 5, 7, 7, 9, 9]


@pytest.mark.parametrize("slices", [[[3]], [[0, 1]], [[2, 3, 4], [9]], [[0], [5, 6, 7, 8], [11, 12]]])
@pytest.mark.parametrize("seed", range(6))
def test_every_token_appears_with_its_burst(slices: list[list[int]], seed: int) -> None:
    drawn: list[int] = []

    def draw(num: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        tokens = DRAW(num, rng)
        drawn.extend(tokens.tolist())
        return tokens

    run = with_bursts(one_request(slices), [draw], seed)
    assert run.timeline is not None
    assert run.timeline.token_times_s(0).tolist() == [step + 1.0 for step in by_hand(slices, drawn)]


def test_of_many_requests_each_has_its_own_bursts() -> None:
    config, workload = engine(num_blocks=60), load()
    plain = simulate(workload, config, KinkedModel(), seed=3)
    assert plain.preemptions.sum() > 0
    drawn: list[int] = []

    def draw(num: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        tokens = DRAW(num, rng)
        drawn.extend(tokens.tolist())
        return tokens

    run = with_bursts(plain, [draw], 3)
    assert plain.timeline is not None
    assert run.timeline is not None
    used = 0
    for request in range(len(run)):
        rows = np.flatnonzero(plain.timeline.slice_request == request)
        slices = [list(range(plain.timeline.slice_begin[k], plain.timeline.slice_end[k])) for k in rows]
        count = sum(map(len, slices))
        shown = by_hand(slices, drawn[used : used + count])
        used += count
        assert run.timeline.token_times_s(request).tolist() == plain.timeline.step_end_s[shown].tolist()
    assert used == len(drawn)


def test_what_requests_see_first_and_last_stays() -> None:
    workload, config = load(), engine()
    plain, run = simulate(workload, config, KinkedModel(), seed=1), simulate(workload, config, Drafting(), seed=1)
    for name in ("first_token_s", "finish_s", "scheduled_s", "output_tokens", "replica", "status"):
        assert np.array_equal(getattr(plain, name), getattr(run, name), equal_nan=name.endswith("_s")), name
    assert plain.timeline is not None
    assert run.timeline is not None
    assert not run.equal(plain)
    for request in range(len(run)):
        before, after = plain.timeline.token_times_s(request), run.timeline.token_times_s(request)
        assert len(before) == len(after)
        assert np.all(after >= before), "a token never appears before the engine had it"
        assert np.all(np.diff(after) >= 0)
        assert (before[0], before[-1]) == (after[0], after[-1])
        assert np.all(np.isin(after, before)), "at ends of steps that the request took part in"


def test_gaps_are_as_many_and_as_long_together_but_most_are_none() -> None:
    workload, config = load(300, output=200), engine(num_blocks=4000)
    plain, run = simulate(workload, config, KinkedModel()), simulate(workload, config, Drafting())
    gaps, bursts = pooled_gaps(plain), pooled_gaps(run)
    assert gaps.weights is not None
    assert bursts.weights is not None
    assert gaps.weights.sum() == bursts.weights.sum()
    assert np.dot(gaps.values, gaps.weights) == pytest.approx(np.dot(bursts.values, bursts.weights))
    together = float(bursts.weights[bursts.values == 0].sum() / bursts.weights.sum())
    # Of the tokens of a full burst all but one come with another; bursts that an answer's end cuts are shorter.
    assert together == pytest.approx(1 - 1 / expected_tokens(ACCEPTANCE), abs=0.01)
    longest_s = float(gaps.values[gaps.weights > 0].max())
    assert requests_beyond(run, longest_s)[1].sum() > 0
    assert requests_beyond(plain, longest_s)[1].sum() == 0


def test_the_seed_decides_and_nothing_else() -> None:
    workload, config = load(), engine()
    one = simulate(workload, config, Drafting(), seed=5)
    assert one.equal(simulate(workload, config, Drafting(), seed=5))
    assert not one.equal(simulate(workload, config, Drafting(), seed=6))


@pytest.mark.parametrize("model", [KinkedModel(), Wholly()])
def test_without_speculation_the_run_is_the_very_same(model: KinkedModel) -> None:
    run = simulate(load(), engine(), model)
    assert with_bursts(run, [burst_draw(model)], 0) is run


def test_only_the_replicas_that_speculate_do() -> None:
    workload = load(120)
    members = [(engine(), KinkedModel()), (engine(), Drafting())]
    plain = simulate(workload, engine(), KinkedModel(), members=[(kind, KinkedModel()) for kind, _ in members])
    run = simulate(workload, engine(), KinkedModel(), members=members)
    assert plain.timeline is not None
    assert run.timeline is not None
    changed = [
        not np.array_equal(plain.timeline.token_times_s(k), run.timeline.token_times_s(k)) for k in range(len(run))
    ]
    assert not any(changed[k] for k in np.flatnonzero(run.replica == 0))
    assert sum(changed[k] for k in np.flatnonzero(run.replica == 1)) > 40


def test_in_pools_the_first_token_comes_alone_and_the_others_from_elsewhere_in_bursts() -> None:
    options = {"prefill": 1, "decode": 1, "transfer_s_per_token": 1e-5}
    config = engine(policy="distserve", replicas=2, options=options)
    run = simulate(load(output=30), config, Drafting())
    assert run.timeline is not None
    for request in np.flatnonzero(run.output_tokens > 1):
        times = run.timeline.token_times_s(int(request))
        assert times[0] == run.first_token_s[request] < times[1]
    assert np.all(run.finish_s >= run.first_token_s)


def test_a_run_that_is_cut_has_no_token_after_the_cut() -> None:
    run = simulate(load(), engine(), Drafting(), duration_s=0.4)
    assert run.timeline is not None
    assert (run.status == Status.UNFINISHED).any()
    assert run.timeline.step_end_s[run.timeline.slice_begin].max() <= 0.4
    counts = np.bincount(run.timeline.slice_request, minlength=len(run))
    assert np.array_equal(counts, run.output_tokens)


def test_where_nobody_got_a_token_there_are_no_bursts() -> None:
    run = simulate(load(), engine(), Drafting(), duration_s=1e-6)
    assert run.timeline is not None
    assert not len(run.timeline.slice_request)


@pytest.mark.parametrize(
    ("text", "speculates"),
    [("speculative", True), ("speculative+h2o", True), ("speculative,amortise=off", False), ("h2o", False)],
)
def test_the_composition_says_what_to_draw_from(text: str, speculates: bool) -> None:
    request = StepModelRequest(model=load_model("Llama-3.1-8B"), gpu=load_accelerator("H100-SXM"))
    draw = burst_draw(build_composed(f"roofline+{text}", request))
    assert (draw is not None) == speculates
    if draw is not None:
        tokens = draw(20_000, np.random.default_rng(0))
        assert tokens.min() == 1
        assert tokens.mean() == pytest.approx(expected_tokens((0.7, 0.7, 0.7)), rel=0.02)
