"""Sentences on requests that a server refuses: how many, why, and what would take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plimsoll.api.resolve import Resolved
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.engine.plugins import policy_named
from plimsoll.engine.refusals import refusals


def refused_notes(run: Run, workload: Workload, kinds: Sequence[Resolved]) -> list[str]:
    """One sentence for each reason; none where nobody is refused.

    Args:
        run: of `workload`, or of as many of its first requests as were sent.
        workload: what was asked: a run does not tell how long the answer of a refused request would have been.
        kinds: of replicas; a request must fit on every one of them.
    """
    refused = run.status == Status.REJECTED
    if not refused.any():
        return []
    policy = kinds[0].config.policy
    with policy_named(policy):
        reasons = [refusals(workload, kind.config) for kind in kinds]
    sent = slice(len(run))
    too_long = refused & np.any([reason.too_long[sent] for reason in reasons], axis=0)
    by_step = refused & ~too_long & np.any([reason.by_step[sent] for reason in reasons], axis=0)
    by_rule = refused & ~too_long & ~by_step
    notes = []
    if too_long.any():
        longest = min(min(one.memory.max_model_len, one.config.num_blocks * one.config.block_size) for one in kinds)
        count = f"{int(too_long.sum())} of {len(run)} requests"
        notes.append(f"{count} are longer than the server takes ({longest} tokens): rejected")
    if by_step.any():
        tokens = min(one.config.max_num_batched_tokens for one in kinds)
        options = {option for reason in reasons for option in reason.step_options}
        remedy = "".join(f" or use {option}=true" for option in sorted(options))
        count = f"{policy}: {int(by_step.sum())} of {len(run)} prompts"
        notes.append(
            f"{count} do not fit into a step of {tokens:,} tokens: rejected; raise --max-num-batched-tokens{remedy}"
        )
    if by_rule.any():
        count = f"{policy}: {int(by_rule.sum())} of {len(run)} requests"
        notes.append(
            f"{count} need more memory than its rule gives to one: rejected; shorten them, "
            "leave more memory to the KV cache, or change the engine's options"
        )
    return notes
