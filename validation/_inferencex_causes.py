"""Where the judged error of the time to first token lies: what is left of it as one part after another is made exact.

Each part is made exact by the judged rows' own measurements, which no prediction may do; the differences say what a
perfect part would bring, in this order:

    step cost          every row's steps scaled so that its TPOT is the measured one
    front end          then client, API server and launch of prompts refitted to the judged rows themselves
    repetition         rows that measure one configuration again differ by so much; nobody can predict that part
    rest               scheduler, settings that no column tells (speculation, batch limits), and unknown
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from validation._inferencex_factors import Factors, kernel_for
from validation._inferencex_fit import fit_front
from validation._inferencex_model import Prediction
from validation._inferencex_rows import Row


def split(rows: Sequence[Row], predictions: dict[str, Prediction], factors: Factors) -> list[dict[str, Any]]:
    """A table: part, median absolute error before and after it is exact, what it accounts for; empty for no rows."""
    pairs = [(row, predictions[row.id]) for row in rows if row.id in predictions]
    if not pairs:
        return []
    now = _median(pairs, [factors.apply(row, base) for row, base in pairs])
    exact = [math.exp(kernel_for(row, base)) for row, base in pairs]
    stepped = [factors.apply_kernel(row, base, kernel) for (row, base), kernel in zip(pairs, exact, strict=True)]
    with_steps = _median(pairs, stepped)
    bases = [Factors().apply_kernel(row, base, kernel) for (row, base), kernel in zip(pairs, exact, strict=True)]
    front = fit_front(pairs, bases)
    refitted = [front.apply_kernel(row, base, kernel) for (row, base), kernel in zip(pairs, exact, strict=True)]
    with_front = _median(pairs, refitted)
    repeated = repetition([row for row, _ in pairs])
    return [
        _line("step cost", now, with_steps),
        _line("load generator, API server, launch of prompts", with_steps, with_front),
        _line("scheduler, settings no column tells, unknown", with_front, repeated),
        _line("repetition of a measurement", repeated, 0.0),
    ]


def repetition(rows: Sequence[Row]) -> float:
    """Median distance of TTFTs of one configuration, measured more than once, from their mean; 0 where none was."""
    groups: dict[tuple[str, int, int, int], set[float]] = {}
    for row in rows:
        key = (row.deployment, row.prompt_tokens, row.output_tokens, row.concurrency)
        groups.setdefault(key, set()).add(row.ttft_s)
    apart = [abs(value / np.mean(list(found)) - 1) for found in groups.values() if len(found) > 1 for value in found]
    return float(np.median(apart)) if apart else 0.0


def _median(pairs: Sequence[tuple[Row, Prediction]], ours: Sequence[Prediction]) -> float:
    return float(np.median([abs(one.ttft_s / row.ttft_s - 1) for (row, _), one in zip(pairs, ours, strict=True)]))


def _line(part: str, before: float, after: float) -> dict[str, Any]:
    return {
        "part": part,
        "median abs error": round(before, 4),
        "with this part exact": round(after, 4),
        "accounts for": round(before - after, 4),
    }
