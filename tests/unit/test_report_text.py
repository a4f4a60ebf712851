"""How figures are written."""

from __future__ import annotations

import pytest

from plimsoll.report.text import band_basis, dollars, interval, interval_s, number, seconds, share


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0, "0"), (0.0, "0"), (4, "4"), (4.0, "4"), (4.004, "4.00"), (31.02, "31.0"), (12.34, "12.3"),
        (99.96, "100"), (999.6, "1,000"), (1234.5, "1,234"), (1_000_000, "1,000,000"), (0.01234, "0.0123"),
        (0.0999999, "0.100"), (0.000001234, "0.00000123"), (-2.5, "-2.50"), (123, "123"),
    ],
)  # fmt: skip
def test_three_significant_digits_and_whole_numbers_whole(value: float | None, text: str) -> None:
    assert number(value) == text


def test_more_digits_where_asked() -> None:
    assert [number(value, 4) for value in (20.904, 9.99996, 1234.5)] == ["20.90", "10.00", "1,234"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0, "0 s"), (0.0000123, "12.3 µs"), (0.00085, "850 µs"), (0.0421, "42.1 ms"), (0.9999, "1.00 s"),
        (1, "1 s"), (3.2, "3.20 s"), (119, "119 s"), (120, "2 min"), (251, "4.18 min"), (7200, "2 h"), (9000, "2.50 h"),
    ],
)  # fmt: skip
def test_a_duration_takes_the_unit_that_reads_best(value: float | None, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "$0.00"), (9.95, "$9.95"), (1234.5, "$1,234.50"), (0.21, "$0.210"), (0.012, "$0.0120")],
)
def test_money(value: float | None, text: str) -> None:
    assert dollars(value) == text


def test_intervals_have_open_sides() -> None:
    assert interval([18.1, 22.0]) == "18.1–22"
    assert interval([None, None]) == "0–∞"
    assert interval(None) == ""
    assert interval_s([0.113, 0.14]) == "113 ms … 140 ms"
    assert interval_s([0.113, None]) == "113 ms or more"
    assert interval_s(None) == "–"


def test_a_share() -> None:
    assert (share(0.4251), share(1.0), share(None)) == ("42.5 %", "100.0 %", "–")


@pytest.mark.parametrize(
    ("basis", "words"),
    [
        ("runs of ML.ENERGY", ""),
        ("runs of ML.ENERGY, host time in them", ", host time aside"),
        ("runs, host time in them; before calibration", ", host time aside, before calibration"),
    ],
)
def test_a_band_says_what_it_leaves_out(basis: str, words: str) -> None:
    assert band_basis({"basis": basis}) == words
