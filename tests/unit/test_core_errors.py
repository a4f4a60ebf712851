"""How Plimsoll says no: one line, the closest names, and the same after a trip between processes."""

from __future__ import annotations

import pickle

import pytest

from plimsoll.core.errors import (
    MOST_LISTED,
    InfeasibleError,
    InputError,
    MissingExtraError,
    OutOfRangeError,
    PlimsollError,
    UnknownNameError,
    closest_names,
)

NAMES = ("H100-SXM", "H100-PCIe", "H200", "A100-SXM-80GB", "L4", "L40S")


def test_an_error_is_one_line_with_field_value_and_remedy() -> None:
    assert (
        str(InputError("--rate", 0, "give a rate\n  above zero")) == "--rate: 0 cannot be used; give a rate above zero"
    )


def test_a_long_value_is_cut() -> None:
    assert len(str(InputError("x", "y" * 10_000, "z"))) < 160


@pytest.mark.parametrize(
    ("typed", "best"),
    [("H100-SMX", "H100-SXM"), ("h100sxm", "H100-SXM"), ("a100 80", "A100-SXM-80GB"), ("l40-s", "L40S")],
)
def test_the_closest_name_comes_first(typed: str, best: str) -> None:
    assert closest_names(typed, NAMES)[0] == best
    assert f"did you mean {best}" in str(UnknownNameError("--gpu", typed, NAMES))


def test_what_is_like_nothing_lists_what_there_is() -> None:
    assert closest_names("xyzzy", NAMES) == []
    assert "known: A100-SXM-80GB, H100-PCIe" in str(UnknownNameError("--gpu", "xyzzy", NAMES))
    assert closest_names("", NAMES) == []


def test_a_long_list_says_how_much_of_it_is_left_out() -> None:
    few = [f"name-{i:02}" for i in range(MOST_LISTED)]
    assert all(name in str(UnknownNameError("--gpu", "xyzzy", [*few, few[0]])) for name in few)
    assert "more" not in str(UnknownNameError("--gpu", "xyzzy", few))
    text = str(UnknownNameError("--gpu", "xyzzy", [*few, "name-99"]))
    assert text.endswith(f"name-{MOST_LISTED // 2 - 1:02} and {MOST_LISTED // 2 + 1} more")


@pytest.mark.parametrize(
    "error",
    [
        InputError("--rate", 0, "more"),
        UnknownNameError("--gpu", "H1", NAMES, "or a file"),
        InfeasibleError("it does not fit", "memory"),
        OutOfRangeError("beyond the table"),
        MissingExtraError("silicon", "silicon"),
    ],
)
def test_an_error_survives_pickling(error: PlimsollError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def test_every_error_is_a_plimsoll_error() -> None:
    for kind in (InputError, UnknownNameError, InfeasibleError, OutOfRangeError, MissingExtraError):
        assert issubclass(kind, PlimsollError)
