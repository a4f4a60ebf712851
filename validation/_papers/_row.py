"""One line of a table of published figures."""

from __future__ import annotations

from typing import Any

SHOWN = float("inf")
"""The bound of a figure that is shown without being judged."""


def row(figure: str, paper: float, ours: float, bound: float, *, unit: str, assumption: str = "") -> dict[str, Any]:
    """A published figure beside ours.

    Args:
        figure: what is compared.
        paper: the published value.
        ours: the computed one.
        bound: largest accepted relative error; infinite where a figure is shown without being judged.
        unit: of both.
        assumption: what was not published and had to be supplied, or why the figure cannot be met.

    Returns:
        Plain values: the arguments, ``error`` (relative, signed) and ``within``.
    """
    paper, ours = float(paper), float(ours)
    error = ours / paper - 1.0
    return {
        "figure": figure,
        "unit": unit,
        "paper": paper,
        "ours": ours,
        "error": error,
        "bound": None if bound == float("inf") else bound,
        "within": abs(error) <= bound,
        "assumption": assumption,
    }


def points(figure: str, paper: float, ours: float, bound: float, *, assumption: str = "") -> dict[str, Any]:
    """A published share beside ours, both in per cent, that may differ by `bound` percentage points.

    Args, returns: as of `row`; ``error`` stays relative, ``bound`` says that it counts points.
    """
    compared = row(figure, paper, ours, SHOWN, unit="%", assumption=assumption)
    if bound == SHOWN:
        return compared
    return {**compared, "bound": f"{bound:g} points", "within": abs(float(ours) - float(paper)) <= bound}


def as_text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for a terminal."""
    lines = [f"{'figure':<58} {'paper':>10} {'ours':>10} {'error':>8} {'bound':>8}  assumption"]
    for entry in rows:
        bound = {float: "{:.0%}", str: "{}"}.get(type(entry["bound"]), "-").format(entry["bound"])
        mark = "" if entry["within"] else "  MISS"
        lines.append(
            f"{entry['figure']:<58} {entry['paper']:>10.4g} {entry['ours']:>10.4g} {entry['error']:>+8.1%} {bound:>8}"
            f"{mark}  {entry['assumption']}"
        )
    return "\n".join(lines)
