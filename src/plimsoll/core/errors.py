"""The ways in which Plimsoll says no.

    PlimsollError                 exit code 2 at the command line, one line
    ├── InputError                a field holds a value that cannot be used; names the remedy
    │   └── UnknownNameError      a name that no catalogue file has; lists the closest ones
    ├── InfeasibleError           the deployment could not start (memory, divisibility, precision)
    ├── OutOfRangeError           a measured table does not cover what was asked
    └── MissingExtraError         an optional dependency is not installed; names the extra

`None` means "does not fit now" and is no error. An `assert` is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 32
"""Names that are listed one by one; of more than that only a part."""


class PlimsollError(Exception):
    """The base of every error that a user can mend. Its text is one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class InputError(PlimsollError):
    """A field of the input holds a value that cannot be used.

    Args:
        field: what the user typed it into, as they know it (``--rate``, ``trace.csv line 7, ContextTokens``).
        value: what was found there.
        remedy: what to write instead.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        found = "missing" if value is None else f"{shown} cannot be used"
        super().__init__(f"{field}: {found}; {remedy}")
        self.field, self.value, self.remedy = field, value, remedy

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.field, self.value, self.remedy)


class UnknownNameError(InputError):
    """A name that is in no catalogue. Lists the closest known names."""

    def __init__(self, field: str, value: object, known: Iterable[str], hint: str = "") -> None:
        self.known = tuple(known)
        self.hint = hint
        close = closest_names(str(value), self.known)
        remedy = f"did you mean {', '.join(close)}?" if close else f"known: {_listed(self.known)}"
        super().__init__(field, value, f"{remedy} {hint}".strip())

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.field, self.value, self.known, self.hint)


def _listed(names: Iterable[str]) -> str:
    """All names, or the first of a long list and how many more there are."""
    ordered = sorted(set(names))
    if len(ordered) <= MOST_LISTED:
        return ", ".join(ordered)
    shown = ordered[: MOST_LISTED // 2]
    return f"{', '.join(shown)} and {len(ordered) - len(shown)} more"


class InfeasibleError(PlimsollError):
    """A deployment that could not start: it does not fit, does not divide or is not supported.

    Args:
        reason: the whole sentence, with the figures.
        constraint: the machine-readable kind: ``memory``, ``divisibility``, ``precision``, ``topology``, ``engine``.
    """

    def __init__(self, reason: str, constraint: str) -> None:
        super().__init__(reason)
        self.reason, self.constraint = reason, constraint

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.constraint)


class OutOfRangeError(PlimsollError):
    """A table was asked for a point outside what was measured, and extrapolation was not allowed."""


class MissingExtraError(PlimsollError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency; install it with: pip install 'plimsoll[{extra}]'")
        self.feature, self.extra = feature, extra

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.feature, self.extra)


def closest_names(name: str, known: Iterable[str], limit: int = 4) -> list[str]:
    """The catalogue names most like `name`, best first; case and punctuation do not count."""

    def plain(text: str) -> str:
        return "".join(ch for ch in text.lower() if ch.isalnum())

    by_plain = {plain(candidate): candidate for candidate in known}
    wanted = plain(name)
    inside = [by_plain[key] for key in sorted(by_plain, key=len) if wanted and (wanted in key or key in wanted) and key]
    similar = [by_plain[key] for key in difflib.get_close_matches(wanted, by_plain, n=limit, cutoff=0.55)]
    return list(dict.fromkeys([*similar, *inside]))[:limit]
