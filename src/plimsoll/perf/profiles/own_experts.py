"""Experts between the points of ``moe.csv``: by tokens, and by how many experts any of them uses.

T tokens use between k (all the same ones) and ``min(E, T·k)`` experts. A row of the table is read at the share of the
way between the two, not at the number itself: where experts cost what their weights cost, time is then exact between
rows of few tokens, whose ranges do not even touch. Routing is uniform, ``E·(1 - (1 - k/E)^T)`` experts on average.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from plimsoll.core.units import US_PER_S
from plimsoll.perf.profiles.curves import Curve, neighbours
from plimsoll.perf.profiles.grids import Slices
from plimsoll.perf.profiles.own_format import Row


def most_experts(sizes: Mapping[str, int], tokens: int) -> int:
    """Experts that `tokens` tokens use at most."""
    return min(sizes["num_experts"], tokens * sizes["experts_per_token"])


def expected_experts(sizes: Mapping[str, int], tokens: int) -> float:
    """Experts that `tokens` tokens use on average, each choosing any of them alike."""
    experts = sizes["num_experts"]
    return float(experts * (1 - (1 - sizes["experts_per_token"] / experts) ** tokens))


def axis_bend(sizes: Mapping[str, int]) -> int:
    """The tokens from which on all experts can be in use: a point that the table's axis should have."""
    return math.ceil(sizes["num_experts"] / sizes["experts_per_token"])


class OwnExperts:
    """Seconds of the routed experts of one layer.

    Args:
        rows: of ``moe.csv``.
        sizes: of the model (`own_checks.shape_of`).
    """

    def __init__(self, rows: Iterable[Row], sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        measured: dict[int, dict[int, float]] = defaultdict(dict)
        for row in rows:
            measured[row["tokens"]][row["activated_experts"]] = row["time_us"] / US_PER_S
        self.rows = Slices.of({tokens: Curve.of(times) for tokens, times in measured.items()})

    def expected_s(self, tokens: int) -> float:
        """Of `tokens` tokens, routed uniformly."""
        return self.at(tokens, expected_experts(self._sizes, tokens))

    def at(self, tokens: int, activated: float) -> float:
        """Of `tokens` tokens that use `activated` experts; more tokens than were measured cost in proportion."""
        fewest, most = self._sizes["experts_per_token"], most_experts(self._sizes, tokens)
        share = (activated - fewest) / (most - fewest) if most > fewest else 1.0
        low, high, weight = neighbours(self.rows.axis, tokens)
        start = self._row_s(low, share)
        if not weight:
            return start if tokens <= high else start * tokens / high
        return start + weight * (self._row_s(high, share) - start)

    def _row_s(self, tokens: int, share: float) -> float:
        fewest, most = self._sizes["experts_per_token"], most_experts(self._sizes, tokens)
        return self.rows.items[tokens].at(fewest + share * (most - fewest))
