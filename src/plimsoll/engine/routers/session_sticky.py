"""Session sticky: every turn of a conversation goes where its first turn went, so that its KV may still be there.

First turns, and workloads without sessions, take the replicas in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.core.workload import Workload
    from plimsoll.engine.fleets.fleet import Fleet


class SessionSticky:
    """Remembers a replica for each session."""

    needs_state = False

    def __init__(self, *, workload: Workload) -> None:
        self._session = None if workload.session is None else workload.session.tolist()
        self._home: dict[int, int] = {}
        self._turn = -1

    def choose(self, fleet: Fleet, request: int, now_s: float, /) -> int:
        """The session's replica, or the next in turn."""
        del now_s
        if self._session is not None:
            home = self._home.get(self._session[request])
            if home is not None:
                return home
        self._turn = (self._turn + 1) % len(fleet)
        if self._session is not None:
            self._home[self._session[request]] = self._turn
        return self._turn
