"""``kv_quantisation``: a cache of integers with a scale and a zero per group (KIVI, QServe, FlexGen's 4-bit cache).

A decode reads `bits` and the group's share of two 16-bit numbers per element, and unpacks every element on ordinary
cores: it takes the longer of the two. Prompts attend in 16 bit; the context that chunks read is read as stored. For
fp8 caches, which the attention kernels read natively, use the deployment's KV precision instead.
"""

from __future__ import annotations

import functools
import tomllib
from fractions import Fraction
from importlib import resources
from types import MappingProxyType
from typing import Any

from plimsoll.core.errors import InputError
from plimsoll.core.source import Source
from plimsoll.perf.build import DescribedStepModel
from plimsoll.perf.compositions._port import MemoryEffect, Option, Options
from plimsoll.perf.compositions._work import attention_of, kv_bits
from plimsoll.perf.compositions._wrapped import Composed
from plimsoll.perf.kernels import plain_type
from plimsoll.perf.request import StepModelRequest
from plimsoll.perf.tabulated import Line

SUMMARY = "integer KV cache with group scales, unpacked in the attention kernel (KIVI, QServe, FlexGen)"
OPTIONS = MappingProxyType(
    {
        "bits": Option(default=4, meaning="8, 4 or 2 bits of a cached element"),
        "group": Option(default=128, meaning="elements that share a 16-bit scale and zero"),
    }
)


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files("plimsoll.perf.compositions").joinpath("data", "kv_quantisation.toml").read_text("utf-8")
    return tomllib.loads(text)


def stored_share(request: StepModelRequest, options: Options) -> Fraction:
    """Bytes of a cached token over those of the deployment's own cache.

    Raises:
        InputError: other bits than 8, 4 or 2, an empty group, or a cache that is not smaller.
    """
    bits, group = int(options["bits"]), int(options["group"])
    if bits not in (8, 4, 2):
        raise InputError("composition kv_quantisation, bits", bits, "write 8, 4 or 2")
    if group < 8:
        raise InputError("composition kv_quantisation, group", group, "write 8 elements or more")
    factor = Fraction(bits * group + 32, group) / Fraction(kv_bits(request))
    if factor >= 1:
        raise InputError("composition kv_quantisation, bits", bits, f"the cache has {kv_bits(request):g} bits already")
    return factor


class QuantisedCache(Composed):
    """See the module's text."""

    same_decodes = False  # it asks about decodes that read nothing, too

    def __init__(self, inner: DescribedStepModel, options: Options, stored: Fraction, least_s: float) -> None:
        super().__init__("kv_quantisation", inner, options, source=Source.ASSUMED, read_share=stored)
        self._least_s = least_s

    def _decode_piece(self, num_decode: int, line: Line, begin: int) -> Line:  # noqa: ARG002
        return line[0], max(line[1], self._least_s) if num_decode else line[1], line[2]

    def _step_s(self, args: tuple[int, int, int, int, int, int, int]) -> float:
        tokens, chunks, pairs, context, done, decodes, read = args
        stored = context * self._read.numerator // self._read.denominator
        reads = self._inner_read(read)
        beside = self.inner.step_s(tokens, chunks, pairs, stored, done, decodes, 0)
        attention = self.inner.step_s(tokens, chunks, pairs, stored, done, decodes, reads) - beside
        return beside + max(attention, self._least_s * read if decodes else 0.0)


def build(inner: DescribedStepModel, request: StepModelRequest, options: Options) -> QuantisedCache:
    """A quantised cache around `inner`; raises what `stored_share` raises."""
    work = attention_of("kv_quantisation", request)
    stored = stored_share(request, options)
    elements = work.read_bytes / (kv_bits(request) / 8)
    operations = _data()["operations_per_element"][str(int(options["bits"]))]
    # fp32 peaks count a fused multiply-add as two.
    unpack = elements * operations / (request.gpu.dense_flop_per_s.get("fp32", float("inf")) / 2)
    # A latent's decode is bound by its FLOPs, which a smaller cache does not lessen.
    flop = work.decode_flop / request.gpu.dense_flop_per_s[plain_type(request.gpu, request.precision)]
    return QuantisedCache(inner, options, stored, max(unpack, flop))


def memory_effect(request: StepModelRequest, options: Options) -> MemoryEffect:
    """Smaller tokens."""
    return MemoryEffect(kv_bytes_factor=float(stored_share(request, options)))
