"""Options of an engine that follow from the model and the GPU rather than from its own defaults: seconds of a swap."""

from __future__ import annotations

import dataclasses
import functools

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.engine.plugins import list_plugins, load_plugin, option_defaults
from plimsoll.perf.memory import MemoryPlan

POLICIES = "plimsoll.engine.policies"
OPTION = "swap_block_s"


def with_swap_seconds(memory: MemoryPlan, policy: str, gpu: Accelerator) -> MemoryPlan:
    """The plan with `swap_block_s` among its engine's options, for a policy that has one and was not told.

    Seconds to move one KV block between a GPU and its host: the block's bytes on that GPU over one direction of its
    host link, from the catalogue. With tensor parallelism every GPU moves its own part at the same time.

    Raises:
        InputError: a user's file that cannot be read.
    """
    options = memory.settings.options
    if OPTION in options or not _swaps(policy):
        return memory
    seconds = memory.block_bytes / gpu.pcie_bytes_per_s
    settings = dataclasses.replace(memory.settings, options={**options, OPTION: seconds})
    return dataclasses.replace(memory, settings=settings)


def _swaps(policy: str) -> bool:
    """Whether a policy takes the option; an engine with pools of its own, or nothing, does not."""
    if policy.endswith(".py"):
        return _has_option(policy)
    return policy in list_plugins(POLICIES) and _known_to_have_option(policy)


def _has_option(policy: str) -> bool:
    return OPTION in option_defaults(load_plugin(POLICIES, policy, "--engine"))


_known_to_have_option = functools.cache(_has_option)
