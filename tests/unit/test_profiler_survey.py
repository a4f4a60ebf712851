"""Where it measures, what it keeps, and that it does not measure twice."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.own_format import ATTENTION, CHECKS, HEADER, SEQUENCES, TOKENS, read_own
from plimsoll.profiler.clock import CpuClock
from plimsoll.profiler.grid import Rules, geometric, refine, straight
from plimsoll.profiler.samples import Effort, collect, figures, spread_frac
from plimsoll.profiler.shapes import Limits, Shape, chunks, decodes
from plimsoll.profiler.survey import Survey
from tests.own_profiles import LIMITS, Formula, make_profile, open_store, write_config

# Grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "factor", "points"),
    [(1, 64, 4.0, [1, 4, 16, 64]), (1, 512, 4.0, None), (5, 5, 4.0, [5]), (7, 3, 4.0, [7]), (1, 3, 4.0, [1, 3])],
)
def test_geometric_axes_reach_both_ends(low: int, high: int, factor: float, points: list[int] | None) -> None:
    found = geometric(low, high, factor)
    assert points is None or found == points
    assert found[0] == low
    assert found[-1] == max(low, high)
    assert all(right <= factor * left + 1 for left, right in itertools.pairwise(found))


def test_a_straight_machine_needs_one_halving() -> None:
    found = refine([1, 16, 256], lambda point: 3.0 + point, straight(lambda point: 3.0 + point), Rules())
    assert found == [1, 4, 16, 64, 256]


def test_a_bend_draws_points_to_it() -> None:
    def machine(point: int) -> float:
        return 100.0 if point <= 100 else 100.0 + 5 * (point - 100)

    found = refine([1, 16, 256, 4096], machine, straight(machine), Rules(max_points=40))
    near = [point for point in found if 50 <= point <= 200]
    assert len(near) >= 3
    for low, high in itertools.pairwise(found):
        middle = round(math.sqrt(low * high))
        wrong = abs(straight(machine)(low, high, middle) / machine(middle) - 1)
        assert wrong <= 0.04 or high < 1.5 * low or high - low < 2


def test_noise_does_not_refine_for_ever() -> None:
    measured: dict[int, float] = {}

    def noisy(point: int) -> float:
        return measured.setdefault(point, 1.0 + (point * 2654435761 % 97) / 97)

    assert len(refine(geometric(1, 10**6), noisy, straight(noisy), Rules(max_points=12))) <= 30


def test_a_machine_along_pairs_is_straight_along_pairs() -> None:
    def pairs(point: int) -> float:
        return point * (point + 1) / 2

    def machine(point: int) -> float:
        return 7 + 0.1 * pairs(point)

    assert len(refine([1, 4, 16, 64], machine, straight(machine, pairs), Rules())) == 7
    assert len(refine([1, 4, 16, 64], machine, straight(machine), Rules())) > 7


# Samples ---------------------------------------------------------------------------------------------------------


def test_samples_end_with_the_budget_or_the_count() -> None:
    calls = []

    def once() -> float:
        calls.append(1)
        return 0.1

    effort = Effort(warm_ups=2, min_samples=3, max_samples=6, budget_s=0.45)
    assert collect(once, effort) == [0.1] * 5
    assert len(calls) == 7
    assert len(collect(once, Effort(min_samples=3, max_samples=6, budget_s=0.0))) == 3
    assert len(collect(once, Effort(min_samples=3, max_samples=6, budget_s=9.0))) == 6


def test_operators_of_a_step_take_turns_on_a_cpu() -> None:
    """Every sample has all copies of all operators, one operator after the other; the warm-up's are dropped."""
    asked: list[tuple[str, int]] = []
    times = iter(range(10**6))
    clock = CpuClock()
    clock.now_s = lambda: float(next(times))  # type: ignore[method-assign]
    calls = [(lambda copy: asked.append(("a", copy)), 3), (lambda copy: asked.append(("b", copy)), 2)]
    found = clock.samples(calls, Effort(warm_ups=1, min_samples=2, max_samples=2, budget_s=0.0))
    assert found == [[1.0, 1.0], [1.0, 1.0]]
    assert asked == 3 * [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]


def test_calls_together_are_counted_after_the_first() -> None:
    asked: list[int] = []
    assert CpuClock().together(asked.append, 4) >= 0
    assert asked == [0, 0, 1, 2, 3]


def test_figures_are_median_and_half_the_quartiles() -> None:
    assert figures([1e-6, 2e-6, 9e-6])["time_us"] == pytest.approx(2.0)
    assert spread_frac([1.0]) == 0.0
    assert spread_frac([1.0, 2.0, 3.0]) == pytest.approx(0.25)
    assert figures([80.0, 90.0], "power_w", 1.0) == {
        "power_w": 85.0,
        "spread_frac": pytest.approx(2.5 / 85),
        "num_samples": 2,
    }


def test_shapes_say_what_they_are() -> None:
    shape = Shape(num_prefill=2, chunk_tokens=30, context_tokens=10, num_decode=5, decode_length_tokens=100)
    assert (shape.num_tokens, shape.num_sequences) == (65, 7)
    step = shape.step_shape()
    assert step.prefill_pairs == 2 * 30 * 10 + 2 * 30 * 31 // 2
    assert (step.prefill_read_tokens, step.decode_read_tokens, step.num_prefill_done) == (20, 500, 2)
    assert str(shape) == "2 x 30 tokens behind 10 + 5 decodes at 100"


