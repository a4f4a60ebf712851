"""Fast engines beside themselves in single steps, and how often they are turned to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from plimsoll import _ENGINE
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate

UNCOUNTED = _ENGINE == "engine compiled"
"""Whether nothing can be put in place of a method of the engine, so that calls are not counted."""


class Silent:
    """An observer has to see single steps: with it nothing is put off, foretold or run ahead."""

    def scheduled(self, *_: object) -> None: ...

    def stepped(self, *_: object) -> None: ...


def same_as_single_steps(workload: Workload, config: EngineConfig, model: Any, duration_s: float | None = None) -> Run:
    """The run, which is that of single steps to the last bit."""
    run = simulate(workload, config, model, duration_s=duration_s)
    assert run.equal(simulate(workload, config, model, duration_s=duration_s, observer=Silent()))
    return run


def counted_calls(monkeypatch: pytest.MonkeyPatch, *methods: tuple[type, str]) -> Counter[str]:
    """How often each method is called from now on, by its name; empty where they are `UNCOUNTED`."""
    counted: Counter[str] = Counter()
    if UNCOUNTED:
        return counted

    def watch(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*given: Any) -> Any:
            counted[name] += 1
            return original(*given)

        monkeypatch.setattr(owner, name, call)

    for owner, name in methods:
        watch(owner, name)
    return counted
