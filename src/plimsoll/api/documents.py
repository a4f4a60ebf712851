"""JSON data of what several verbs report: deployments, sources."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from plimsoll.api.resolve import Resolved
from plimsoll.api.scenario import WorkloadFields
from plimsoll.core.step import StepShape
from plimsoll.engine.plugins import load_plugin, option_defaults
from plimsoll.perf.error_bands import error_band
from plimsoll.perf.profiles.outside import extrapolated
from plimsoll.planner.pools import CLUSTERS, POOL_NAMES, list_pool_engines


def deployment_json(resolved: Resolved) -> dict[str, Any]:
    """A resolved deployment: names, cut, complete settings, memory; of disaggregated ones their pools as well."""
    deployment, memory = resolved.deployment, resolved.memory
    cut, pools = deployment.parallelism, pools_of(resolved)
    machines = f"{deployment.replicas} replica{'s' * (deployment.replicas > 1)}"
    split = "" if pools is None else " + ".join(f"{count} {name}" for name, count in pools.items() if count)
    return {
        "model": deployment.model,
        "gpu": deployment.gpu,
        "num_gpus": deployment.num_gpus,
        "replicas": deployment.replicas,
        "tp": cut.tp,
        "pp": cut.pp,
        "dp": cut.dp,
        "ep": cut.ep,
        "arithmetic": resolved.arithmetic if pools is None else resolved.arithmetic.replace(machines, f"({split})"),
        **({} if pools is None else {"pools": pools}),
        "router": deployment.router,
        "engine": deployment.engine,
        "engine_version": resolved.engine_version,
        "policy": resolved.config.policy,
        "precision": deployment.precision,
        "kv_precision": deployment.kv_precision,
        "settings": {
            **{k: v for k, v in dataclasses.asdict(deployment.settings).items() if k != "options"},
            "options": dict(deployment.settings.options),
            "default_options": {
                name: value
                for name, value in resolved.config.options.items()
                if name not in deployment.settings.options
            },
        },
        "memory": {
            "weight_bytes": memory.weight_bytes,
            "activation_peak_bytes": memory.activation_peak_bytes,
            "runtime_bytes": memory.runtime_bytes,
            "kv_bytes": memory.kv_bytes,
            "block_bytes": memory.block_bytes,
            "num_blocks": memory.num_blocks,
            "max_concurrent_tokens": memory.max_concurrent_tokens,
            "breakdown": memory.breakdown,
            "source": str(memory.source),
        },
        "step_model": resolved.step_model_facts,
    }


def pools_of(resolved: Resolved) -> dict[str, int] | None:
    """Machines by pool (prefill, decode, and mixed where the engine has such); None for an engine without pools."""
    policy = resolved.config.policy
    if policy not in list_pool_engines():
        return None
    options = {**option_defaults(load_plugin(CLUSTERS, policy, "--engine")), **resolved.config.options}
    return {name: int(options[name]) for name in POOL_NAMES if name in options}


def requests_name(fields: WorkloadFields) -> str:
    """Which requests, in the user's own words: a preset, a trace, or fixed lengths."""
    if fields.workload is not None:
        return f"preset {fields.workload}"
    if fields.trace is not None:
        return f"trace {Path(fields.trace).name}"
    return f"{fields.prompt_tokens} prompt and {fields.output_tokens} output tokens each"


def sources_json(resolved: Resolved) -> dict[str, Any]:
    """Where the estimate comes from, and the weakest claim in it."""
    cost = resolved.step_model.step(StepShape(num_decode=1, decode_read_tokens=1))
    band = None if extrapolated(resolved.step_model_facts) else error_band(resolved.step_model_facts)
    return {
        "step_model": resolved.step_model_facts,
        "step_cost": str(cost.source),
        "host_time": resolved.host_time.to_json_dict(),
        "error_band": None if band is None else band.to_json_dict(),
        "kv_blocks": str(resolved.memory.source),
        "weakest": str(max(cost.source, resolved.memory.source)),
        "model": resolved.model.source,
        "gpu": sorted({fact.source for fact in resolved.gpu.facts.values()}),
    }
