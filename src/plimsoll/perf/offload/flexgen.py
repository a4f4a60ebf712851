"""FlexGen's block schedule: its cost equations and memory peaks (Sheng et al., ICML 2023, arXiv 2303.06865).

A block is `num_gpu_batches` GPU batches that go through a layer together, so that the layer's weights are loaded once
for all of them; while batch k computes, the weights of the next layer, the cache of batch k+1 and what batch k−1
stores are under way:

    for each token, for each layer, for each GPU batch k of the block:
        load weights (layer + 1) │ store cache, hidden (k − 1) │ load cache, hidden (k + 1) │ compute k

Every term is linear in the nine shares of the placement (weights, cache and hidden states on GPU, CPU and disk), so
each is kept as ten numbers ``[1, wg, wc, wd, cg, cc, cd, hg, hc, hd]``: `flexgen_search` hands the same numbers to a
linear program that `evaluate` multiplies out. Per layer, s prompt and n output tokens, b sequences of a block:

    prefill  max(ctog + dtoc, gtoc + ctod, compute)
    decode   ctog + max(gtoc, dtoc, ctod, compute)          ``combine="shipped"``, the released cost model
    both     max(ctog, gtoc, dtoc, ctod, compute)           ``combine="paper"``, the text's form
    both     the sum of all                                  ``overlap=False``

Beyond the released model, whose constants were fitted to offloaded fp16 runs with large batches: matrix products of a
decode take at least the time of reading their weights from GPU memory; caches that are not delegated to the CPU are
loaded for attention on the GPU; 4-bit tensors are unpacked on the GPU, weights anew for every GPU batch; an evicting
cache (H2O) keeps `kept_tokens` after a full prefill. Each can be told from the options and is named in the notes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.perf.offload.hardware import OffloadHardware
from plimsoll.perf.offload.layer import LayerShape

Linear = npt.NDArray[np.float64]
"""Ten coefficients: the constant, then the shares in `Placement.SHARES` order."""


def compressed_frac(group: int = 64) -> float:
    """4-bit elements in groups (FlexGen: of 64) with a 16-bit minimum and scale, over 16 bits (section 5)."""
    return (4 + 2 * 16 / group) / 16


COMPRESSED_FRAC = compressed_frac()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Shares of weights (w), cache (c) and hidden states (h) on GPU (g), CPU (c) and disk (d); each kind sums to 1."""

    wg: float
    wc: float
    wd: float
    cg: float
    cc: float
    cd: float
    hg: float
    hc: float
    hd: float

    def __post_init__(self) -> None:
        for kind in "wch":
            shares = [getattr(self, kind + tier) for tier in "gcd"]
            if min(shares) < -1e-9 or abs(sum(shares) - 1) > 1e-6:
                raise InputError(f"placement of {kind}", shares, "write shares from 0 on that sum to 1")

    @classmethod
    def percent(cls, wg: float, wc: float, cg: float, cc: float, hg: float, hc: float) -> Placement:
        """From FlexGen's ``--percent``: weights, cache and hidden on GPU and CPU in per cent, the rest on disk."""
        pairs = [(gpu / 100, cpu / 100, 1 - gpu / 100 - cpu / 100) for gpu, cpu in ((wg, wc), (cg, cc), (hg, hc))]
        flat = [share for triple in pairs for share in triple]
        return cls(**dict(zip(SHARES, flat, strict=True)))

    def vector(self) -> Linear:
        """``[1, wg, …, hd]``."""
        return np.array([1.0, *(getattr(self, name) for name in SHARES)])


