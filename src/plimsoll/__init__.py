"""Plimsoll: what to deploy for LLM serving, how much load it carries within its latency targets, what it costs.

    import plimsoll

    result = plimsoll.simulate(model="Llama-3.1-8B", gpu="H100-SXM", workload="chat", rate_per_s=4)
    result.metrics.ttft_s.p99

The calls take the same fields as the command line (`plimsoll simulate --help`) and return frozen results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plimsoll._compiled import choose
from plimsoll._version import __version__

if TYPE_CHECKING:
    from plimsoll.api.calibrating import calibrate
    from plimsoll.api.capacity import capacity
    from plimsoll.api.catalogue import catalog
    from plimsoll.api.planning import plan
    from plimsoll.api.profiling import profile
    from plimsoll.api.simulation import simulate
    from plimsoll.api.study import study_engines as study

__all__ = ["__version__", "calibrate", "capacity", "catalog", "plan", "profile", "simulate", "study"]

_ENGINE = choose()
_HOMES = {
    "calibrate": "calibrating.calibrate",
    "capacity": "capacity.capacity",
    "catalog": "catalogue.catalog",
    "plan": "planning.plan",
    "profile": "profiling.profile",
    "simulate": "simulation.simulate",
    "study": "study.study_engines",
}


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used, so that ``import plimsoll`` and ``--help`` cost nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'plimsoll' has no attribute {name!r}")
    import importlib

    module, verb = _HOMES[name].split(".")
    return getattr(importlib.import_module(f"plimsoll.api.{module}"), verb)
