"""Seats, tokens of a step and share of memory that an engine has by itself: those of its paper or its code.

They hold where the user gives none. The engines of the catalogue have theirs by GPU (`catalog.engines`). Any other runs
with these, if its policy names some (`own_settings`), and else with those of the catalogue's engine that stands in for
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from plimsoll.core.deployment import EngineSettings
from plimsoll.core.errors import InfeasibleError
from plimsoll.engine.plugins import list_plugins, load_plugin, option_defaults
from plimsoll.perf.memory import MemoryPlan

POLICIES = "plimsoll.engine.policies"


def own_defaults(policy: str) -> Mapping[str, Any]:
    """What a policy says of its own settings (`GeneralPolicy.own_settings`); empty where it says nothing."""
    if policy not in list_plugins(POLICIES):
        return {}
    found: Mapping[str, Any] = getattr(load_plugin(POLICIES, policy, "--engine"), "own_settings", {})
    return found


def with_own_defaults(settings: EngineSettings, policy: str, max_model_len: int) -> EngineSettings:
    """`settings` with a policy's own seats and tokens of a step where none were given.

    Args:
        settings: as the user gave them, options included.
        policy: whose defaults hold.
        max_model_len: tokens of the longest sequence.
    """
    own = own_defaults(policy)
    changes: dict[str, Any] = {}
    for name, value in own.items():
        if getattr(settings, name) is not None:
            continue
        if isinstance(value, str):
            options = {**option_defaults(load_plugin(POLICIES, policy, "--engine")), **settings.options}
            value = options[value]
        changes[name] = max(max_model_len, value[1]) if isinstance(value, tuple) else value
    return dataclasses.replace(settings, **changes) if changes else settings


def sized_with_own_defaults(
    settings: EngineSettings, policy: str, max_model_len: int, size: Callable[[EngineSettings], MemoryPlan]
) -> MemoryPlan:
    """The memory plan under a policy's own defaults.

    Where its tokens of a step follow the longest sequence, and that was not given, both shrink together to the longest
    sequence with which the engine starts: a larger step needs more memory for activations and leaves less for KV.

    Args:
        settings: as the user gave them.
        policy: whose defaults hold.
        max_model_len: tokens of the longest sequence that the model takes.
        size: the memory plan under complete settings.

    Raises:
        InfeasibleError: the weights or one sequence do not fit.
    """
    wanted, least = (with_own_defaults(settings, policy, tokens) for tokens in (max_model_len, 1))
    smallest = least.max_num_batched_tokens
    if smallest is None or wanted == least or settings.max_model_len is not None:
        return size(wanted)
    plan = size(least)
    if plan.max_model_len <= smallest:
        return plan
    low, high = smallest, plan.max_model_len
    plan = size(dataclasses.replace(least, max_model_len=low))
    tried = high  # the longest there can be is the likely one
    while low < high:
        try:
            asked = dataclasses.replace(with_own_defaults(settings, policy, tried), max_model_len=tried)
            low, plan = tried, size(asked)
        except InfeasibleError:
            high = tried - 1
        tried = (low + high + 1) // 2
    return plan


def own_defaults_note(settings: EngineSettings, policy: str, resolved: EngineSettings) -> list[str]:
    """Which of an engine's own defaults hold, in a sentence; nothing where all was given.

    Args:
        settings: as the user gave them.
        policy: whose defaults hold.
        resolved: without gaps.
    """
    names = [name for name in own_defaults(policy) if getattr(settings, name) is None]
    values = ", ".join(f"{name} {getattr(resolved, name):,}" for name in names)
    return [f"{policy} runs with defaults of its own: {values}"] if names else []
