"""Accelerators: one TOML file each in ``data/accelerators``, every figure with its source and date.

A file opens with a paragraph of identity (`id`, `name`, `aliases`), the only part that looking up an alias reads.
Units stand in the keys and become SI here. `source` names the file's usual entry of `[sources]`; `[figure_sources]`
names another one for single figures, and `[figure_notes]` adds what a reader must know of a figure. A
user's own file has the same form, or is a difference to a catalogue entry (``base = "H100-SXM"`` and other offers).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.units import GB, GIB, MIB, TERA


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """Where one figure comes from.

    Attributes:
        source: web address.
        date: of the source, as far as it is known.
        note: what a reader must know of the figure.
        checked: the day on which the source's figures were read again; empty where they were not.
        checked_against: the page that they were read on: the source itself, or one that repeats it.
    """

    source: str
    date: str
    note: str = ""
    checked: str = ""
    checked_against: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """One machine that can be rented on demand.

    Attributes:
        provider: ``AWS``, ``Google Cloud``, ``RunPod``, …
        instance: the provider's own name of the machine.
        region: where the price holds.
        num_gpus: accelerators in the machine: what is rented at once.
        usd_per_hour: price of the whole machine.
        fact: source and date.
    """

    provider: str
    instance: str
    region: str
    num_gpus: int
    usd_per_hour: float
    fact: Fact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One accelerator as its maker publishes it; deratings live elsewhere (perf).

    Attributes:
        id: catalogue id (``H100-SXM``).
        name: the maker's name (``NVIDIA H100 80GB SXM5``).
        aliases: other names, device strings and folder names for the same card.
        vendor: ``nvidia``, ``amd``, ``intel``, ``google``, ``aws``.
        architecture: ``volta``, ``turing``, ``ampere``, ``ada``, ``hopper``, ``blackwell``, ``cdna2``, ``cdna3``, …
        compute_capability: NVIDIA's (``9.0``), None elsewhere.
        segment: ``datacenter``, ``workstation`` or ``consumer``.
        year: of availability.
        memory_bytes: of one accelerator, as the runtime can see it at most (datasheet GB as GiB where that is meant).
        memory_bandwidth_bytes_per_s: peak.
        dense_flop_per_s: peak without sparsity, by precision (`fp16`, `bf16`, `fp8`, `int8`, `int4`, `fp4`, `fp32`); a
            precision that the hardware lacks is absent.
        intra_node_link: ``nvlink4``, ``pcie4``, ``xgmi``, ``ici``, …
        intra_node_bytes_per_s: one direction, per accelerator, to its peers in the scale-up domain together.
        scale_up_size: accelerators in one scale-up domain (8 for HGX, 72 for NVL72, 1 where there is only PCIe).
        inter_node_link: what usually connects machines (``infiniband-ndr``).
        inter_node_bytes_per_s: one direction, per accelerator.
        pcie_bytes_per_s: host link, one direction.
        tdp_w: board power limit.
        idle_w: None where nobody published it.
        gpus_per_node: accelerators in the usual machine.
        offers: on-demand prices; empty where there is none, and then `no_offer_reason` says why.
        no_offer_reason: empty where there are offers.
        facts: source by field name (`dense_flop_per_s.bf16` and the like for nested figures).
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    vendor: str
    architecture: str
    compute_capability: str | None
    segment: str
    year: int
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    dense_flop_per_s: Mapping[str, float]
    intra_node_link: str
    intra_node_bytes_per_s: float
    scale_up_size: int
    inter_node_link: str
    inter_node_bytes_per_s: float
    pcie_bytes_per_s: float
    tdp_w: float
    idle_w: float | None
    gpus_per_node: int
    offers: tuple[Offer, ...]
    no_offer_reason: str
    facts: Mapping[str, Fact]


DATA = Path(__file__).parent / "data" / "accelerators"


def list_accelerators() -> tuple[str, ...]:
    """The ids of the catalogued accelerators, sorted."""
    return tuple(sorted(_files().values(), key=str.lower))


def load_accelerator(name: str) -> Accelerator:
    """An accelerator by catalogue id, by alias, or by the path of a user's own file (which ends in ``.toml``).

    Case and punctuation of a name do not count.

    Raises:
        UnknownNameError: no catalogue file goes by this name; the closest names are given.
        InputError: a user's file cannot be read or holds a figure that cannot be used; names the file and the field.
    """
    if name.endswith(".toml"):
        return _load_user_file(Path(name))
    plain = _plain(name)
    accelerator_id = _files().get(plain) or _aliases().get(plain)
    if accelerator_id is None:
        known = (*_files().values(), *(alias for head in _heads() for alias in head[1]))
        raise UnknownNameError("--gpu", name, known)
    return _load(accelerator_id)


def _plain(name: str) -> str:
    return "".join(ch for ch in name.lower() if ch.isalnum())


@functools.cache
def _files() -> Mapping[str, str]:
    """Catalogue ids (a file's name is its id) by their plain form."""
    return {_plain(file.stem): file.stem for file in DATA.glob("*.toml")}


@functools.cache
def _heads() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Id, and name with aliases, of every file. Only the opening paragraph is parsed: whole files take too long."""
    heads = []
    for accelerator_id in sorted(_files().values()):
        text = (DATA / f"{accelerator_id}.toml").read_text(encoding="utf-8")
        head = tomllib.loads(text.partition("\n\n")[0])
        heads.append((accelerator_id, (head["name"], *head["aliases"])))
    return tuple(heads)


@functools.cache
def _aliases() -> Mapping[str, str]:
    return {_plain(alias): accelerator_id for accelerator_id, names in _heads() for alias in names}


@functools.cache
def _load(accelerator_id: str) -> Accelerator:
    file = DATA / f"{accelerator_id}.toml"
    return parse_accelerator(tomllib.loads(file.read_text(encoding="utf-8")), file.name)


def _load_user_file(path: Path) -> Accelerator:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("accelerator file", str(path), f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, nested without end
        raise InputError("accelerator file", str(path), f"it is not valid TOML: {error}") from error
    if "base" in data:
        base = data.pop("base")
        if not isinstance(base, str) or base.endswith(".toml"):
            raise InputError(f"{path}, base", base, "name a catalogue id")
        data = _merged(tomllib.loads((DATA / f"{load_accelerator(base).id}.toml").read_text(encoding="utf-8")), data)
    return parse_accelerator(data, str(path))


def _merged(base: Mapping[str, object], difference: Mapping[str, object]) -> dict[str, object]:
    """The difference over the base; tables are merged key by key, lists and single figures replaced."""
    merged = dict(base)
    if "offers" in difference:
        merged.pop("no_offer_reason", None)
    for key, value in difference.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


_LARGEST = 1e15  # in a file's units; keeps infinities and digits without end out of the arithmetic
_ISO_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4", "fp4")
_TEXTS = ("id", "name", "vendor", "architecture", "segment", "intra_node_link", "inter_node_link")
# A file's key, the field it becomes, and the factor to SI.
_FIGURES: Mapping[str, tuple[str, float]] = {
    "year": ("year", 1),
    "memory_gib": ("memory_bytes", GIB),
    "memory_mib": ("memory_bytes", MIB),
    "bandwidth_gb_per_s": ("memory_bandwidth_bytes_per_s", GB),
    "intra_node_gb_per_s": ("intra_node_bytes_per_s", GB),
    "scale_up_size": ("scale_up_size", 1),
    "inter_node_gb_per_s": ("inter_node_bytes_per_s", GB),
    "pcie_gb_per_s": ("pcie_bytes_per_s", GB),
    "tdp_w": ("tdp_w", 1),
    "idle_w": ("idle_w", 1),
    "gpus_per_node": ("gpus_per_node", 1),
}
_COUNTS = ("year", "scale_up_size", "gpus_per_node")
_OPTIONAL = {
    "aliases", "compute_capability", "idle_w", "figure_sources", "figure_notes", "offers", "no_offer_reason",
    "memory_gib", "memory_mib",
}  # fmt: skip
_KEYS = {*_TEXTS, *_FIGURES, *_OPTIONAL, "source", "sources", "dense_tflops"}


class _Table:
    """A TOML table that knows where it stands, so that an error is one line with the file and the field."""

    def __init__(self, data: Mapping[str, object], where: str, allowed: Iterable[str]) -> None:
        self.data, self.where = data, where
        for key in data:
            if key not in allowed:
                raise UnknownNameError(where, key, allowed)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.data.get(key, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise InputError(f"{self.where}, {key}", value, "write a text")
        return value

    def number(self, key: str) -> float:
        value = self.data.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < _LARGEST:
            raise InputError(f"{self.where}, {key}", value, "write a positive number")
        return value

    def count(self, key: str) -> int:
        value = self.number(key)
        if not isinstance(value, int):
            raise InputError(f"{self.where}, {key}", value, "write a whole number")
        return value

    def table(self, key: str, allowed: Iterable[str] | None = None) -> _Table:
        value = self.data.get(key, {})
        if not isinstance(value, dict):
            raise InputError(f"{self.where}, {key}", value, "write a table")
        return _Table(value, f"{self.where}, {key}", value if allowed is None else allowed)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{self.where}, {key}", value, "write a list of texts")
        return tuple(value)


def parse_accelerator(data: Mapping[str, object], where: str) -> Accelerator:
    """A parsed file becomes an `Accelerator` in SI units.

    Args:
        data: the file as `tomllib` returns it.
        where: how errors call the file.

    Raises:
        InputError: a figure is missing, of the wrong kind, not positive or without a source.
    """
    table = _Table(data, where, _KEYS)
    if ("memory_gib" in data) == ("memory_mib" in data):
        raise InputError(f"{where}, memory_gib", data.get("memory_gib"), "write either memory_gib or memory_mib")
    facts = _Facts(table)
    figures: dict[str, float] = {}
    for key, (field, factor) in _FIGURES.items():
        if key in data or key not in _OPTIONAL:
            value = table.count(key) if key in _COUNTS else table.number(key)
            figures[field] = value * factor
            facts.note(field, key)
    tflops = table.table("dense_tflops", _PRECISIONS)
    if not tflops.data:
        raise InputError(f"{where}, dense_tflops", "nothing", f"give at least one of {', '.join(_PRECISIONS)}")
    for precision in tflops.data:
        facts.note(f"dense_flop_per_s.{precision}", f"dense_tflops.{precision}")
    offers = _offers(table, facts)
    reason = table.text("no_offer_reason", default="")
    if bool(offers) == bool(reason):
        raise InputError(f"{where}, no_offer_reason", reason, "give either [[offers]] or the reason why there are none")
    facts.refuse_unused()
    return Accelerator(
        **{key: table.text(key) for key in _TEXTS},
        aliases=table.texts("aliases"),
        compute_capability=table.text("compute_capability", default="") or None,
        year=int(figures["year"]),
        memory_bytes=int(figures["memory_bytes"]),
        memory_bandwidth_bytes_per_s=figures["memory_bandwidth_bytes_per_s"],
        dense_flop_per_s={precision: tflops.number(precision) * TERA for precision in tflops.data},
        intra_node_bytes_per_s=figures["intra_node_bytes_per_s"],
        scale_up_size=int(figures["scale_up_size"]),
        inter_node_bytes_per_s=figures["inter_node_bytes_per_s"],
        pcie_bytes_per_s=figures["pcie_bytes_per_s"],
        tdp_w=figures["tdp_w"],
        idle_w=figures.get("idle_w"),
        gpus_per_node=int(figures["gpus_per_node"]),
        offers=offers,
        no_offer_reason=reason,
        facts=facts.by_field,
    )


class _Facts:
    """The sources of a file, handed out figure by figure."""

    def __init__(self, table: _Table) -> None:
        self.where = table.where
        self.default = table.text("source")
        self.figure_sources = table.table("figure_sources")
        self.figure_notes = table.table("figure_notes")
        self.by_field: dict[str, Fact] = {}
        self.unused = {*self.figure_sources.data, *self.figure_notes.data}
        self.sources: dict[str, Fact] = {}
        sources = table.table("sources")
        for key in sources.data:
            entry = sources.table(key, ("url", "date", "note", "checked", "checked_against"))
            extra = {name: entry.text(name, default="") for name in ("note", "checked", "checked_against")}
            for name in ("url", *(("checked_against",) if extra["checked"] else ())):
                if not entry.text(name).startswith(("https://", "http://")):
                    raise InputError(f"{entry.where}, {name}", entry.text(name), "write a public web address")
            for name in ("date", *(("checked",) if extra["checked"] else ())):
                if not _ISO_DATE.fullmatch(entry.text(name)):
                    raise InputError(f"{entry.where}, {name}", entry.text(name), "write a date, such as 2026-05-31")
            self.sources[key] = Fact(source=entry.text("url"), date=entry.text("date"), **extra)

    def named(self, source: str, field: str) -> Fact:
        if source not in self.sources:
            raise UnknownNameError(f"{self.where}, source of {field}", source, self.sources)
        return self.sources[source]

    def note(self, field: str, key: str) -> None:
        """Record where `field` is from, which the file calls `key`; a table's own entry serves each of its figures."""
        source, note, table = self.default, "", key.partition(".")[0]
        for name in (table, key):
            if name in self.figure_sources.data:
                source = self.figure_sources.text(name)
            if name in self.figure_notes.data:
                note = self.figure_notes.text(name)
            self.unused.discard(name)
        fact = self.named(source, key)
        self.by_field[field] = dataclasses.replace(fact, note="; ".join(filter(None, (note, fact.note))))

    def refuse_unused(self) -> None:
        for name in sorted(self.unused):
            raise InputError(f"{self.where}, figure_sources and figure_notes", name, "the file has no such figure")


def _offers(table: _Table, facts: _Facts) -> tuple[Offer, ...]:
    """The machines on offer. One entry may stand for several sizes: ``sizes`` with ``usd_per_gpu_hour``."""
    entries = table.data.get("offers", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{table.where}, offers", entries, "write [[offers]] tables")
    keys = ("provider", "instance", "region", "source", "num_gpus", "usd_per_hour", "sizes", "usd_per_gpu_hour")
    offers = []
    for number, entry in enumerate(entries, 1):
        offer = _Table(entry, f"{table.where}, offer {number}", keys)
        fact = facts.named(offer.text("source"), f"offer {number}")
        for num_gpus, usd_per_hour in _sizes(offer):
            instance = offer.text("instance").replace("{n}", str(num_gpus))
            provider, region = offer.text("provider"), offer.text("region")
            offers.append(
                Offer(
                    provider=provider,
                    instance=instance,
                    region=region,
                    num_gpus=num_gpus,
                    usd_per_hour=usd_per_hour,
                    fact=fact,
                )
            )
    return tuple(offers)


def _sizes(offer: _Table) -> list[tuple[int, float]]:
    sizes = offer.data.get("sizes")
    if sizes is None:
        return [(offer.count("num_gpus"), offer.number("usd_per_hour"))]
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise InputError(f"{offer.where}, sizes", sizes, "write the numbers of accelerators, such as [1, 2, 4, 8]")
    per_gpu = offer.number("usd_per_gpu_hour")
    return [(size, round(size * per_gpu, 6)) for size in sizes]
