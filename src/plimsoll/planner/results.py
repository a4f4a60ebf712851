"""What a plan answers. `to_json_dict` is the document that ``plimsoll plan --json`` prints."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from plimsoll.core.deployment import Deployment
from plimsoll.metrics import RunMetrics, Targets, Verdict
from plimsoll.metrics import to_json_dict as metrics_json
from plimsoll.perf.error_bands import ErrorBand
from plimsoll.planner.pools import Pools


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """Candidates that are out, with the reason. `num_candidates` of them: the numbers of replicas that share it.

    Attributes:
        config: ``1–4 × H100-SXM TP4 bf16 vllm-v1 budget 2048``.
        reason: one sentence with the figures.
        kind: ``engine``, ``precision``, ``divisibility``, ``topology``, ``memory``, ``data``, ``price``, ``budget``,
            ``spare``, ``length`` (its policy refuses requests as longer than a step), ``ttft``, ``tpot``, ``e2e``,
            ``rate`` (did not start, or cannot), ``bound`` (its optimistic bound is beaten by simulated plans),
            ``beaten`` (simulated, and others are better).
        num_candidates: how many.
        simulated: whether a simulation or only an estimate speaks.
    """

    config: str
    reason: str
    kind: str
    num_candidates: int
    simulated: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One deployment that carries the load, with what it does and costs.

    Attributes:
        rank: in its list, from 1.
        deployment: as the engine and the launch commands take it, settings complete.
        arithmetic: ``8 GPUs = 2 replicas × TP 4``, or ``4 GPUs = (3 prefill + 1 decode) × TP 1``.
        pools: prefill and decode machines (the deployment's replicas are both together); None without.
        spare_replicas: of the replicas, paid for but not counted in the capacity.
        judged_load: load of the whole deployment at which `metrics` were simulated (asked for, or half the capacity).
        load_unit: ``req/s`` or ``users``.
        metrics: of the whole deployment at `judged_load`, warm-up left out.
        verdict: of `metrics` against the targets.
        capacity: highest load of all replicas but the spares, in `load_unit`.
        capacity_interval: its interval (`planner.capacity`), or its bracket where `capacity_seeds` is 1.
        capacity_seeds: how many seeds it stands on.
        limited_by: what fails just above the capacity.
        output_tokens_per_s: at capacity.
        e2e_s: mean end-to-end latency at the judged load, of one replica, which `top_latency` goes by.
        usd_per_hour: of the rented machines; None without a price.
        rental: which machines, in words.
        usd_per_million_output_tokens, usd_per_million_input_tokens: the price of an hour, split by the time that
            decoding and prefill take, over the tokens of an hour at the cost's load (`docs/planning.md`).
        usd_per_million_tokens: the undivided price over input and output tokens together.
        binding_constraint: what would have to be better for more load, in words.
        why: why it stands where it stands.
        notes: what the catalogue and the memory model say about it.
        error_band: where measured step times lie around those of this plan; None where nobody compared.
    """

    rank: int
    deployment: Deployment
    arithmetic: str
    pools: Pools | None
    spare_replicas: int
    judged_load: float
    load_unit: str
    metrics: RunMetrics
    verdict: Verdict
    capacity: float
    capacity_interval: tuple[float, float]
    capacity_seeds: int
    limited_by: str
    output_tokens_per_s: float
    e2e_s: float
    usd_per_hour: float | None
    rental: str
    usd_per_million_output_tokens: float | None
    usd_per_million_input_tokens: float | None
    usd_per_million_tokens: float | None
    binding_constraint: str
    why: str
    notes: tuple[str, ...]
    error_band: ErrorBand | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relaxation:
    """One thing that would have to give where nothing fits, and by how much.

    Attributes:
        what: ``budget``, ``target``, ``load``, ``precision``, ``gpus``, ``several``, ``deployment`` (none would start).
        text: one sentence.
        needed: the figure that would do (dollars an hour, the target in seconds, the load), None where it is a name.
        asked: what was asked.
    """

    what: str
    text: str
    needed: float | None = None
    asked: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanResult:
    """The answer of a search. Candidates = plans shown anywhere + rejected, each once (`num_candidates`).

    Attributes:
        verdict: one line.
        feasible: whether any plan carries the load within targets and budget.
        plans: the best, by the objective asked for.
        top_cost, top_throughput, top_latency: the best by each objective, one for each cut (token budgets compete).
        pareto: nobody is better in cost, throughput and latency together (with a load asked for: cost and latency).
        losers: the nearest losers, best first: why each lost.
        rejected: all other candidates with their reasons, the losers included.
        relaxations: what would have to give where nothing fits.
        starting_point: the existing deployment, evaluated the same way; None without one (or where it cannot start).
        starting_point_text: how it compares.
        targets: that were judged.
        num_candidates, num_configs, num_simulated: how many there were, replica configurations, simulated ones.
        notes: sentences about the whole search.
        wall_s: of the search.
    """

    verdict: str
    feasible: bool
    plans: tuple[Plan, ...]
    top_cost: tuple[Plan, ...]
    top_throughput: tuple[Plan, ...]
    top_latency: tuple[Plan, ...]
    pareto: tuple[Plan, ...]
    losers: tuple[Rejection, ...]
    rejected: tuple[Rejection, ...]
    relaxations: tuple[Relaxation, ...]
    starting_point: Plan | None
    starting_point_text: str
    targets: Targets
    num_candidates: int
    num_configs: int
    num_simulated: int
    notes: tuple[str, ...]
    wall_s: float


