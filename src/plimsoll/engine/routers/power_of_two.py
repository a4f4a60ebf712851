"""Power of two choices: the less loaded of two replicas drawn at random (Mitzenmacher, IEEE TPDS 2001)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.engine.fleets.fleet import Fleet


class PowerOfTwo:
    """Draws two different replicas and counts their outstanding requests; the one drawn first wins a tie."""

    needs_state = True
    counts_requests = True

    def __init__(self, *, seed: int) -> None:
        self._draw = random.Random(seed).random
        self._count = 0

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """The less loaded of two."""
        del request, now_s
        count = self._count = self._count or len(fleet)
        if count == 1:
            return 0
        draw = self._draw
        first, second = int(draw() * count), int(draw() * (count - 1))
        return fleet.fewer(first, second + 1 if second >= first else second)
