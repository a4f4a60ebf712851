"""What a router that was asked for does not do on this deployment and this load."""

from __future__ import annotations

from plimsoll.core.workload import Workload
from plimsoll.engine.cluster import ROUTERS
from plimsoll.engine.plugins import load_plugin
from plimsoll.planner.pools import list_pool_engines

STICKY = "session-sticky"


def router_notes(router: str, policy: str, replicas: int, workload: Workload) -> list[str]:
    """Sentences for the user: an engine that routes by itself, and sessions that are not there.

    Raises:
        UnknownNameError: no router has that name.

    Args:
        router: as it was typed, with its options.
        policy: the engine's.
        replicas: behind the router.
        workload: whose sessions it would follow.
    """
    name = router.partition(",")[0]
    if policy in list_pool_engines():
        load_plugin(ROUTERS, name, "--router")  # a misspelt one is refused though nobody uses it
        # NOTE: the default is not told from the same name typed out; then nothing is lost by saying nothing.
        ignored = f"{policy} hands requests to its machines by rules of its own: --router {router} is not used"
        return [ignored] if name != "round-robin" else []
    if name == STICKY and replicas > 1 and workload.session is None:
        return [f"the workload has no sessions: {STICKY} takes the replicas in turn, as round-robin does"]
    return []
