"""Least loaded: the replica with the fewest requests sent to it and not yet answered; ties go to the lowest number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.engine.fleets.smallest import least_of

if TYPE_CHECKING:
    from plimsoll.engine.fleets.fleet import Fleet


class LeastLoaded:
    """Counts outstanding requests, waiting ones included, as a proxy at the front door sees them."""

    needs_state = True
    counts_requests = True
    pick = staticmethod(least_of)

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """The number of the replica with the fewest outstanding requests at `now_s`."""
        del request, now_s
        return least_of(fleet.loads())
