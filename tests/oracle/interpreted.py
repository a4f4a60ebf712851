"""Parts of the engine as Python runs their source, also where the engine is compiled: for oracles that ask policies.

A compiled policy takes no view but the engine's own. So where the engine is compiled, oracles ask a second copy of it,
and check with that that compiled and interpreted policies say the same.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import plimsoll
from plimsoll import _ENGINE
from plimsoll._compiled import SourceOnly
from plimsoll.engine import EngineConfig

COPIES: dict[str, ModuleType] = {}


@contextlib.contextmanager
def interpreted_engine() -> Iterator[None]:
    """In here, what is imported of `plimsoll.engine` is interpreted."""
    if _ENGINE != "engine compiled":
        yield
        return
    package, ours, finder = plimsoll.engine, _taken_out(), SourceOnly()
    sys.modules.update(COPIES)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        COPIES.update(_taken_out())
        sys.modules.update(ours)
        plimsoll.engine = package


def construct_interpreted(config: EngineConfig) -> Any:
    """The policy of an engine."""
    with interpreted_engine():
        plugins = importlib.import_module("plimsoll.engine.plugins")
        policy_class = plugins.load_plugin(plugins.POLICIES, config.policy, "--engine")
        return plugins.construct(policy_class, config.policy, config, config.options)


def _taken_out() -> dict[str, ModuleType]:
    """The engine's modules, which nobody finds any more."""
    names = [name for name in sys.modules if name == "plimsoll.engine" or name.startswith("plimsoll.engine.")]
    return {name: sys.modules.pop(name) for name in names}
