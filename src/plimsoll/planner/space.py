"""What could be deployed: every GPU type, cut, precision, engine and token budget, times every number of replicas.

Two levels. A `ReplicaConfig` is one replica: only these differ in what a request sees, so only these are estimated and
simulated. A `Candidate` is a replica configuration times a number of replicas: only that is rented and ranked.

    H100-SXM ── TP 4 × PP 1 ── bf16 ── vllm-v1 ── 2048 tokens a step      one ReplicaConfig
                                                     × 1, 2, 3, 4 replicas   four Candidates (4, 8, 12, 16 GPUs)

Prefill and decode pools are one replica, however many machines they have: they share a queue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import Attention, LatentAttention, ModelSpec, Moe
from plimsoll.core.deployment import Parallelism
from plimsoll.planner.pools import Pools

EVERY_REPLICA_COUNT_UP_TO = 32
"""Up to here every number of replicas is a candidate; above it, eight a doubling and the largest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """One replica.

    Attributes:
        accelerator: the GPU.
        parallelism: how the replica is cut.
        precision: of weights and matrix work.
        engine: deployable engine (``vllm-v1``, ``sglang``, ``trtllm``), or a scheduling policy.
        max_num_batched_tokens: token budget of a step; None is the engine's default on this GPU.
        pools: machines for prefill and for decode, each cut by `parallelism`; None computes both on every machine.
    """

    accelerator: Accelerator
    parallelism: Parallelism
    precision: str
    engine: str
    max_num_batched_tokens: int | None
    pools: Pools | None = None

    @property
    def num_machines(self) -> int:
        """Engines of this replica: one, or those of both pools."""
        return 1 if self.pools is None else self.pools.num_machines

    @property
    def num_gpus(self) -> int:
        """GPUs of this replica."""
        return self.parallelism.num_gpus * self.num_machines

    @property
    def stem(self) -> str:
        """Everything but the token budget: ``H100-SXM TP4 PP2 bf16 vllm-v1``."""
        if self.pools is None:
            return self.machine_stem
        return f"{self.machine_stem} {self.pools.engine} {self.pools.prefill}P:{self.pools.decode}D"

    @property
    def machine_stem(self) -> str:
        """Of one machine: `stem` without the pools."""
        cut = f"TP{self.parallelism.tp}"
        cut += f" PP{self.parallelism.pp}" if self.parallelism.pp > 1 else ""
        cut += f" DP{self.parallelism.dp}" if self.parallelism.dp > 1 else ""
        cut += f" EP{self.parallelism.ep}" if self.parallelism.ep > 1 else ""
        return f"{self.accelerator.id} {cut} {self.precision} {self.engine}"

    @property
    def name(self) -> str:
        """Short and unique within a search: ``H100-SXM TP4 PP2 bf16 vllm-v1 budget 2048``."""
        budget = self.max_num_batched_tokens if self.max_num_batched_tokens is not None else "default"
        return f"{self.stem} budget {budget}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A replica configuration times `replicas`, spares included."""

    config: ReplicaConfig
    replicas: int

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas, spares included."""
        return self.replicas * self.config.num_gpus

    @property
    def name(self) -> str:
        """``2 × H100-SXM TP4 PP2 bf16 vllm-v1 budget 2048``."""
        return f"{self.replicas} × {self.config.name}"

    @property
    def arithmetic(self) -> str:
        """``8 GPUs = 2 replicas × TP 4``: how the GPUs come about. Expert parallelism adds none and says so."""
        cut = self.config.parallelism
        ways = [f"TP {cut.tp}", *(f"{name} {count}" for name, count in (("PP", cut.pp), ("DP", cut.dp)) if count > 1)]
        gpus = f"{self.num_gpus} GPU{'s' if self.num_gpus != 1 else ''}"
        machines = f"{self.replicas} replica{'s' if self.replicas != 1 else ''}"
        if self.config.pools is not None:
            machines = f"({self.config.pools.text})"
        experts = f" (experts over EP {cut.ep})" if cut.ep > 1 else ""
        return f"{gpus} = {machines} × {' × '.join(ways)}{experts}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuLimit:
    """A GPU type and how many of it may be used at most (and at least)."""

    accelerator: Accelerator
    max_gpus: int
    min_gpus: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """What to enumerate.

    Attributes:
        precisions: of weights, in order of preference.
        engines: deployable engines.
        token_budgets: tokens of a step; a None stands for the engine's default.
        tp, pp, dp: ways to consider; None means all that make sense (`tensor_ways`, `pipeline_ways`, `rank_ways`).
        across_nodes: whether tensor parallelism may leave its machine; only where a model needs it.
    """

    precisions: tuple[str, ...]
    engines: tuple[str, ...]
    token_budgets: tuple[int | None, ...]
    tp: tuple[int, ...] | None = None
    pp: tuple[int, ...] | None = None
    dp: tuple[int, ...] | None = None
    across_nodes: bool = False


def enumerate_configs(model: ModelSpec, limits: Iterable[GpuLimit], options: SpaceOptions) -> list[ReplicaConfig]:
    """Every replica configuration, feasible or not, in a fixed order and each once."""
    configs: list[ReplicaConfig] = []
    for limit in limits:
        for cut in _cuts(model, limit, options):
            for precision in options.precisions:
                for engine in options.engines:
                    configs.extend(
                        ReplicaConfig(
                            accelerator=limit.accelerator,
                            parallelism=cut,
                            precision=precision,
                            engine=engine,
                            max_num_batched_tokens=budget,
                        )
                        for budget in options.token_budgets
                    )
    return _unique(configs)


def replica_counts(config: ReplicaConfig, limit: GpuLimit) -> tuple[int, ...]:
    """How many replicas are candidates within `limit`, ascending; pools are a deployment of their own."""
    most = limit.max_gpus // config.num_gpus
    if config.pools is not None:
        return (1,) if limit.min_gpus <= config.num_gpus <= limit.max_gpus else ()
    least = -(-limit.min_gpus // config.num_gpus)
    counts = [*range(1, min(most, EVERY_REPLICA_COUNT_UP_TO) + 1)]
    step = EVERY_REPLICA_COUNT_UP_TO
    while step < most:
        counts.extend(step + step * k // 8 for k in range(1, 9) if step + step * k // 8 <= most)
        step *= 2
    if most > 0 and counts[-1] != most:
        counts.append(most)
    return tuple(count for count in counts if count >= least)


def tensor_ways(model: ModelSpec, limit: GpuLimit, *, across_nodes: bool = False) -> tuple[int, ...]:
    """Powers of two, and divisors of the heads, within one machine's fast links (and beyond where needed)."""
    domain = max(limit.accelerator.gpus_per_node, limit.accelerator.scale_up_size, 1)
    most = limit.max_gpus if across_nodes else min(limit.max_gpus, domain)
    heads = [group.mixer.num_heads for group in model.groups if isinstance(group.mixer, (Attention, LatentAttention))]
    powers = {1 << k for k in range(most.bit_length()) if 1 << k <= most}
    shared = {ways for ways in range(1, min(most, 8) + 1) if heads and all(count % ways == 0 for count in heads)}
    return tuple(sorted(powers | shared))


