"""The device that is measured: its name, its physical limit, and an accelerator file for ``--gpu``.

A catalogued GPU is known by the name that CUDA gives it. A CPU is no rented accelerator: the profile brings a
``device.toml`` of its own, whose peak is an upper limit for what any code can reach (cores that compute × the highest
clock × operations per clock of its widest units), good for refusing impossible times and for nothing else.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from plimsoll.catalog.accelerators import load_accelerator
from plimsoll.core.errors import PlimsollError
from plimsoll.core.units import GB, GIB, TERA

# 16-bit operations per clock of one core, at most: two units of the widest kind. Products and sums count each.
OPERATIONS_PER_CLOCK = {"amx_bf16": 2048, "avx512_bf16": 128, "avx512f": 128, "avx2": 64, "bf16": 128, "asimd": 64}
OTHER_PER_CLOCK = 128
HIGHEST_CLOCK_HZ = 5.5e9
"""Of a CPU that does not tell; no server or desktop CPU of 2026 sustains more on all cores."""
HIGHEST_BYTES_PER_S_AND_CORE = 60e9
"""More than one core draws from memory on any CPU known to us; not a datasheet's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What is measured on.

    Attributes:
        kind: ``cuda`` or ``cpu``.
        id: what ``--gpu`` takes: a catalogue id, or the id in the profile's own ``device.toml``.
        name: the maker's.
        num_cores: cores that compute; 0 for a GPU.
        flop_per_s: upper limit of 16-bit matrix work.
        catalogued: whether the catalogue has it, so that no file is needed.
    """

    kind: str
    id: str
    name: str
    num_cores: int
    flop_per_s: float
    catalogued: bool


def cpu_device(num_cores: int, cpuinfo: str | None = None) -> Device:
    """The CPU of this machine with `num_cores` cores that compute.

    Args:
        num_cores: as many threads as will work.
        cpuinfo: the text of ``/proc/cpuinfo``; read where it is None.
    """
    text = _read(Path("/proc/cpuinfo")) if cpuinfo is None else cpuinfo
    name = _field(text, "model name") or platform.processor() or platform.machine()
    flags = set((_field(text, "flags") or _field(text, "Features")).split())
    per_clock = max((count for flag, count in OPERATIONS_PER_CLOCK.items() if flag in flags), default=OTHER_PER_CLOCK)
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return Device(
        kind="cpu",
        id=f"cpu-{plain}-{num_cores}c",
        name=f"{name}, {num_cores} core{'s' * (num_cores > 1)}",
        num_cores=num_cores,
        flop_per_s=num_cores * per_clock * HIGHEST_CLOCK_HZ,
        catalogued=False,
    )


def cuda_device(name: str) -> Device:
    """A GPU by the name that CUDA gives it; not in the catalogue, it keeps that name and knows no limit."""
    try:
        card = load_accelerator(name)
    except PlimsollError:
        return Device(kind="cuda", id=name, name=name, num_cores=0, flop_per_s=0.0, catalogued=False)
    peak = max(card.dense_flop_per_s.get(kind, 0.0) for kind in ("bf16", "fp16"))
    return Device(kind="cuda", id=card.id, name=name, num_cores=0, flop_per_s=peak, catalogued=True)


def device_toml(device: Device, memory_bytes: int) -> str:
    """An accelerator file for a CPU, which ``--gpu FILE`` takes."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    tflops = device.flop_per_s / TERA
    bandwidth = device.num_cores * HIGHEST_BYTES_PER_S_AND_CORE / GB
    return f"""# Written by `plimsoll profile`: the CPU of a profile, for --gpu. Upper limits, not a datasheet.
id = "{device.id}"
name = {json.dumps(device.name, ensure_ascii=False)}
aliases = []

vendor = "cpu"
architecture = "{platform.machine() or "cpu"}"
segment = "datacenter"
year = {today[:4]}
source = "limit"

memory_gib = {memory_bytes / GIB:.1f}
bandwidth_gb_per_s = {bandwidth:.0f}
tdp_w = 100
gpus_per_node = 1
scale_up_size = 1
intra_node_link = "none"
intra_node_gb_per_s = 1
inter_node_link = "none"
inter_node_gb_per_s = 1
pcie_gb_per_s = 1
no_offer_reason = "a CPU that was profiled, not an accelerator that is rented"

[dense_tflops]
fp16 = {tflops:.3f}
bf16 = {tflops:.3f}
fp32 = {tflops:.3f}

[figure_notes]
dense_tflops = "upper limit: cores x highest clock x operations per clock of the widest units"
bandwidth_gb_per_s = "upper limit of what the cores that compute can draw"
tdp_w = "placeholder: nobody told"
intra_node_gb_per_s = "placeholder: one device"
inter_node_gb_per_s = "placeholder: one device"
pcie_gb_per_s = "placeholder: the cache lies in main memory"

[sources.limit]
url = "https://docs.kernel.org/filesystems/proc.html"
date = "{today}"
note = "CPU name and flags as /proc/cpuinfo says them; see src/plimsoll/profiler/device.py"
"""


def memory_bytes(meminfo: str | None = None) -> int:
    """Main memory of this machine, 0 where it does not tell."""
    text = _read(Path("/proc/meminfo")) if meminfo is None else meminfo
    found = re.search(r"MemTotal:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def identity(device: Device) -> Mapping[str, str]:
    """The header's ``[device]``."""
    return {"id": device.id, "name": device.name, "kind": device.kind}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
