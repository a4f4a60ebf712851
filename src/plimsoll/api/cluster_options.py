"""What a cluster of an engine's machines is made of; the planner makes it in the same way."""

from __future__ import annotations

from plimsoll.planner.pools import HANDOVER_S, LATER_HANDOVER_S, with_pools
from plimsoll.planner.sizing import with_ranks

__all__ = ["HANDOVER_S", "LATER_HANDOVER_S", "with_pools", "with_ranks"]