def pipeline_ways(model: ModelSpec, limit: GpuLimit) -> tuple[int, ...]:
    """Powers of two up to the layers and the GPUs there are."""
    most = min(limit.max_gpus, max(model.num_layers, 1))
    return tuple(1 << k for k in range(most.bit_length()) if 1 << k <= most)


def rank_ways(model: ModelSpec, limit: GpuLimit, tp: int, *, across_nodes: bool = False) -> tuple[int, ...]:
    """Data-parallel attention ranks beside `tp`: powers of two within one machine's fast links (or beyond).

    Only mixtures of experts share anything between the ranks: of a dense model they would be replicas.
    """
    if not is_mixture(model):
        return (1,)
    domain = max(limit.accelerator.gpus_per_node, limit.accelerator.scale_up_size, 1)
    most = (limit.max_gpus if across_nodes else min(limit.max_gpus, domain)) // tp
    return tuple(1 << k for k in range(max(most, 1).bit_length()) if 1 << k <= max(most, 1))


def is_mixture(model: ModelSpec) -> bool:
    """Whether any layer of the model routes its tokens to experts."""
    return any(isinstance(group.mlp, Moe) for group in model.groups)


def _cuts(model: ModelSpec, limit: GpuLimit, options: SpaceOptions) -> list[Parallelism]:
    """TP × PP, with experts over the tensor-parallel ranks too; TP × DP with experts over all ranks, in one stage.

    NOTE: data-parallel ranks with pipeline stages are not enumerated: their lockstep is not simulated.
    """
    mixture = is_mixture(model)
    cuts = []
    for tp in options.tp or tensor_ways(model, limit, across_nodes=options.across_nodes):
        for pp in options.pp or pipeline_ways(model, limit):
            if tp * pp > limit.max_gpus or (options.dp and 1 not in options.dp):
                continue
            cuts.append(Parallelism(tp=tp, pp=pp))
            if mixture and tp > 1:
                cuts.append(Parallelism(tp=tp, pp=pp, ep=tp))
        if mixture and 1 in (options.pp or (1,)):
            ranks = options.dp or rank_ways(model, limit, tp, across_nodes=options.across_nodes)
            cuts.extend(Parallelism(tp=tp, dp=dp, ep=tp * dp) for dp in ranks if dp > 1 and tp * dp <= limit.max_gpus)
    return cuts


def _unique(configs: list[ReplicaConfig]) -> list[ReplicaConfig]:
    """Each name once: accelerators hold mappings, so configurations do not hash."""
    return list({config.name: config for config in configs}.values())