SHARES = tuple(field.name for field in dataclasses.fields(Placement))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockWork:
    """What is served, and in what blocks.

    Attributes:
        prompt_tokens, output_tokens: of every sequence (s and n).
        gpu_batch: sequences of one GPU batch.
        num_gpu_batches: GPU batches of a block.
        compress_weights, compress_cache: 4-bit storage.
        cpu_attention: attention of a decode runs on the CPU for what of the cache is not on the GPU.
        overlap: transfers and compute of neighbouring batches overlap.
        kept_tokens: cache entries that a sequence keeps after its prefill; None keeps all.
        kept_frac: share of its cache entries that a sequence keeps at every length.
        cache_group: elements that share a minimum and a scale where the cache is compressed.
        combine: ``shipped`` or ``paper`` (see the module's text).
        timed_tokens: output tokens over which a decode is averaged, None for all: FlexGen's benchmarks time the first
            few and take the others to cost as much (``--cut-gen-len N``; ``--debug fewer_batch``: twenty layers of the
            first decode), though the cache of the others is longer.
    """

    prompt_tokens: int
    output_tokens: int
    gpu_batch: int
    num_gpu_batches: int = 1
    compress_weights: bool = False
    compress_cache: bool = False
    cpu_attention: bool = True
    overlap: bool = True
    kept_tokens: float | None = None
    kept_frac: float = 1.0
    cache_group: int = 64
    combine: str = "shipped"
    timed_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "gpu_batch", "num_gpu_batches"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "write a whole number from 1")
        if self.timed_tokens is not None and self.timed_tokens < 1:
            raise InputError("timed_tokens", self.timed_tokens, "write a whole number from 1, or leave it out")
        if not 0 < self.kept_frac <= 1:
            raise InputError("kept_frac", self.kept_frac, "write a share above 0 up to 1")
        if self.cache_group < 1:
            raise InputError("cache_group", self.cache_group, "write a whole number from 1")
        if self.combine not in ("shipped", "paper"):
            raise InputError("combine", self.combine, "write shipped or paper")
        if self.compress_cache and self.cpu_attention:
            raise InputError("cpu_attention", True, "FlexGen turns it off with a compressed cache; write False")

    @property
    def block(self) -> int:
        """Sequences of a block."""
        return self.gpu_batch * self.num_gpu_batches

    @property
    def mean_decode_tokens(self) -> float:
        """Cache entries that a decode reads, averaged over what is timed of the output: s + n/2, or what is kept."""
        averaged = self.output_tokens if self.timed_tokens is None else min(self.output_tokens, self.timed_tokens)
        return self.kept(self.prompt_tokens + averaged / 2)

    @property
    def stored_tokens(self) -> float:
        """Cache entries of a sequence at its end."""
        return self.kept(float(self.prompt_tokens + self.output_tokens))

    @property
    def stored_prompt_tokens(self) -> float:
        """Cache entries that the prefill stores."""
        return self.kept(float(self.prompt_tokens + 1))

    def kept(self, tokens: float) -> float:
        """Cache entries that are kept of `tokens` of one sequence."""
        share = tokens * self.kept_frac
        return share if self.kept_tokens is None else min(share, self.kept_tokens)


