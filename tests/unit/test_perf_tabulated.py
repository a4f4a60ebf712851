"""Lazy pieces of straight lines, and the hot path above them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.core.source import Source
from plimsoll.core.step import StepShape
from plimsoll.perf.tabulated import UNBOUNDED, Line, Pieces, PrefillRates, Tabulated


def steps(ends: list[int]) -> list[Line]:
    return [(float(place), 1.0 / (place + 1), end) for place, end in enumerate(ends)]


@given(
    ends=st.lists(st.integers(1, 1000), min_size=1, max_size=12, unique=True).map(sorted),
    asked=st.lists(st.integers(0, 1100), max_size=30),
)
def test_a_piece_is_found_as_by_walking_all_of_them(ends: list[int], asked: list[int]) -> None:
    pieces, lines = Pieces(iter(steps(ends))), steps(ends)
    for read in asked:
        assert pieces.find(read) == next((line for line in lines if read < line[2]), None)
    assert pieces.first == lines[0]


def test_no_more_pieces_are_made_than_asked_for() -> None:
    made = []

    def lines() -> Iterator[Line]:
        for end in (10, 20, 30, 40):
            made.append(end)
            yield 0.0, 1.0, end

    pieces = Pieces(lines())
    assert made == [10]
    assert pieces.find(9) == (0.0, 1.0, 10)
    assert made == [10]
    assert pieces.find(25) == (0.0, 1.0, 30)
    assert made == [10, 20, 30]
    assert pieces.find(12) == (0.0, 1.0, 20)
    assert made == [10, 20, 30]
    assert pieces.find(40) is None
    assert pieces.find(40) is None
    assert made == [10, 20, 30, 40]


def test_what_is_fixed_is_added_to_every_piece() -> None:
    pieces = Pieces([(1.0, 0.5, 10), (2.0, 0.25, UNBOUNDED)], 100.0)
    assert pieces.find(3) == (101.0, 0.5, 10)
    assert pieces.find(10**9) == (102.0, 0.25, UNBOUNDED)


class Bent(Tabulated):
    """Tokens cost 1 s, samples 10 s, decodes lie on two pieces that end at 100 read tokens a sequence."""

    def __init__(self) -> None:
        super().__init__(((1, None),), 1)
        self.asked: list[tuple[str, int]] = []

    def _token_s(self, tokens: int) -> float:
        self.asked.append(("tokens", tokens))
        return 1.0 * tokens

    def _sampled_s(self, rows: int) -> float:
        self.asked.append(("rows", rows))
        return 10.0 * rows

    def _decode_pieces(self, num_decode: int) -> Iterator[Line]:
        self.asked.append(("pieces", num_decode))
        yield 0.0, 2.0, 10 * num_decode
        yield -10.0 * num_decode, 3.0, 100 * num_decode

    def _mixed_pieces(self, num_decode: int) -> Iterator[Line]:
        return self._decode_pieces(num_decode)

    def _prefill_rates(self) -> PrefillRates:
        return PrefillRates(1000.0, 100.0, 10.0, 1.0, 0.1)

    def _beyond(self, num_decode: int, read_tokens: int) -> Exception:
        return LookupError(f"{num_decode}: {read_tokens}")

    @property
    def source(self) -> Source:
        return Source.MODELLED

    def energy_j(self, shape: StepShape, time_s: float) -> float | None:
        return 2 * time_s if shape.num_decode else None


def test_decodes_by_hand() -> None:
    model = Bent()
    assert model.decode_line(2, 5) == (22.0, 2.0, 20)
    assert model.step_s(0, 0, 0, 0, 0, 2, 5) == 22.0 + 2.0 * 5
    assert model.decode_line(2, 20) == (2.0, 3.0, 200)
    assert model.step_s(0, 0, 0, 0, 0, 2, 150) == 2.0 + 3.0 * 150
    assert model.step_s(0, 0, 0, 0, 0, 2, 5) == 22.0 + 2.0 * 5  # back on the first piece
    assert model.step(StepShape(num_decode=2, decode_read_tokens=5)).energy_j == 2 * 32.0


def test_a_step_with_prompts_by_hand() -> None:
    model = Bent()
    prompts = 1000 + 100 * 3 + 10 * 7 + 1 * 4 + 0.1 * 6
    assert model.step_s(7, 3, 4, 6, 1, 2, 150) == pytest.approx((7 + 2) + 10 * (1 + 2) + prompts + (-20 + 3 * 150))
    assert model.step_s(7, 3, 4, 6, 1, 2, 5) == pytest.approx((7 + 2) + 10 * (1 + 2) + prompts + 2 * 5)
    assert model.step_s(7, 3, 4, 6, 1, 0, 0) == pytest.approx(7 + 10 + prompts)


def test_nothing_is_asked_twice() -> None:
    model = Bent()
    for read, prompt in itertools.product((5, 30, 150), (0, 7)):
        model.step_s(prompt, int(prompt > 0), 0, 0, 0, 2, read)
        model.decode_line(2, read)
    assert sorted(model.asked) == [("pieces", 2), ("pieces", 2), ("rows", 2), ("tokens", 2), ("tokens", 9)]


@pytest.mark.parametrize("prompt", [0, 7])
def test_behind_the_last_piece_the_subclass_speaks(prompt: int) -> None:
    model = Bent()
    model.step_s(prompt, int(prompt > 0), 0, 0, 0, 2, 199)
    with pytest.raises(LookupError, match="2: 200"):
        model.step_s(prompt, int(prompt > 0), 0, 0, 0, 2, 200)
