"""Fingerprints of simulations by every engine and router: alike whether the engine is compiled or interpreted.

python -m tests.both_ways        a line for each: its name, and a digest of all its columns
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from plimsoll.core.columns import Columns
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.plugins import list_plugins
from tests.oracle.models import KinkedModel

CONFIG = EngineConfig(num_blocks=100, max_num_seqs=24, max_num_batched_tokens=256, max_model_len=2048)
NUM_REQUESTS, BLOCK_TOKENS = 150, 16
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"async_scheduling": True},
    {"scheduling_policy": "priority"},
    {"cache_own_blocks": True},
)
RANKED = ("sglang", "trtllm", "vllm-v1")


def cases() -> Iterator[tuple[str, EngineConfig]]:
    """Every engine alone, and two of it, and `vllm-v1` behind every router."""
    for policy in list_plugins("plimsoll.engine.policies"):
        yield policy, dataclasses.replace(CONFIG, policy=policy, max_num_batched_tokens=4096)
        yield f"2 {policy}", dataclasses.replace(CONFIG, policy=policy, max_num_batched_tokens=4096, replicas=2)
    for options in OPTIONS:
        each = dataclasses.replace(CONFIG, options=options)
        for router in list_plugins("plimsoll.engine.routers"):
            yield f"{router} {options}", dataclasses.replace(each, replicas=3, router=router)
    for policy in RANKED:
        yield f"{policy}, ranks", dataclasses.replace(CONFIG, policy=policy, ranks=2)
    for policy in list_plugins("plimsoll.engine.clusters"):
        pools = {"prefill": 2, "decode": 1, "transfer_s_per_token": 2e-5, "transfer_latency_s": 8e-3}
        for options in ({"prefix_cache": False}, {"prefix_cache": True}):
            yield policy, dataclasses.replace(CONFIG, policy=policy, replicas=3, options={**pools, **options})


def workload() -> Workload:
    """Enough load that requests wait, and are evicted where an engine does that; some share their beginnings."""
    draw = np.random.default_rng(4)
    prompts, outputs = draw.integers(1, 400, NUM_REQUESTS), draw.integers(1, 120, NUM_REQUESTS)
    offsets = np.concatenate(([0], np.cumsum(-(-prompts // BLOCK_TOKENS))))
    ids = [100 * (k % 7) + i for k in range(NUM_REQUESTS) for i in range(int(offsets[k + 1] - offsets[k]))]
    return Workload(
        arrival_s=np.cumsum(draw.exponential(0.02, NUM_REQUESTS)),
        prompt_tokens=prompts,
        output_tokens=outputs,
        priority=draw.integers(0, 3, NUM_REQUESTS),
        session=np.arange(NUM_REQUESTS) % 7,
        block_tokens=BLOCK_TOKENS,
        prompt_block_ids=np.array(ids),
        prompt_block_offsets=offsets,
    )


def digest(made: Any, columns: Columns) -> None:
    """Add all columns, bit by bit."""
    for field in dataclasses.fields(columns):
        value = getattr(columns, field.name)
        if isinstance(value, Columns):
            digest(made, value)
        else:
            made.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())


def main() -> None:
    """Print them all."""
    requests = workload()
    plain = dataclasses.replace(requests, block_tokens=None, prompt_block_ids=None, prompt_block_offsets=None)
    for name, config in cases():
        made = hashlib.sha256()
        for each in (plain, requests):
            for stages in (1, 2):
                try:
                    digest(made, simulate(each, config, KinkedModel(num_stages=stages)))
                except (InfeasibleError, InputError) as error:  # not every engine has stages
                    made.update(str(error).encode())
        print(name, made.hexdigest(), sep="\t")


if __name__ == "__main__":
    main()
