"""`catalog`: the models, GPUs, engines and workloads that Plimsoll knows, each figure with its source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from plimsoll.core.errors import UnknownNameError

Row = dict[str, Any]

ENGINE_PACKAGES = ("plimsoll.engine.policies", "plimsoll.engine.clusters")


def models() -> list[Row]:
    """One row per model: size, layers, cache per token."""
    from plimsoll.catalog.counting import active_params, kv_bytes_per_token, native_precision, num_params
    from plimsoll.catalog.models import list_models, load_model

    return [
        {
            "model": spec.id,
            "architecture": spec.architecture,
            "params_billion": num_params(spec) / 1e9,
            "active_params_billion": active_params(spec) / 1e9,
            "layers": spec.num_layers,
            "kv_bytes_per_token": kv_bytes_per_token(spec, 2.0),
            "max_position": spec.max_position,
            "precision": native_precision(spec),
        }
        for spec in map(load_model, list_models())
    ]


def gpus() -> list[Row]:
    """One row per accelerator: compute, memory, links, power, cheapest offer per GPU."""
    from plimsoll.catalog.accelerators import list_accelerators, load_accelerator

    rows = []
    for gpu in map(load_accelerator, list_accelerators()):
        offers = sorted(gpu.offers, key=lambda offer: offer.usd_per_hour / offer.num_gpus)
        cheapest = offers[0] if offers else None
        flops = gpu.dense_flop_per_s
        rows.append(
            {
                "gpu": gpu.id,
                "memory_gib": gpu.memory_bytes / 2**30,
                "bandwidth_tb_per_s": gpu.memory_bandwidth_bytes_per_s / 1e12,
                "tflops_16bit": max(flops.get("bf16", 0.0), flops.get("fp16", 0.0)) / 1e12,
                "tflops_fp8": flops["fp8"] / 1e12 if "fp8" in flops else None,
                "link": gpu.intra_node_link,
                "tdp_w": gpu.tdp_w,
                "usd_per_gpu_hour": cheapest.usd_per_hour / cheapest.num_gpus if cheapest else None,
                "provider": cheapest.provider if cheapest else gpu.no_offer_reason,
                "price_date": cheapest.fact.date if cheapest else None,
            }
        )
    return rows


def engines() -> list[Row]:
    """One row per engine and scheduling policy."""
    from plimsoll.catalog.engines import list_engines, load_engine
    from plimsoll.engine.plugins import list_plugins, text_of

    deployable = {name: load_engine(name) for name in list_engines()}
    rows: list[Row] = [
        {
            "engine": facts.id,
            "kind": "deployable",
            "what": f"{facts.name} {facts.version}, scheduled by {facts.policy}",
        }
        for facts in deployable.values()
    ]
    for kind, package in (("policy", "plimsoll.engine.policies"), ("cluster", "plimsoll.engine.clusters")):
        for name in list_plugins(package):
            what = text_of(package, name).strip().splitlines()[0]
            rows.append({"engine": name, "kind": kind, "what": what})
    return rows


def workloads() -> list[Row]:
    """One row per preset: lengths and source."""
    from plimsoll.workload.presets import list_presets, load_preset

    return [{"workload": preset.name, **_preset_facts(preset)} for preset in map(load_preset, list_presets())]


def _preset_facts(preset: object) -> Row:
    import numpy as np

    from plimsoll.workload.presets import sample_lengths

    prompt, output = sample_lengths(preset, 20_000, np.random.default_rng(0))  # type: ignore[arg-type]
    return {
        "prompt_mean": float(prompt.mean()),
        "prompt_p99": float(np.percentile(prompt, 99)),
        "output_mean": float(output.mean()),
        "output_p99": float(np.percentile(output, 99)),
        "source": str(getattr(preset, "source", "")),
    }


KINDS: Mapping[str, Callable[[], list[Row]]] = {
    "models": models,
    "gpus": gpus,
    "engines": engines,
    "workloads": workloads,
}


def catalog(kind: str) -> list[Row]:
    """All entries of one kind as rows.

    Raises:
        UnknownNameError: not a kind of entry.
    """
    if kind not in KINDS:
        raise UnknownNameError("catalog kind", kind, KINDS)
    return KINDS[kind]()


def entry(kind: str, name: str) -> Row:
    """One model, GPU, engine or workload with everything known of it, sources included.

    Raises:
        UnknownNameError: no such kind or name.
    """
    from plimsoll.catalog.accelerators import load_accelerator
    from plimsoll.catalog.models import load_model
    from plimsoll.workload.presets import load_preset

    loaders: Mapping[str, Callable[[str], Any]] = {
        "models": load_model,
        "gpus": load_accelerator,
        "engines": _engine,
        "workloads": load_preset,
    }
    if kind not in loaders:
        raise UnknownNameError("catalog kind", kind, loaders)
    found: Row = _plain(loaders[kind](name))
    return found


def _engine(name: str) -> Row:
    """What is known of a deployable engine, and the rules of its scheduler; of a policy, the rules alone.

    Raises:
        UnknownNameError: neither; lists both.
    """
    from plimsoll.api.checks import check_engine_name
    from plimsoll.catalog.engines import find_engine, list_engines
    from plimsoll.engine.plugins import list_plugins

    facts = find_engine(name)
    if facts is None:
        schedulers = [one for package in ENGINE_PACKAGES for one in list_plugins(package)]
        check_engine_name("engine", name, (*list_engines(), *schedulers), "")
        return {"engine": name, **_scheduler(name)}
    row: Row = _plain(facts)
    return {**row, "scheduler": {"policy": facts.policy, **_scheduler(facts.policy, facts.option_defaults)}}


def _scheduler(policy: str, changed: Mapping[str, Any] = MappingProxyType({})) -> Row:
    """A policy's settings and options with their defaults, its rules, and where they are from."""
    from plimsoll.engine.plugins import list_plugins, load_plugin, option_defaults, text_of
    from plimsoll.planner.own_defaults import own_defaults

    package = next(package for package in ENGINE_PACKAGES if policy in list_plugins(package))
    text = text_of(package, policy)
    own = {name: _in_words(value) for name, value in own_defaults(policy).items()}
    return {
        "options": {**option_defaults(load_plugin(package, policy, "engine")), **changed},
        "settings": own or "as the catalogue's engine has them on the GPU; without one, as vllm-v1",
        "sources": _addresses(text),
        "rules": text,
    }


def _addresses(text: str) -> list[str]:
    """The web addresses in a text, each once."""
    found = re.findall(r"(?:https?://)?((?:[\w-]+\.)+(?:com|org|io|net|ai|de)/[^\s,)]+)", text)
    return [f"https://{address.rstrip('.;:')}" for address in dict.fromkeys(found)]


def _in_words(value: object) -> object:
    """One of a policy's own settings: a number, an option's name, or the larger of two."""
    return f"max({value[0]}, {value[1]})" if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