def linear(constant: float = 0.0, **shares: float) -> Linear:
    """A linear form from its constant and its coefficients by share."""
    form = np.zeros(1 + len(SHARES))
    form[0] = constant
    for name, value in shares.items():
        form[1 + SHARES.index(name)] = value
    return form


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """The five times of one layer of one block, as linear forms in seconds."""

    ctog: Linear
    gtoc: Linear
    dtoc: Linear
    ctod: Linear
    compute: Linear

    def alternatives(self, work: BlockWork, *, decode: bool) -> list[Linear]:
        """Linear forms whose largest value is the time of the layer."""
        parts = [self.ctog, self.gtoc, self.dtoc, self.ctod, self.compute]
        if not work.overlap:
            return [sum(parts, start=linear())]
        if work.combine == "paper":
            return parts
        if decode:
            return [self.ctog + part for part in parts[1:]]
        return [self.ctog + self.dtoc, self.gtoc + self.ctod, self.compute]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BlockModel:
    """Everything linear about one choice of blocks."""

    work: BlockWork
    num_layers: int
    prefill: Phase
    decode: Phase
    gpu_peaks: tuple[Linear, Linear]
    cpu_peaks: tuple[Linear, Linear]
    disk_peak: Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What a placement comes to.

    Attributes:
        prefill_s, decode_s: of the whole block: all layers, and all output tokens but the first.
        throughput_tokens_per_s: output tokens of the block over both.
        decode_tokens_per_s: output tokens but the first over `decode_s`.
        gpu_peak_bytes, cpu_peak_bytes, disk_peak_bytes: the larger of prefill and decode.
        prefill_parts_s, decode_parts_s: the five times of one layer by name.
    """

    prefill_s: float
    decode_s: float
    throughput_tokens_per_s: float
    decode_tokens_per_s: float
    gpu_peak_bytes: float
    cpu_peak_bytes: float
    disk_peak_bytes: float
    prefill_parts_s: dict[str, float]
    decode_parts_s: dict[str, float]


def block_model(shape: LayerShape, hardware: OffloadHardware, work: BlockWork) -> BlockModel:
    """The linear forms of one choice of blocks."""
    gpu_peaks, cpu_peaks, disk_peak = _peaks(shape, work)
    tokens, stored = work.block * work.prompt_tokens, work.block * work.stored_prompt_tokens
    squares = tokens * work.prompt_tokens
    return BlockModel(
        work=work,
        num_layers=shape.num_layers,
        prefill=prefill_phase(shape, hardware, work, tokens, squares, stored),
        decode=decode_phase(shape, hardware, work, work.block, work.block * work.mean_decode_tokens),
        gpu_peaks=gpu_peaks,
        cpu_peaks=cpu_peaks,
        disk_peak=disk_peak,
    )


def stored_bytes(shape: LayerShape, work: BlockWork) -> tuple[float, float]:
    """``(weights of a layer, cache of a token in a layer)`` in bytes as stored."""
    weights = shape.plain_weight_bytes * (COMPRESSED_FRAC if work.compress_weights else 1.0)
    cache = shape.plain_kv_bytes * (compressed_frac(work.cache_group) if work.compress_cache else 1.0)
    return weights, cache


def _compression_s(shape: LayerShape, hw: OffloadHardware, work: BlockWork, read: float, written: float) -> float:
    """Seconds of unpacking 4-bit weights, once per GPU batch, and of `read` and `written` cache entries in all."""
    moved = 0.0
    if work.compress_weights:
        moved += shape.matrix_params * work.num_gpu_batches * hw.unpack_bytes_per_element
    if work.compress_cache:
        entries = read * hw.unpack_bytes_per_element + written * hw.pack_bytes_per_element
        moved += shape.kv_elements * entries
    return moved / hw.gpu_memory_bytes_per_s


def prefill_phase(
    shape: LayerShape, hw: OffloadHardware, work: BlockWork, tokens: float, squares: float, stored: float
) -> Phase:
    """One prefill of `tokens` prompt tokens, squared lengths summing to `squares`; `stored` entries go to the cache."""
    weights, kv = stored_bytes(shape, work)
    hidden = 2.0 * shape.hidden * tokens
    cache = kv * stored
    attention = 4.0 * squares * shape.attention_width / hw.attention_prefill_flop_per_s
    compute = tokens * shape.plain_weight_bytes / hw.matmul_prefill_flop_per_s + attention
    return Phase(
        ctog=linear(wc=weights, wd=weights, hc=hidden, hd=hidden) / hw.cpu_to_gpu_bytes_per_s,
        gtoc=linear(cc=cache, cd=cache) / hw.gpu_to_cpu_cache_bytes_per_s
        + linear(hc=hidden, hd=hidden) / hw.gpu_to_cpu_hidden_bytes_per_s,
        dtoc=linear(wd=weights, hd=hidden) / hw.disk_to_cpu_bytes_per_s,
        ctod=linear(cd=cache) / hw.cpu_to_disk_cache_prefill_bytes_per_s
        + linear(hd=hidden) / hw.cpu_to_disk_hidden_prefill_bytes_per_s,
        compute=linear(compute + _compression_s(shape, hw, work, 0.0, tokens)),
    )


def decode_phase(shape: LayerShape, hw: OffloadHardware, work: BlockWork, block: int, read_tokens: float) -> Phase:
    """One decode of `block` sequences that read `read_tokens` cache entries together."""
    weights, kv = stored_bytes(shape, work)
    hidden = 2.0 * shape.hidden * block
    cache = kv * read_tokens
    pairs = 4.0 * read_tokens * shape.attention_width
    loaded = 0.0 if work.cpu_attention else cache
    matmul = max(
        block * shape.plain_weight_bytes / hw.matmul_decode_flop_per_s,
        work.num_gpu_batches * shape.plain_weight_bytes / hw.gpu_memory_bytes_per_s,
    )
    on_gpu = pairs / hw.attention_decode_flop_per_s
    away = pairs / (hw.cpu_flop_per_s * hw.cpu_share(work.gpu_batch, shape.hidden)) if work.cpu_attention else on_gpu
    return Phase(
        ctog=linear(wc=weights, wd=weights, hc=hidden, hd=hidden, cc=loaded, cd=loaded) / hw.cpu_to_gpu_bytes_per_s,
        gtoc=linear(hc=hidden, hd=hidden) / hw.gpu_to_cpu_hidden_bytes_per_s,
        dtoc=linear(cd=cache, hd=hidden, wd=weights / hw.disk_weight_frac) / hw.disk_to_cpu_bytes_per_s,
        ctod=linear(cd=kv * block, hd=hidden) / hw.cpu_to_disk_decode_bytes_per_s,
        compute=linear(matmul + _compression_s(shape, hw, work, read_tokens, block), cg=on_gpu, cc=away, cd=away),
    )


def _peaks(shape: LayerShape, work: BlockWork) -> tuple[tuple[Linear, Linear], tuple[Linear, Linear], Linear]:
    """Peak bytes on GPU (prefill, decode), CPU (prefill, decode) and disk, as FlexGen's cost model bounds them."""
    weights, kv = stored_bytes(shape, work)
    s, h1, h2, batch, block = work.prompt_tokens, shape.hidden, shape.inter, work.gpu_batch, work.block
    layers, end = shape.num_layers, work.stored_tokens
    all_weights, all_cache = weights * layers, kv * end * block * layers
    heads = shape.num_heads
    inter_prefill = batch * (8.0 * s * h1 + 2 * s * h1 + 2 * heads * s**2 + 2 * s * h1 + 4 * s * h1 + 2 * s * h2)
    inter_prefill += 2.0 * batch * s * h1
    gpu_prefill = linear(
        2 * weights + 2.0 * s * h1 * batch + inter_prefill,
        wg=all_weights - 2 * weights,
        hg=2.0 * s * h1 * (block - batch),
        cg=all_cache,
    )
    reads = batch * (2.0 * h1 + 2 * end * h1 + 2 * heads * end) + batch * (2 * end * h1 + 2 * h1)
    gpu_decode = linear(
        2 * weights + 2.0 * h1 * batch + batch * (14.0 * h1 + 2 * h2),
        wg=all_weights - 2 * weights,
        hg=2.0 * h1 * (block - batch),
        cg=all_cache + kv * batch * end + reads,
    )
    hidden, prompt_cache = 2.0 * s * h1 * block, kv * work.stored_prompt_tokens * block * layers
    cpu_prefill = linear(
        weights + 2.0 * s * h1 * batch,
        wc=all_weights,
        hc=hidden,
        cc=prompt_cache,
        wg=-weights,
        hg=-2.0 * s * h1 * batch,
    )
    cpu_decode = linear(
        2.0 * heads * end * batch + 2.0 * h1 * batch,
        wc=all_weights,
        wd=weights,
        hc=2.0 * h1 * block,
        hd=4.0 * h1 * batch,
        cc=all_cache,
        cd=2.0 * kv * end * batch,
    )
    return (gpu_prefill, gpu_decode), (cpu_prefill, cpu_decode), linear(wd=all_weights, hd=hidden, cd=all_cache)


