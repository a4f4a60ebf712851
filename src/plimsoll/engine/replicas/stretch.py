"""Steps that were run before anybody asked, noted so that they can be looked up."""

from __future__ import annotations

from array import array

from mypy_extensions import mypyc_attr


@mypyc_attr(acyclic=True)
class Stretch:
    """Steps that were run past the arrivals still to come.

    Attributes:
        begin_s, end_s: of all of them.
        first, last: the steps.
        before, after: progress before them, and with those who ended.
        tokens: what each of them put in place.
    """

    __slots__ = ("after", "before", "begin_s", "end_s", "first", "last", "tokens")

    def __init__(
        self, begin_s: float, end_s: float, first: int, last: int, before: int, tokens: int, after: int
    ) -> None:
        self.begin_s = begin_s
        self.end_s = end_s
        self.first = first
        self.last = last
        self.before = before
        self.tokens = tokens
        self.after = after


def note(
    noted: list[Stretch] | None,
    ends: array[float],
    begin_s: float,
    first: int,
    before: int,
    each: int,
    after: int,
    odd_first: bool,
) -> None:
    """Note the steps from `first` on: all but the first of them, or the last, put `each` tokens in place."""
    assert noted is not None
    last = len(ends) - 1
    if last <= first:
        end_s = ends[first] if last == first else begin_s
        noted.append(Stretch(begin_s, end_s, first, last, before, after - before, after))
        return
    odd = after - before - each * (last - first)
    if odd != each and odd_first:
        noted.append(Stretch(begin_s, ends[first], first, first, before, odd, before + odd))
        begin_s, first, before = ends[first], first + 1, before + odd
    elif odd != each:
        noted.append(Stretch(begin_s, ends[last - 1], first, last - 1, before, each, after - odd))
        begin_s, first, before, each = ends[last - 1], last, after - odd, odd
    noted.append(Stretch(begin_s, ends[last], first, last, before, each, after))
