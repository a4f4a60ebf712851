"""`study`: how do things compare that differ in one respect only?

`engines`: several engines on identical requests, the same GPUs and the same seconds for the same step, so that what is
left is the scheduling rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plimsoll._version import __version__
from plimsoll.api.checks import called
from plimsoll.api.offloaded import OFFLOADING, own_step_model
from plimsoll.api.resolve import DEFAULT_ENGINE, Resolved, resolve, workload_spec
from plimsoll.api.scenario import SimulateScenario, build
from plimsoll.api.simulation import SimulationResult, evaluate
from plimsoll.core.errors import InfeasibleError, InputError, UnknownNameError
from plimsoll.core.workload import Workload
from plimsoll.perf.host_layers import HostLayers
from plimsoll.workload.spec import WorkloadSpec

KINDS = ("engines",)
DEFAULT_ENGINES = "orca,vllm-v0,sarathi-serve,vllm-v1"
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyScenario(SimulateScenario):
    """Fields of ``plimsoll study engines``: those of `simulate`, with several engines in the place of one.

    Attributes:
        engines: engines with their options: ``orca,vllm-v1,watermark=0.01,splitwise,prefill=2``; a word with an
            equals sign belongs to the engine before it.
    """

    engines: str = DEFAULT_ENGINES


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnginesStudy:
    """What a study of engines answers.

    Attributes:
        scenario: what was asked.
        results: by engine as it was written, those that could run.
        refused: by engine as it was written, why the others could not.
        notes: sentences for the user.
    """

    scenario: StudyScenario
    results: dict[str, SimulationResult]
    refused: dict[str, str]
    notes: tuple[str, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """The document of ``plimsoll study engines --json``: per engine a row, and all that `simulate` says."""
        documents = {name: result.to_json_dict() for name, result in self.results.items()}
        first = next(iter(documents.values()))
        return {
            "study": "engines",
            "model": first["deployment"]["model"],
            "gpu": first["deployment"]["gpu"],
            "workload": first["workload"],
            "load": first["load"],
            "rows": [_row(name, document) for name, document in documents.items()],
            "refused": self.refused,
            "results": documents,
            "sources": first["sources"],
            "notes": list(self.notes),
            "version": __version__,
        }


def split_engines(text: str) -> tuple[str, ...]:
    """``orca,vllm-v1,watermark=0.01`` as ``("orca", "vllm-v1,watermark=0.01")``.

    Raises:
        InputError: no engine, an option before the first one, or the same engine twice.
    """
    engines: list[str] = []
    for word in (word.strip() for word in text.split(",")):
        if "=" in word and not engines:
            raise InputError("--engines", text, "begin with an engine, such as orca,vllm-v1")
        if "=" in word:
            engines[-1] += f",{word}"
        elif word:
            engines.append(word)
    if not engines:
        raise InputError("--engines", text, "give at least one engine, separated by commas")
    if len(set(engines)) < len(engines):
        raise InputError("--engines", text, "the same engine stands there twice")
    return tuple(engines)


def study_engines(
    scenario: StudyScenario | None = None, *, on_engine: Progress | None = None, **fields: Any
) -> EnginesStudy:
    """Run several engines on the same requests.

    All get the same requests (cut at the shortest of their longest sequences), arrivals, GPUs and step model: that of
    the first engine, unless another host time is known of one (vLLM without asynchronous scheduling). Settings that
    were not given are each engine's own defaults. An engine that offloads keeps its own step model, because where its
    weights and its cache lie is what it is.

    Args:
        scenario: what is asked; or give its fields as keywords.
        on_engine: called before each engine with how many are done, how many there are, and its name.
        **fields: of `StudyScenario`.

    Raises:
        InputError, UnknownNameError: a field that cannot be used.
        InfeasibleError: none of the engines would start.
    """
    asked = scenario if scenario is not None else build(StudyScenario, fields)
    if asked.engine != DEFAULT_ENGINE:
        raise InputError("engine", asked.engine, "a study has several: write engines")
    names = split_engines(asked.engines)
    deployed, refused = _resolve_all(asked, names)
    resolved, workload, spec = min(deployed.values(), key=lambda entry: entry[2].max_model_len or 0)
    common = [resolved for resolved, _, _ in deployed.values() if not _offloads(resolved)]
    first = common[0] if common else resolved
    results: dict[str, SimulationResult] = {}
    for done, (name, (resolved, _, _)) in enumerate(deployed.items()):
        if on_engine is not None:
            on_engine(done, len(names), name)
        same = _same_cost(name, resolved, first)
        try:
            with called("--engine", "--engines"):
                results[name] = evaluate(dataclasses.replace(asked, engine=name), same, workload, spec)
        except InfeasibleError as error:
            refused[name] = str(error)
    if not results:
        raise InfeasibleError(next(iter(refused.values())), "engine")
    notes = _merged({name: result.notes for name, result in results.items()})
    return EnginesStudy(scenario=asked, results=results, refused=refused, notes=notes)


def _merged(notes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The notes of all engines, each once, behind the engines that it is about."""
    about: dict[str, list[str]] = {}
    for name, own in notes.items():
        for note in dict.fromkeys(own):
            about.setdefault(note.removeprefix(f"{name.partition(',')[0]}: "), []).append(name)
    everybody = list(notes)
    named = {
        note: "all engines" if names == everybody and names[1:] else "; ".join(names) for note, names in about.items()
    }
    return tuple(note if note.startswith(f"{named[note]} ") else f"{named[note]}: {note}" for note in about)


