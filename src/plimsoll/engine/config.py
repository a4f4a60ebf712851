"""What the engine is told: sizes, policy, router."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from plimsoll.core.errors import InputError

Option = str | int | float | bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One engine, times `replicas`.

    Attributes:
        num_blocks: KV blocks that requests can use on one replica (vLLM prints one more: its null block).
        block_size: tokens in one block.
        max_num_seqs: sequences that may run at once.
        max_num_batched_tokens: tokens of one step.
        max_model_len: longest sequence; a prompt that leaves no room for one token is rejected.
        policy: name of a file in ``engine/policies``, or the path of a user's policy file.
        options: options of the policy, by name.
        replicas: identical replicas.
        ranks: data-parallel attention ranks in a replica, which step together; blocks, seats and budget are one rank's.
        router: name of a file in ``engine/routers``, with options: ``prefix-aware,max_lead=16``.
        frontend_s: seconds between a client's sending and the scheduler's first sight of a request.
        api_server_s, api_server_token_s: seconds of the API server for a request and for each token of its prompt; it
            serves one request after another, before `frontend_s`.
        keep_step_log: whether to keep batch size, queue length and KV use over time.
    """

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 1 << 30
    policy: str = "vllm-v1"
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    replicas: int = 1
    ranks: int = 1
    router: str = "round-robin"
    frontend_s: float = 0.0
    api_server_s: float = 0.0
    api_server_token_s: float = 0.0
    keep_step_log: bool = False

    def __post_init__(self) -> None:
        counts = ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "replicas")
        for name in (*counts, "ranks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(name, value, "give a whole number of at least 1")
        for name in ("frontend_s", "api_server_s", "api_server_token_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(name, getattr(self, name), "give seconds of zero or more")
