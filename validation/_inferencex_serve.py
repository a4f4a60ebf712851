"""A closed loop through an API server: requests reach the engine one after another, not all at the same moment.

    user ──► API server (one at a time) ──► engine ──► user

The server parses and tokenises one request at a time, so of users who send at once, because a step has answered all of
them, the first is scheduled while the others are still on their way. That decides whether their prompts run together.
"""

from __future__ import annotations

import dataclasses
import heapq

from plimsoll.core.run import Run
from plimsoll.core.step import StepModel
from plimsoll.core.workload import Workload
from plimsoll.engine.arrivals import INFINITE, Arrivals
from plimsoll.engine.cluster import serve_arrivals
from plimsoll.engine.config import EngineConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiServer:
    """Seconds that the server is busy with a request before the engine sees it.

    Attributes:
        per_request_s: of any request.
        per_prompt_token_s: of each prompt token.
    """

    per_request_s: float = 0.0
    per_prompt_token_s: float = 0.0


class QueuedArrivals(Arrivals):
    """Users of a closed loop, and the server's queue between them and the engine."""

    def __init__(self, workload: Workload, accepted: list[int], server: ApiServer) -> None:
        self._service_s = (server.per_request_s + server.per_prompt_token_s * workload.prompt_tokens).tolist()
        self._server_free_s = 0.0
        super().__init__(workload, accepted)

    def _line_up(self, free_s: float) -> None:
        request = next(self._upcoming, None)
        if request is not None:
            sent_s = max(free_s, self._earliest_s[request])
            self._server_free_s = max(self._server_free_s, sent_s) + self._service_s[request]
            heapq.heappush(self._sends, (self._server_free_s, request))
            self.sent_s[request] = sent_s
        self.next_s = self._sends[0][0] if self._sends else INFINITE

    def take(self) -> tuple[float, int]:
        """The next request to reach the engine: when, and its number. There must be one."""
        now_s, request = heapq.heappop(self._sends)
        self.next_s = self._sends[0][0] if self._sends else INFINITE
        return now_s, request


def serve(workload: Workload, config: EngineConfig, model: StepModel, server: ApiServer) -> Run:
    """`plimsoll.engine.simulate` of one replica behind a server; `arrival_s` of the run is when a user sent.

    Raises:
        ValueError: not a closed loop.
    """
    return serve_arrivals(workload, config, model, lambda sent, accepted: QueuedArrivals(sent, accepted, server))