def evaluate(block: BlockModel, placement: Placement) -> BlockCost:
    """Times, throughput and peaks of `placement`."""
    shares, work = placement.vector(), block.work
    prefill = max(float(form @ shares) for form in block.prefill.alternatives(work, decode=False))
    decode = max(float(form @ shares) for form in block.decode.alternatives(work, decode=True))
    steps = work.output_tokens - 1
    prefill_s, decode_s = prefill * block.num_layers, decode * block.num_layers * steps
    return BlockCost(
        prefill_s=prefill_s,
        decode_s=decode_s,
        throughput_tokens_per_s=work.block * work.output_tokens / (prefill_s + decode_s),
        decode_tokens_per_s=work.block * steps / decode_s if steps else 0.0,
        gpu_peak_bytes=max(float(form @ shares) for form in block.gpu_peaks),
        cpu_peak_bytes=max(float(form @ shares) for form in block.cpu_peaks),
        disk_peak_bytes=float(block.disk_peak @ shares),
        prefill_parts_s=_parts(block.prefill, shares),
        decode_parts_s=_parts(block.decode, shares),
    )


def _parts(phase: Phase, shares: Linear) -> dict[str, float]:
    return {field.name: float(getattr(phase, field.name) @ shares) for field in dataclasses.fields(Phase)}


def check_tiers(shape: LayerShape, hardware: OffloadHardware, work: BlockWork) -> None:
    """Refuse a machine whose three tiers together do not hold the weights.

    Raises:
        InfeasibleError: constraint ``memory``.
    """
    need = stored_bytes(shape, work)[0] * shape.num_layers
    have = hardware.gpu_bytes + hardware.cpu_bytes + hardware.disk_bytes
    if need > have:
        raise InfeasibleError(
            f"{need / 1e9:.1f} GB of weights do not fit into the {have / 1e9:.1f} GB of GPU, CPU and disk of "
            f"{hardware.name}; use a larger tier or 4-bit weights",
            "memory",
        )
