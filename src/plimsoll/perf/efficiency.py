"""How much of its datasheet a GPU delivers: coefficients per measured GPU, fitted to public operator measurements.

One file per GPU in ``data/efficiency``, written by ``benchmarks/fit_roofline.py`` with the source of its measurements
and the residuals of each fit. A GPU without a file borrows the nearest one (same architecture and segment, same
architecture, then what ``nearest.toml`` names), and its stated error grows with the distance.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.core.errors import InputError
from plimsoll.core.source import Source

_TABLES = "nearest.toml"
_SIMILAR = {"fp4_weight_only": "weight_only"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixCoefficients:
    """Matrix products: ``(compute^p + memory^p)^(1/p) + launch + quantise_bytes·rows·k/bandwidth``.

    Attributes:
        compute_frac: of the dense peak, reached by large products.
        memory_frac: of the peak bandwidth, reached by small ones.
        launch_s: of every call.
        sharpness: p, how hard the bend of the roofline is; infinite is the textbook maximum.
        extra_rows: rows added to the compute time (to that of every active expert): tiles that are not full, ramp-up.
        half_width: width of an expert at which the compute share is half of `compute_frac`; 0 for plain products.
        quantise_bytes: traffic per element of a plain product's input, at full bandwidth, for turning it into 8 or 4
            bits: a kernel beside the product that 16-bit and weight-only products do not have.
    """

    compute_frac: float
    memory_frac: float
    launch_s: float
    sharpness: float
    extra_rows: float
    half_width: float
    quantise_bytes: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCoefficients:
    """Attention over the cache: ``launch + flop/(compute·peak) + bytes/(memory·bandwidth)`` for prompts, the larger of
    the two terms for decodes.

    Attributes:
        prefill_launch_s, prefill_compute_frac, prefill_memory_frac: of prompt chunks.
        decode_launch_s, decode_compute_frac, decode_memory_frac: of decodes.
        decode_sequence_s: per decoding sequence and layer.
        mixed_memory_frac: of decodes that share a step with prompt chunks.
    """

    prefill_launch_s: float
    prefill_compute_frac: float
    prefill_memory_frac: float
    decode_launch_s: float
    decode_compute_frac: float
    decode_memory_frac: float
    decode_sequence_s: float
    mixed_memory_frac: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElementwiseCoefficients:
    """Kernels that only move bytes: ``launch + bytes/(ratio·bandwidth)``; the sampler walks the logits several times.

    Attributes:
        launch_s: of every call.
        bandwidth_ratio: over the memory's peak; above 1 where the data is still in the cache of the GPU.
        sampler_launch_s, sampler_passes: of the sampler: its fixed time, and how often it walks the fp32 logits.
    """

    launch_s: float
    bandwidth_ratio: float
    sampler_launch_s: float
    sampler_passes: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The coefficients of one measured GPU.

    Attributes:
        name: of the file.
        accelerators: catalogue ids whose measurements these are.
        vendor, architecture, segment: of these accelerators, to find the nearest file for others.
        gemm: by kernel class: ``16bit``, ``fp8``, ``int8``, ``fp4``, ``weight_only``, ``fp4_weight_only``.
        experts: likewise for grouped products.
        attention, elementwise: see there.
        error_frac: median absolute error of the fits, the worst of the operator kinds.
        source, date: of the measurements.
    """

    name: str
    accelerators: tuple[str, ...]
    vendor: str
    architecture: str
    segment: str
    gemm: Mapping[str, MatrixCoefficients]
    experts: Mapping[str, MatrixCoefficients]
    attention: AttentionCoefficients
    elementwise: ElementwiseCoefficients
    error_frac: float
    source: str
    date: str

    def gemm_for(self, kernel: str) -> MatrixCoefficients:
        """Coefficients of a kernel class, those of 16 bit where the class was not measured."""
        return self.gemm.get(kernel) or self.gemm.get(_SIMILAR.get(kernel, kernel)) or self.gemm["16bit"]

    def experts_for(self, kernel: str) -> MatrixCoefficients:
        """Likewise for grouped products; those of plain products where none were measured."""
        similar = self.experts.get(_SIMILAR.get(kernel, kernel))
        return self.experts.get(kernel) or similar or self.experts.get("16bit") or self.gemm_for(kernel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The family that stands for a GPU, and how far it can be trusted.

    Attributes:
        family: coefficients.
        error_frac: expected relative error of an operator's time (median), wider the further the family.
        borrowed_error_frac: of it, what borrowing a neighbour's coefficients costs; 0 where the GPU was measured.
        source: `MODELLED`, or `ASSUMED` where the family is of another vendor.
        reason: one line on the choice.
    """

    family: Family
    error_frac: float
    borrowed_error_frac: float
    source: Source
    reason: str


def _plain(text: str) -> str:
    return "".join(ch for ch in text.lower() if ch.isalnum())


def _coefficients(path: str, kind: type[Any], table: Mapping[str, Any]) -> Any:
    values = {
        field.name: table.get(field.name, None if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(kind)
    }
    for name, value in values.items():
        if not isinstance(value, int | float) or not value >= 0:
            raise InputError(f"{path} {name}", value, "write a number of at least 0")
        if name.endswith("_frac") and not 0 < value <= 1:
            raise InputError(f"{path} {name}", value, "a share of the datasheet lies in (0, 1]")
    return kind(**values)


def parse_family(name: str, document: Mapping[str, Any]) -> Family:
    """One efficiency file as a `Family`.

    Raises:
        InputError: a coefficient that is missing, negative, or a share above 1.
    """
    return Family(
        name=name,
        accelerators=tuple(document["accelerators"]),
        vendor=document["vendor"],
        architecture=document["architecture"],
        segment=document["segment"],
        gemm=_by_kernel(f"{name} gemm", document["gemm"]),
        experts=_by_kernel(f"{name} experts", document.get("experts", {})),
        attention=_coefficients(f"{name} attention", AttentionCoefficients, document["attention"]),
        elementwise=_coefficients(f"{name} elementwise", ElementwiseCoefficients, document["elementwise"]),
        error_frac=float(document["error_frac"]),
        source=document["source"],
        date=document["date"],
    )


def _by_kernel(path: str, tables: Mapping[str, Any]) -> Mapping[str, MatrixCoefficients]:
    return {kernel: _coefficients(f"{path} {kernel}", MatrixCoefficients, table) for kernel, table in tables.items()}


@functools.cache
def load_families() -> Mapping[str, Family]:
    """All measured GPUs by file name."""
    folder = resources.files("plimsoll.perf") / "data" / "efficiency"
    families = {}
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml") and entry.name != _TABLES:
            name = entry.name.removesuffix(".toml")
            families[name] = parse_family(name, tomllib.loads(entry.read_text(encoding="utf-8")))
    return MappingProxyType(families)


@functools.cache
def _nearest() -> Mapping[str, Any]:
    text = (resources.files("plimsoll.perf") / "data" / "efficiency" / _TABLES).read_text(encoding="utf-8")
    return tomllib.loads(text)


def find_efficiency(gpu: Accelerator) -> Efficiency:
    """The coefficients for `gpu`: its own measurements, else the nearest family with a wider stated error."""
    families, table = load_families(), _nearest()
    names = {_plain(name) for name in (gpu.id, gpu.name, *gpu.aliases)}
    for family in families.values():
        if names & {_plain(name) for name in family.accelerators}:
            return Efficiency(
                family=family,
                error_frac=family.error_frac,
                borrowed_error_frac=0.0,
                source=Source.MODELLED,
                reason=f"measured on {family.name}",
            )
    same = [family for family in families.values() if family.architecture == gpu.architecture]
    same.sort(key=lambda family: (family.segment != gpu.segment, family.name))
    step = table["error_frac"]
    if gpu.id in table["accelerator"]:
        family = families[table["accelerator"][gpu.id]]
        wider, source = step["same_architecture"], Source.MODELLED
    elif same:
        family = same[0]
        wider = step["same_segment"] if family.segment == gpu.segment else step["same_architecture"]
        source = Source.MODELLED
    else:
        family = families[table["architecture"].get(gpu.architecture, table["otherwise"])]
        related = family.vendor == gpu.vendor
        wider = step["same_vendor"] if related else step["other_vendor"]
        source = Source.MODELLED if related else Source.ASSUMED
    return Efficiency(
        family=family,
        error_frac=max(family.error_frac, wider),
        borrowed_error_frac=wider,
        source=source,
        reason=f"no measurements of {gpu.id}: coefficients of {family.name}",
    )
