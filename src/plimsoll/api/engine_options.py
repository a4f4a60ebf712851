"""Options of an engine that follow from the model and the GPU; the planner fills them in the same way."""

from __future__ import annotations

from plimsoll.planner.swap import with_swap_seconds

__all__ = ["with_swap_seconds"]
