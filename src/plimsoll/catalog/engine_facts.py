"""What is known of a serving engine: one TOML file each in ``data/engines``, every table with its source and date.

A file holds several versions of a figure where it changed (``[[gpu_memory_utilization]] since = "0.20.0"``); loading
picks what held in the version that was asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plimsoll.catalog.accelerators import Accelerator, Fact
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.units import GIB

DATA_DIR = Path(__file__).parent / "data" / "engines"
SIXTEEN_BIT = "16-bit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefaultClass:
    """Scheduler defaults of one class of GPUs.

    Attributes:
        name: the class in words.
        min_memory_bytes: a GPU belongs to the class from this much nominal memory.
        excepted: parts of catalogue ids that do not belong to it all the same.
        max_num_seqs: seats.
        max_num_batched_tokens: tokens of one step.
        graph_num_seqs: largest batch that is captured as a graph; None where the seats decide.
        graph_num_seqs_tp4: the same from four tensor-parallel GPUs on.
        fact: source and date.
    """

    name: str
    min_memory_bytes: float
    excepted: tuple[str, ...]
    max_num_seqs: int
    max_num_batched_tokens: int
    graph_num_seqs: int | None
    graph_num_seqs_tp4: int | None
    fact: Fact


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """How the engine sizes its KV cache. `perf.memory` holds the rules that `rule` names.

    Attributes:
        rule: ``utilization`` (share of all memory, peak measured: vLLM), ``static_fraction`` (weights and cache share
            a fraction, the rest is for activations: SGLang) or ``free_fraction`` (share of what is free after a
            measured peak: TensorRT-LLM).
        sampler_bytes_per_logit: memory of sampling, per seat and vocabulary entry, at the peak of the warm-up.
        runtime_bytes: of the process on one GPU beyond weights and activations (context, workspaces).
        runtime_parallel_bytes: more of it where several GPUs work together (NCCL, symmetric buffers).
        graph_bytes_per_layer: of one captured graph, per layer.
        graphs_in_budget: whether the graphs are taken off before the cache is sized.
        reserve: coefficients of the static reserve in bytes: ``base``, ``per_budget_token``, ``per_graph_seq``,
            ``per_gpu``, ``per_dp_graph_seq`` (``…_above_300``), ``minimum_above_60_gib``.
        fact: source and date.
    """

    rule: str
    sampler_bytes_per_logit: float
    runtime_bytes: float
    runtime_parallel_bytes: float
    graph_bytes_per_layer: float
    graphs_in_budget: bool
    reserve: Mapping[str, float]
    fact: Fact


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelismFacts:
    """What the engine allows.

    Attributes:
        max_tp: largest tensor parallelism that makes sense to propose.
        vocab_padding: the vocabulary is padded to a multiple of this (and of TP).
        ep_is_all_ranks: expert parallelism is a switch over all TP x DP ranks, not a number of its own.
        dp_attention: whether data-parallel attention inside a replica exists.
        tp_across_nodes: whether one tensor-parallel group may span machines.
        fact: source and date.
    """

    max_tp: int
    vocab_padding: int
    ep_is_all_ranks: bool
    dp_attention: bool
    tp_across_nodes: bool
    fact: Fact


@dataclasses.dataclass(frozen=True, kw_only=True)
class VendorSupport:
    """A vendor whose GPUs the engine runs on, from which compute capability, or on which architectures."""

    name: str
    min_capability: tuple[int, int] | None
    architectures: tuple[str, ...]
    fact: Fact


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionSupport:
    """One precision on one kind of GPU.

    Attributes:
        precision: one of core.deployment.PRECISIONS.
        vendor: whose GPUs; ``*`` for any but `except_vendors`.
        min_capability, max_capability: NVIDIA compute capability, inclusive; None is unbounded.
        architectures: GPU architectures; empty for any.
        compute: what the matrix units work in: a precision, or ``16-bit`` where only the storage is small.
        needs: what the checkpoint must be, where the engine cannot convert a plain one; empty otherwise.
        launch: the engine's own word on its command line, where it is not the usual one.
        refusal: what to say to a GPU that no row of this precision fits.
        note: what the user should know.
        fact: source and date.
    """

    precision: str
    vendor: str
    except_vendors: tuple[str, ...]
    min_capability: tuple[int, int] | None
    max_capability: tuple[int, int] | None
    architectures: tuple[str, ...]
    compute: str
    needs: str
    launch: str
    refusal: str
    note: str
    fact: Fact

    def fits(self, gpu: Accelerator) -> bool:
        """Whether the row speaks of `gpu`."""
        if self.vendor not in ("*", gpu.vendor) or gpu.vendor in self.except_vendors:
            return False
        if self.architectures and gpu.architecture not in self.architectures:
            return False
        if self.min_capability is None and self.max_capability is None:
            return True
        if gpu.compute_capability is None:
            return False
        capability = parse_version(gpu.compute_capability)
        return (self.min_capability or (0, 0)) <= capability <= (self.max_capability or (999, 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """A serving engine in one version.

    Attributes:
        id: catalogue id (``vllm-v1``).
        name: in words.
        framework: ``vllm``, ``sglang``, ``trtllm``: also the name of the launch target.
        policy: scheduling policy that imitates it.
        version: for which the figures hold.
        aliases: other names.
        default_classes: scheduler defaults, the first that fits holds.
        gpu_memory_utilization: default share of memory; None where a formula decides (`memory.reserve`).
        block_size: tokens in a KV block.
        memory: how the KV cache is sized.
        parallelism: what it allows.
        vendors: GPUs it runs on.
        precisions, kv_precisions: rows, the first that fits a GPU holds.
        architectures: Hugging Face class names of models it runs.
        model_notes: what to know of some of them, by class name.
        option_defaults: defaults of the policy's options in this version, where they are not the policy's own.
        staged_option_defaults: those that are others with pipeline stages.
        facts: source by table (``cache``, ``models``, ``gpu_memory_utilization``) and by option default.
    """

    id: str
    name: str
    framework: str
    policy: str
    version: str
    aliases: tuple[str, ...]
    default_classes: tuple[DefaultClass, ...]
    gpu_memory_utilization: float | None
    block_size: int
    memory: MemoryFacts
    parallelism: ParallelismFacts
    vendors: tuple[VendorSupport, ...]
    precisions: tuple[PrecisionSupport, ...]
    kv_precisions: tuple[PrecisionSupport, ...]
    architectures: frozenset[str]
    model_notes: Mapping[str, Fact]
    option_defaults: Mapping[str, str | int | float | bool]
    staged_option_defaults: Mapping[str, str | int | float | bool]
    facts: Mapping[str, Fact]

    def default_class(self, gpu: Accelerator) -> DefaultClass:
        """The scheduler defaults that hold on `gpu`."""
        for candidate in self.default_classes:
            excepted = any(word.lower() in gpu.id.lower() for word in candidate.excepted)
            if gpu.memory_bytes >= candidate.min_memory_bytes and not excepted:
                return candidate
        raise InputError("engine", self.id, f"its catalogue file has no [[default_class]] for {gpu.id}")


def parse_version(text: str) -> tuple[int, int]:
    """``0.21.0`` -> (0, 21), ``9.0`` -> (9, 0): what versions and compute capabilities are compared by."""
    numbers = [int(number) for number in re.findall(r"\d+", text)[:2]]
    major, minor, *_ = [*numbers, 0, 0]
    return major, minor


def list_engines() -> tuple[str, ...]:
    """Ids of the catalogued engines."""
    return tuple(sorted(path.stem for path in DATA_DIR.glob("*.toml") if not path.stem.startswith("_")))


def load_engine(name: str, version: str | None = None) -> EngineFacts:
    """An engine by id or alias; case and punctuation do not count.

    Args:
        name: id, alias, or either with a version (``vllm-v1@0.19.0``).
        version: of the engine; by default the one its file was written for.

    Raises:
        UnknownNameError: no such engine.
        InputError: a version that cannot be read.
    """
    wanted, at, inline = name.partition("@")
    asked = version or (inline if at else None)
    if asked is not None and not re.match(r"v?\d+(\.\d+)*", asked):
        raise InputError("engine version", asked, "write it like 0.19.0")
    plain = _plain(wanted)
    for engine in list_engines():
        table = _read(engine)
        if plain in {_plain(engine), *(_plain(alias) for alias in table.get("aliases", ()))}:
            return _facts_in_version(engine, (asked or table["version"]).removeprefix("v"))
    raise UnknownNameError("engine", name, list_engines())


def find_engine(name: str) -> EngineFacts | None:
    """`load_engine`, or None where `name` is no engine of the catalogue.

    Raises:
        InputError: a version that cannot be read.
    """
    try:
        return load_engine(name)
    except UnknownNameError:
        return None


def written_version(engine: str) -> str:
    """The version that an engine's file was written for: later ones are taken to be like it.

    Raises:
        UnknownNameError: no such engine.
    """
    return str(_read(load_engine(engine).id)["version"])


def oldest_version(engine: str) -> str:
    """The oldest version of which something is known: earlier ones are taken to be like it.

    Raises:
        UnknownNameError: no such engine.
    """
    return str(_read(load_engine(engine).id)["oldest"]["version"])


def _plain(text: str) -> str:
    return "".join(ch for ch in text.lower() if ch.isalnum())


@functools.cache
def _read(name: str) -> Any:
    return tomllib.loads((DATA_DIR / f"{name}.toml").read_text(encoding="utf-8"))


@functools.cache
def _facts_in_version(engine: str, version: str) -> EngineFacts:
    table = _read(engine)
    utilization = _in_version(table.get("gpu_memory_utilization", ()), version)
    options, staged = (_option_defaults(table.get(name, ()), version) for name in ("option_default", "staged_default"))
    return EngineFacts(
        id=table["id"],
        name=table["name"],
        framework=table["framework"],
        policy=table["policy"],
        version=version,
        aliases=tuple(table.get("aliases", ())),
        default_classes=tuple(_default_class(row) for row in table["default_class"]),
        gpu_memory_utilization=None if utilization is None else float(utilization["value"]),
        block_size=table["cache"]["block_size"],
        memory=_memory(table, version),
        parallelism=_of_fields(ParallelismFacts, table["parallelism"]),
        vendors=tuple(_vendor(row, version) for row in table["vendor"]),
        precisions=tuple(_precision(row) for row in table["precision"]),
        kv_precisions=tuple(_precision(row) for row in table["kv_precision"]),
        architectures=frozenset(table["models"]["architectures"]),
        model_notes={name: _fact(row) for row in table.get("model_note", ()) for name in row["architectures"]},
        option_defaults={name: row["value"] for name, row in options.items()},
        staged_option_defaults={name: row["value"] for name, row in staged.items()},
        facts={
            **{name: _fact(row) for name, row in options.items()},
            "cache": _fact(table["cache"]),
            "models": _fact(table["models"]),
            **({} if utilization is None else {"gpu_memory_utilization": _fact(utilization)}),
        },
    )


def _fact(row: Mapping[str, Any]) -> Fact:
    return Fact(source=row["source"], date=row["date"], note=row.get("note", ""))


def _of_fields(kind: type[Any], row: Mapping[str, Any]) -> Any:
    """A dataclass whose fields are the keys of the table, with its fact."""
    values = {field.name: row[field.name] for field in dataclasses.fields(kind) if field.name != "fact"}
    return kind(fact=_fact(row), **values)


def _in_version(rows: Sequence[Mapping[str, Any]], version: str) -> Mapping[str, Any] | None:
    """The last row whose `since` is not after `version`."""
    held = [row for row in rows if parse_version(row["since"]) <= parse_version(version)]
    return max(held, key=lambda row: parse_version(row["since"]), default=None)


def _option_defaults(rows: Sequence[Mapping[str, Any]], version: str) -> dict[str, Mapping[str, Any]]:
    """By option, the row that holds in `version`."""
    found = {name: _in_version([row for row in rows if row["name"] == name], version) for name in _names(rows)}
    return {name: row for name, row in found.items() if row is not None}


def _names(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row["name"] for row in rows))


def _default_class(row: Mapping[str, Any]) -> DefaultClass:
    return DefaultClass(
        name=row["name"],
        min_memory_bytes=row["min_memory_gib"] * GIB,
        excepted=tuple(row["except"]),
        max_num_seqs=row["max_num_seqs"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        graph_num_seqs=row.get("graph_num_seqs"),
        graph_num_seqs_tp4=row.get("graph_num_seqs_tp4"),
        fact=_fact(row),
    )


def _memory(table: Mapping[str, Any], version: str) -> MemoryFacts:
    row = table["memory"]
    graphs = _in_version(table.get("graphs_in_budget", ()), version)
    return MemoryFacts(
        rule=row["rule"],
        sampler_bytes_per_logit=float(row["sampler_bytes_per_logit"]),
        runtime_bytes=row["runtime_gib"] * GIB,
        runtime_parallel_bytes=row["runtime_parallel_gib"] * GIB,
        graph_bytes_per_layer=float(row["graph_bytes_per_layer"]),
        graphs_in_budget=bool(graphs["value"]) if graphs else False,
        reserve={key: value * GIB / 1024 for key, value in row.get("reserve_mib", {}).items()},
        fact=_fact(row),
    )


def _vendor(row: Mapping[str, Any], version: str) -> VendorSupport:
    least = _in_version(row.get("min_capability", ()), version)
    return VendorSupport(
        name=row["name"],
        min_capability=parse_version(least["value"]) if least else None,
        architectures=tuple(row.get("architectures", ())),
        fact=_fact(least or row),
    )


def _precision(row: Mapping[str, Any]) -> PrecisionSupport:
    return PrecisionSupport(
        precision=row["precision"],
        vendor=row["vendor"],
        except_vendors=tuple(row.get("except_vendors", ())),
        min_capability=parse_version(row["min_capability"]) if "min_capability" in row else None,
        max_capability=parse_version(row["max_capability"]) if "max_capability" in row else None,
        architectures=tuple(row.get("architectures", ())),
        compute=row.get("compute", row["precision"]),
        needs=row.get("needs", ""),
        launch=row.get("launch", ""),
        refusal=row.get("refusal", ""),
        note=row.get("note", ""),
        fact=_fact(row),
    )
