"""What is deployed: a model on GPUs, cut in some way, behind an engine with settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

PRECISIONS = ("fp16", "bf16", "fp8", "int8", "int4", "fp4")
KV_PRECISIONS = ("auto", "fp16", "bf16", "fp8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How one replica is cut over its GPUs.

    Attributes:
        tp: tensor parallel ways.
        pp: pipeline stages.
        dp: data-parallel attention ranks *inside* one replica (with expert parallelism); 1 as a rule.
        ep: expert-parallel ways, over which the experts of a mixture are spread; 1 keeps them tensor parallel.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    @property
    def num_gpus(self) -> int:
        """GPUs of one replica. Expert parallelism runs over the tensor and data parallel ranks, not beside them."""
        return self.tp * self.pp * self.dp


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine is told on its command line; None means its own default for this GPU.

    Attributes:
        max_num_seqs: sequences that may run at once (seats).
        max_num_batched_tokens: tokens of one step (budget).
        max_model_len: longest sequence, prompt and output.
        block_size: tokens in one KV block.
        gpu_memory_utilization: share of GPU memory that the engine may take.
        num_kv_blocks: KV blocks of one replica; overrides what the memory model computes.
        options: further options of the policy, by name.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    gpu_memory_utilization: float | None = None
    num_kv_blocks: int | None = None
    options: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """A whole deployment, by names; `api` resolves the names to catalogue entries.

    Attributes:
        model: catalogue id, hub id or path of a config.json.
        gpu: catalogue id of the accelerator.
        parallelism: the cut of one replica.
        replicas: identical copies behind a router.
        router: how requests are spread over replicas.
        engine: engine and policy, such as ``vllm-v1``.
        precision: of the weights and the matrix work.
        kv_precision: of the KV cache; ``auto`` follows the model.
        settings: engine settings.
    """

    model: str
    gpu: str
    parallelism: Parallelism = dataclasses.field(default_factory=Parallelism)
    replicas: int = 1
    router: str = "round-robin"
    engine: str = "vllm-v1"
    precision: str = "bf16"
    kv_precision: str = "auto"
    settings: EngineSettings = dataclasses.field(default_factory=EngineSettings)

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas together."""
        return self.replicas * self.parallelism.num_gpus