def plan_json(plan: Plan) -> dict[str, Any]:
    """One plan as JSON data; `api` adds ``launch``."""
    deployment, settings = plan.deployment, plan.deployment.settings
    cut = deployment.parallelism
    return {
        "rank": plan.rank,
        "gpu": deployment.gpu,
        "num_gpus": deployment.num_gpus,
        "replicas": deployment.replicas,
        "spare_replicas": plan.spare_replicas,
        "tp": cut.tp,
        "pp": cut.pp,
        "dp": cut.dp,
        "ep": cut.ep,
        "arithmetic": plan.arithmetic,
        "pools": None if plan.pools is None else dataclasses.asdict(plan.pools),
        "precision": deployment.precision,
        "kv_precision": deployment.kv_precision,
        "engine": deployment.engine,
        "settings": {
            "max_model_len": settings.max_model_len,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "max_num_seqs": settings.max_num_seqs,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "block_size": settings.block_size,
            "num_kv_blocks": settings.num_kv_blocks,
        },
        "judged_load": {"value": plan.judged_load, "unit": plan.load_unit},
        "metrics": metrics_json(plan.metrics),
        "verdict": plan.verdict.to_json_dict(),
        "capacity_per_s": {
            "value": plan.capacity,
            "interval": [_finite(bound) for bound in plan.capacity_interval],
            "unit": plan.load_unit,
            "seeds": plan.capacity_seeds,
            "limited_by": plan.limited_by,
        },
        "output_tokens_per_s": plan.output_tokens_per_s,
        "usd_per_hour": plan.usd_per_hour,
        "rental": plan.rental,
        "usd_per_million_output_tokens": plan.usd_per_million_output_tokens,
        "usd_per_million_input_tokens": plan.usd_per_million_input_tokens,
        "usd_per_million_tokens": plan.usd_per_million_tokens,
        "binding_constraint": plan.binding_constraint,
        "error_band": None if plan.error_band is None else plan.error_band.to_json_dict(),
        "why": plan.why,
        "notes": list(plan.notes),
    }


def to_json_dict(result: PlanResult) -> dict[str, Any]:
    """The whole answer as JSON data: null where a figure does not exist, never NaN."""
    lists = ("plans", "top_throughput", "top_latency", "top_cost", "pareto")
    return {
        "verdict": result.verdict,
        "feasible": result.feasible,
        **{name: [plan_json(plan) for plan in getattr(result, name)] for name in lists},
        "losers": [dataclasses.asdict(loser) for loser in result.losers],
        "rejected": [dataclasses.asdict(rejection) for rejection in result.rejected],
        "relaxations": [dataclasses.asdict(one) for one in result.relaxations],
        "starting_point": None if result.starting_point is None else plan_json(result.starting_point),
        "starting_point_text": result.starting_point_text,
        "targets": {**result.targets.named(), "percentile": result.targets.percentile},
        "num_candidates": result.num_candidates,
        "num_configs": result.num_configs,
        "num_simulated": result.num_simulated,
        "notes": list(result.notes),
        "wall_s": result.wall_s,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
