"""Round robin: request i goes to replica i mod n. Needs no state, so replicas can be simulated one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.engine.fleets.fleet import Fleet


class RoundRobin:
    """Takes the replicas in turn."""

    needs_state = False

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """The next replica in turn; `request` and `now_s` do not matter."""
        del request, now_s
        self._turn = (self._turn + 1) % len(fleet)
        return self._turn
