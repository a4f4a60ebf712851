"""Least pending tokens: join the shortest queue, where length is work still to do rather than a count of requests.

What is left of a request: its prompt tokens without KV, and the answer tokens still to come, as far as the front door
can know them (a predicted length, else the maximum that the engine was told, else the truth). This is the queue length
of Splitwise's cluster scheduler (Patel et al., ISCA 2024, section 4.4) with the answers counted too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.engine.fleets.fleet import Fleet


class LeastPendingTokens:
    """Sees what is in place at the arrival; tokens of a step under way count as done. Ties: the lowest number."""

    needs_state = True
    counts_tokens = True
    takes_least_pending = True

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """The replica with the least work left at `now_s`."""
        del request, now_s
        return fleet.least_pending()
