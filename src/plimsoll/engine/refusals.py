"""Why requests are refused at their arrival: too long for the server, for a step, or for a rule of the policy."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plimsoll.core.workload import Workload
from plimsoll.engine import plugins
from plimsoll.engine.config import EngineConfig
from plimsoll.engine.requests import Requests

Mask = npt.NDArray[np.bool_]

ENDLESS_STEP = 1 << 40
"""Tokens of a step that hold any prompt."""


class Refusals(NamedTuple):
    """Who is refused, ``bool[n]`` each; nobody for two reasons.

    Attributes:
        too_long: longer than the longest sequence or than the whole cache.
        by_step: refused by the policy, which would take them if a step had more tokens.
        by_rule: refused by the policy for whatever else, as a rule for what it reserves.
        step_options: options of the policy that, set to true, take everybody of `by_step` with the step as it is.
    """

    too_long: Mask
    by_step: Mask
    by_rule: Mask
    step_options: tuple[str, ...] = ()


def refusals(workload: Workload, config: EngineConfig) -> Refusals:
    """Why `config` refuses requests of `workload`; the reasons are found by asking its policy again with others.

    Raises:
        UnknownNameError, InputError: the policy or one of its options does not exist.
    """
    output = np.minimum(workload.output_tokens, config.max_model_len - workload.prompt_tokens)
    blocks = -(-(workload.prompt_tokens + output - 1) // config.block_size)
    too_long: Mask = np.asarray((output < 1) | (blocks > config.num_blocks))
    none: Mask = np.zeros(len(workload), dtype=np.bool_)
    policy_class = None
    if config.policy in plugins.list_plugins(plugins.POLICIES) or config.policy.endswith(".py"):
        policy_class = plugins.load_plugin(plugins.POLICIES, config.policy, "--engine")
    if too_long.all() or policy_class is None or not hasattr(policy_class, "accepts"):
        return Refusals(too_long, none, none)
    requests = Requests(workload, config.max_model_len)
    refused = ~_taken(policy_class, requests, config) & ~too_long
    if not refused.any():
        return Refusals(too_long, none, none)
    endless = dataclasses.replace(config, max_num_batched_tokens=max(ENDLESS_STEP, config.max_num_batched_tokens))
    by_step = refused & _taken(policy_class, requests, endless)
    options = []
    for key, default in plugins.option_defaults(policy_class).items() if by_step.any() else ():
        if default is False and config.options.get(key) is not True:
            other = dataclasses.replace(config, options={**config.options, key: True})
            options += [key] if _taken(policy_class, requests, other)[by_step].all() else []
    return Refusals(too_long, by_step, refused & ~by_step, tuple(options))


def _taken(policy_class: type, requests: Requests, config: EngineConfig) -> Mask:
    policy: Any = plugins.construct(policy_class, config.policy, config, config.options)
    return np.asarray(policy.accepts(requests, config), dtype=np.bool_)