# Surveys ---------------------------------------------------------------------------------------------------------


def test_a_survey_covers_its_limits_and_says_how_well(tmp_path: Path) -> None:
    folder, _ = make_profile(tmp_path)
    profile = read_own(folder)
    assert max(row["tokens"] for row in profile.tables[TOKENS]) == 512
    assert max(row["sequences"] for row in profile.tables[SEQUENCES]) == 32
    rows = profile.tables[ATTENTION]
    assert max(row["num_decode"] for row in rows) == 32
    assert max(row["decode_length_tokens"] for row in rows) == 1151
    assert all(row["chunk_tokens"] + row["context_tokens"] <= 1151 for row in rows)
    assert any(row["num_prefill"] > 1 for row in rows)
    assert any(row["num_prefill"] and row["num_decode"] for row in rows)
    quality = profile.section("quality")
    assert quality["num_checks"] == len(profile.tables[CHECKS]) >= 8
    assert quality["interpolation_error_max_frac"] < 0.02
    assert quality["spread_median_frac"] == pytest.approx(0.01)


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    folder, config = make_profile(tmp_path)
    before = {file.name: file.read_text() for file in folder.glob("*.csv")}
    store, sizes = open_store(folder, config)
    again = Formula(sizes)
    Survey(store, again, LIMITS).run()
    assert again.num_calls == 0
    assert store.num_kept == sum(text.count("\n") - 1 for text in before.values())
    assert {file.name: file.read_text() for file in folder.glob("*.csv")} == before
    assert read_own(folder).section("host")["source"] == "a formula"


class Interrupted(Formula):
    """Stops after a number of measurements."""

    def __init__(self, sizes: dict[str, int], after: int) -> None:
        super().__init__(sizes)
        self.after = after

    def attention(self, shape: Shape, window: int | None = None) -> dict[str, object]:
        if self.num_calls >= self.after:
            raise KeyboardInterrupt
        return super().attention(shape)


def test_an_interrupted_survey_goes_on_to_the_same_profile(tmp_path: Path) -> None:
    whole, config = make_profile(tmp_path / "whole", host=None)
    folder = tmp_path / "part"
    store, sizes = open_store(folder, config)
    with pytest.raises(KeyboardInterrupt):
        Survey(store, Interrupted(sizes, 60), LIMITS).run()
    with (folder / "attention.csv").open("a") as file:
        file.write("8,1,99")  # the line that was being written
    store, _ = open_store(folder, config)
    backend = Formula(sizes)
    Survey(store, backend, LIMITS).run()
    assert backend.num_calls > 0
    for name in ("tokens.csv", "sequences.csv", "attention.csv", "checks.csv"):
        assert sorted((folder / name).read_text().splitlines()) == sorted((whole / name).read_text().splitlines())


def test_a_cut_group_of_operators_is_measured_again(tmp_path: Path) -> None:
    folder, config = make_profile(tmp_path)
    file = folder / "tokens.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    store, sizes = open_store(folder, config)
    backend = Formula(sizes)
    Survey(store, backend, LIMITS).run()
    assert backend.num_calls == 1
    assert sorted(file.read_text().splitlines()) == sorted(lines)


def test_progress_is_told_before_every_measurement(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    store, sizes = open_store(tmp_path / "p", config)
    told: list[tuple[int, int | None, str]] = []
    survey = Survey(store, Formula(sizes), LIMITS, progress=lambda *what: told.append(what))
    survey.run()
    assert [done for done, _, _ in told] == list(range(survey.num_measured))
    assert told[0][2] == "1 tokens"


@pytest.mark.parametrize(
    "limits", [Limits(max_tokens=32, max_seqs=4, max_length=256), Limits(max_tokens=8192, max_seqs=64, max_length=300)]
)
def test_small_and_lopsided_limits_are_covered(tmp_path: Path, limits: Limits) -> None:
    config = write_config(tmp_path)
    store, sizes = open_store(tmp_path / "p", config)
    Survey(store, Formula(sizes), limits).run()
    assert store.header["quality"]["interpolation_error_max_frac"] < 0.05
    for row in store.find(ATTENTION):
        assert row["num_prefill"] + row["num_decode"] <= limits.max_seqs
        assert row["num_prefill"] * row["chunk_tokens"] + row["num_decode"] <= limits.max_tokens
    assert store.find(ATTENTION, **decodes(limits.max_seqs, limits.max_length).row())
    assert store.find(ATTENTION, **chunks(1, min(limits.max_tokens, limits.max_length)).row())


@pytest.mark.parametrize(("name", "value"), [("threads", 2), ("torch", "1"), ("dtype", "fp16"), ("backend", "vllm")])
def test_rows_of_another_machine_are_not_mixed_in(tmp_path: Path, name: str, value: object) -> None:
    folder, config = make_profile(tmp_path)
    with pytest.raises(InputError, match=f"run.{name}.*give another folder"):
        open_store(folder, config, **{name: value})


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="--out"):
        open_store(tmp_path / "taken", config)


def test_the_header_is_never_half_written(tmp_path: Path) -> None:
    folder, _ = make_profile(tmp_path)
    assert (folder / HEADER).read_text().startswith("# A profile of Plimsoll")
    assert not list(folder.glob(".*.new"))
