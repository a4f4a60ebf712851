"""``kv_offload``: a share of every sequence's cache lies in CPU memory or on disk and is fetched for each decode."""

from __future__ import annotations

from types import MappingProxyType

from plimsoll.core.errors import InputError
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.compositions._transfer import (
    Fetching,
    make_transfer,
    resident_share,
    tier_bytes_per_s,
    tier_capacity,
)
from plimsoll.perf.compositions._work import attention_of, share
from plimsoll.perf.request import StepModelRequest

SUMMARY = "part of the KV cache in CPU memory or on disk, fetched layer by layer (FlexGen, arXiv 2303.06865)"
OPTIONS = MappingProxyType(
    {
        "tier": Option(default="cpu", meaning="cpu or disk"),
        "share": Option(default=1.0, meaning="share of the cache that lies there"),
        "gb_per_s": Option(default=0.0, meaning="rate from the tier to one GPU; 0 takes the link's or the disk's"),
        "overlap": Option(default=True, meaning="fetch a layer while the one before computes"),
        "capacity_gib": Option(default=0.0, meaning="the tier's GiB for one GPU; 0 takes its usual machine's"),
    }
)


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> Fetching:
    """Decodes that fetch what is not on the GPU.

    Raises:
        InputError: a tier or share that does not exist, or a model without a cache.
    """
    away = float(share("composition kv_offload, share", float(options["share"])))
    rate = tier_bytes_per_s(request, str(options["tier"]), float(options["gb_per_s"]))
    work = attention_of("kv_offload", request)
    transfer = make_transfer(request, work, rate, (away, away), overlap=bool(options["overlap"]))
    return Fetching("kv_offload", inner, options, transfer)


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:
    """What stays on the GPU, the layers that are in use among it, and what the tier holds."""
    away = float(share("composition kv_offload, share", float(options["share"])))
    tier = str(options["tier"])
    if tier not in ("cpu", "disk"):
        raise InputError("composition kv_offload, tier", tier, "write cpu or disk")
    resident = resident_share(attention_of("kv_offload", request), overlap=bool(options["overlap"]))
    capacity_bytes, source = tier_capacity(request, tier, float(options["capacity_gib"]))
    return MemoryEffect(
        gpu_kv_share=1.0 - away * (1.0 - resident),
        kv_tier=tier,
        tier_kv_share=away,
        tier_bytes=capacity_bytes,
        tier_source=source,
    )
