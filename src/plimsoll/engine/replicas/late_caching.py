"""Asynchronous scheduling over blocks with content: prefix caching whose results come one step late."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from plimsoll.core.step import StepModel
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.policy import Policy
from plimsoll.engine.replicas.caching import BlocksWithContent
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.replica import Observer
from plimsoll.engine.requests import Requests


@mypyc_attr(allow_interpreted_subclasses=True)
class LateCachingReplica(LateReplica, BlocksWithContent):
    """A `LateReplica` with prefix caching.

    Raises:
        InputError: the block size does not go with the workload's content ids.
    """

    def __init__(
        self,
        requests: Requests,
        config: EngineConfig,
        model: StepModel,
        policy: Policy,
        number: int = 0,
        observer: Observer | None = None,
        by_priority: bool = False,
    ) -> None:
        super().__init__(requests, config, model, policy, number, observer, by_priority)
        self._open_pool()
        self._stops = True  # blocks without content go to the front of the free list: to be let go of in their step