def _offloads(resolved: Resolved) -> bool:
    """Whether what a step costs depends on where the engine keeps things."""
    return resolved.config.policy in OFFLOADING or isinstance(resolved.step_model, HostLayers)


def _same_cost(name: str, resolved: Resolved, first: Resolved) -> Resolved:
    """A deployment with the step model of the first, or with its own and a note where that is another."""
    if _offloads(resolved):
        own = f"{name} has a step cost of its own: weights and cache lie on GPU, CPU or disk"
        return dataclasses.replace(resolved, notes=(*resolved.notes, own))
    if resolved.host_time.name != first.host_time.name:
        host = f"{name} has the host time {resolved.host_time.name}, not {first.host_time.name} as the first engine"
        return dataclasses.replace(resolved, notes=(*resolved.notes, host))
    return dataclasses.replace(resolved, step_model=first.step_model, step_model_facts=first.step_model_facts)


def _resolve_all(
    asked: StudyScenario, names: tuple[str, ...]
) -> tuple[dict[str, tuple[Resolved, Workload, WorkloadSpec]], dict[str, str]]:
    deployed: dict[str, tuple[Resolved, Workload, WorkloadSpec]] = {}
    refused: dict[str, str] = {}
    for name in names:
        one = own_step_model(dataclasses.replace(asked, engine=name))
        try:
            with called("--engine", "--engines"):
                deployed[name] = resolve(one, workload_spec(one, asked.duration_s))
        except InfeasibleError as error:
            refused[name] = str(error)
    if not deployed:
        raise InfeasibleError(next(iter(refused.values())), "engine")
    return deployed, refused


def _row(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """The figures of the table."""
    metrics, counts, deployment = document["metrics"], document["counts"], document["deployment"]
    gpus = deployment["num_gpus"]
    tokens_per_s = metrics["output_tokens_per_s"]
    return {
        "engine": name,
        "num_gpus": gpus,
        "requests_per_s": metrics["requests_per_s"],
        "output_tokens_per_s": tokens_per_s,
        "output_tokens_per_s_per_gpu": None if tokens_per_s is None else tokens_per_s / gpus,
        "ttft_mean_s": metrics["ttft_s"]["mean"],
        "ttft_p99_s": metrics["ttft_s"]["p99"],
        "tpot_mean_s": metrics["tpot_s"]["mean"],
        "tpot_p99_s": metrics["tpot_s"]["p99"],
        "itl_p99_s": metrics["itl_s"]["p99"],
        "normalized_latency_mean_s_per_token": metrics["normalized_latency_s_per_token"]["mean"],
        "goodput_per_s": metrics.get("goodput_per_s"),
        "batch_mean": metrics["batch_size"]["mean"],
        "kv_use_mean_frac": metrics["kv_use_frac"]["mean"],
        "kv_use_max_frac": metrics["kv_use_frac"]["max"],
        "preemptions": counts["preemptions"],
        "finished": counts["finished"],
        "rejected": counts["rejected"],
        "num_requests": sum(counts[end] for end in ("finished", "unfinished", "rejected", "failed")),
        "num_steps": document["num_steps"],
        "queue_grows": document["queue_grows"],
        "wall_s": document["wall_s"],
    }


def check_kind(kind: str) -> None:
    """Whether there is such a study.

    Raises:
        UnknownNameError: there is not.
    """
    if kind not in KINDS:
        raise UnknownNameError("study", kind, KINDS)
