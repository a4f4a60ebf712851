"""Least loaded: the replica with the fewest requests sent to it and not yet answered; ties go to the lowest number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.engine.fleet import Fleet


class LeastLoaded:
    """Counts outstanding requests, waiting ones included, as a proxy at the front door sees them."""

    needs_state = True
    counts_requests = True

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """The number of the replica with the fewest outstanding requests at `now_s`."""
        del request, now_s
        return self.pick(fleet.loads())

    @staticmethod
    def pick(loads: list[int]) -> int:
        """The same, where nothing but the counts are looked at anyway."""
        return loads.index(min(loads))
