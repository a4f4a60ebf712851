"""Random: any replica, each as likely as the others."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.engine.fleets.fleet import Fleet


class Random:
    """Draws one uniform number a request; the same seed draws the same numbers."""

    needs_state = False

    def __init__(self, *, seed: int) -> None:
        self._draw = random.Random(seed).random

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """Any replica; `request` and `now_s` do not matter."""
        del request, now_s
        return int(self._draw() * len(fleet))
