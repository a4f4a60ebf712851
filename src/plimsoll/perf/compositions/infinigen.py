"""``infinigen``: the whole cache in CPU memory, only the important tokens fetched (Lee et al., arXiv 2406.19707).

While layer i−1 computes, the scores of layer i are guessed from a part of the query weights and of the key cache that
stays on the GPU; tokens whose score comes near the largest are fetched over the host link. On average below a tenth of
the tokens are, at most a fifth. The GPU holds 2.5 % of the weights and 15 % of the cache more: half of the cache is
keys, of which `partial` of the columns are kept. What is fetched of the layer in use and of the next is there as well.
"""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType

from plimsoll.catalog.counting import weight_bytes
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.compositions._transfer import (
    Fetching,
    make_transfer,
    resident_share,
    tier_bytes_per_s,
    tier_capacity,
)
from plimsoll.perf.compositions._work import plain_attention_of, share
from plimsoll.perf.request import StepModelRequest

SUMMARY = "cache in CPU memory, important tokens prefetched by speculation (InfiniGen, OSDI 2024, arXiv 2406.19707)"
OPTIONS = MappingProxyType(
    {
        "fetched": Option(
            default=0.1, meaning="mean share of the tokens that is fetched (paper: below 0.1, at most 0.2)"
        ),
        "partial": Option(default=0.3, meaning="share of the key columns that stay on the GPU for the speculation"),
        "gb_per_s": Option(default=0.0, meaning="rate from CPU memory to one GPU; 0 takes the link's"),
        "capacity_gib": Option(default=0.0, meaning="CPU memory in GiB for one GPU; 0 takes its usual machine's"),
    }
)
PARTIAL_WEIGHT_SHARE = 0.025
"""Partial query weights on the GPU, of all weights (the paper's figure at its partial ratio of 0.3)."""


def _shares(options: Options) -> tuple[Fraction, Fraction]:
    fetched = share("composition infinigen, fetched", float(options["fetched"]))
    return fetched, share("composition infinigen, partial", float(options["partial"]), zero=True)


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> Fetching:
    """Decodes that speculate, fetch and attend to what they fetched.

    Raises:
        InputError: a share outside its range, or a model without keys and values by head.
    """
    work = plain_attention_of("infinigen", request)
    fetched, partial = _shares(options)
    rate = tier_bytes_per_s(request, "cpu", float(options["gb_per_s"]))
    transfer = make_transfer(request, work, rate, (float(fetched), 1.0), overlap=True)
    read = min(Fraction(1), fetched + partial / 2)
    return Fetching("infinigen", inner, options, transfer, read)


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:
    """The partial keys and query weights stay on the GPU."""
    fetched, partial = _shares(options)
    resident = resident_share(plain_attention_of("infinigen", request), overlap=True)
    capacity_bytes, source = tier_capacity(request, "cpu", float(options["capacity_gib"]))
    weights = weight_bytes(request.model, request.precision) / request.parallelism.num_gpus
    scale = float(options["partial"]) / float(OPTIONS["partial"].default)
    return MemoryEffect(
        gpu_kv_share=min(1.0, float(partial / 2) + float(fetched) * resident),
        kv_tier="cpu",
        tier_kv_share=1.0,
        tier_bytes=capacity_bytes,
        tier_source=source,
        extra_bytes=PARTIAL_WEIGHT_SHARE * scale * weights,
    )
