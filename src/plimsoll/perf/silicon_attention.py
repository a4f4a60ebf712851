"""Attention tables of one deployment: decodes as straight lines between table points, prompts as fitted rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from plimsoll.catalog.architecture import Attention, LatentAttention, ModelSpec
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import OutOfRangeError
from plimsoll.core.step import AttentionLayers
from plimsoll.perf.cut import kv_heads_per_gpu, stage_share
from plimsoll.perf.silicon_operators import Translator
from plimsoll.perf.silicon_tables import Compiled
from plimsoll.perf.tabulated import Line

LENGTHS = (
    1, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    65536, 98304, 131072,
)  # fmt: skip
"""Sequence lengths at which decodes are looked up: the tables' powers of two, and one point between them."""
MAX_BATCH = 2048
"""The largest batch in the tables of aiconfigurator-core 0.12."""
CHUNKS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
CONTEXTS = (0, 512, 2048, 8192, 32768)
BATCHES = (1, 2, 4)
MAX_CHUNK_TOKENS = 16384
DEEPSEEK_MLA = (1536, 512, 128, 64, 128)
"""q_lora_rank, kv_lora_rank, nope, rope and value sizes of the MLA block that was measured (DeepSeek-V3, Kimi-K2)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionGroup:
    """Layers that attend alike: the compiled lookups of one step's calls, and the window."""

    decode: Compiled
    prefill: Compiled
    window: int | None


def weighted_lengths(layers: AttentionLayers, length: int) -> int:
    """Read tokens of one sequence of `length`: ``Σ weight·min(length, window)``."""
    return sum(weight * (length if window is None else min(length, window)) for weight, window in layers)


def weighted_pairs(layers: AttentionLayers, chunk: int, context: int) -> float:
    """Pairs of one chunk behind `context` cached tokens, weighted and cut by windows, as `core.step` counts them."""
    total = 0.0
    for weight, window in layers:
        if window is None or context + chunk <= window:
            total += weight * chunk * (context + (chunk + 1) / 2)
        else:
            rising = max(0, window - context)
            total += weight * (rising * (context + (rising + 1) / 2) + (chunk - rising) * window)
    return total


def _distinct_reads(layers: AttentionLayers) -> tuple[int, ...]:
    """Read tokens of one sequence at each of LENGTHS, up to where every layer has a window and all are full."""
    reads: list[int] = []
    for length in LENGTHS:
        read = weighted_lengths(layers, length)
        if reads and read <= reads[-1]:
            break
        reads.append(read)
    return tuple(reads)


class AttentionTables:
    """Measured attention of all layers of one pipeline stage.

    Args:
        translator: names of the tables' types.
        model: for its attention groups.
        parallelism: cut of heads and sequences.
        layers: how read tokens are folded.
    """

    def __init__(
        self, translator: Translator, model: ModelSpec, parallelism: Parallelism, layers: AttentionLayers
    ) -> None:
        self._tables, self._layers, self._dp = translator.tables, layers, parallelism.dp
        self._columns: dict[int, list[float]] = {}
        self._reads = _distinct_reads(layers)
        self.prefill_error_frac: float | None = None
        self.groups: list[AttentionGroup] = []
        share = stage_share(model, parallelism)
        for group in model.groups:
            if isinstance(group.mixer, Attention | LatentAttention):
                self.groups.append(_group(translator, group.mixer, group.count * share, parallelism.tp))

    def decode_s(self, num_decode: int, length: int) -> float:
        """Seconds of one step's decode attention, `num_decode` sequences of `length` tokens."""
        mine = -(-num_decode // self._dp)
        return sum(
            self._tables.evaluate(group.decode, context=False, work=(mine, _seen(group, length), 0), rows=mine)
            for group in self.groups
        )

    def _looked_up(self, batch: int, place: int) -> float:
        """Seconds at one of LENGTHS for one of the tables' batch sizes, the powers of two; asked by rising `place`."""
        column = self._columns.setdefault(batch, [])
        if place == len(column):
            column.append(self.decode_s(batch * self._dp, LENGTHS[place]))
        return column[place]

    def prefill_s(self, num_chunks: int, chunk: int, context: int) -> float:
        """Seconds of one step's prompt attention, `num_chunks` chunks behind `context` cached tokens each.

        A windowed layer is looked up as a full one and scaled by the pairs that its window leaves.
        """
        total = 0.0
        for group in self.groups:
            full = weighted_pairs(((1, None),), chunk, context)
            part = weighted_pairs(((1, group.window),), chunk, context) / full
            work = (num_chunks, chunk, context)
            total += part * self._tables.evaluate(group.prefill, work=work, rows=num_chunks * chunk)
        return total

    def decode_pieces(self, num_decode: int) -> Iterator[Line]:
        """The lines between neighbouring table points, in read tokens of all sequences; seconds never fall.

        A point is looked up when the line to it is asked for: long contexts cost nothing where there are none.
        """
        mine = -(-num_decode // self._dp)
        below = min(1 << (mine.bit_length() - 1), MAX_BATCH // 2)
        share = (mine - below) / below
        last = len(self._reads) - 1
        read, seconds = 0, 0.0
        for place, weighted in enumerate(self._reads):
            at_low, at_high = self._looked_up(below, place), self._looked_up(2 * below, place)
            next_read, next_seconds = num_decode * weighted, at_low + (at_high - at_low) * share
            if place:
                next_seconds = max(next_seconds, seconds)
                slope = (next_seconds - seconds) / (next_read - read)
                yield seconds - slope * read, slope, next_read + 1 if place == last else next_read
            read, seconds = next_read, next_seconds

    def prefill_rates(self) -> tuple[float, float, float, float, float]:
        """Seconds per step, chunk, token, pair and read token: the non-negative fit with the least relative error."""
        rows, seconds = [], []
        for chunk in CHUNKS:
            for context in CONTEXTS:
                for batch in BATCHES:
                    if batch * chunk > MAX_CHUNK_TOKENS:
                        continue
                    pairs = batch * weighted_pairs(self._layers, chunk, context)
                    read = batch * weighted_lengths(self._layers, context)
                    rows.append((1.0, batch, batch * chunk, pairs, read))
                    seconds.append(self.prefill_s(batch, chunk, context))
        table, measured = np.array(rows), np.array(seconds)
        rates = _relative_fit(table, measured)
        self.prefill_error_frac = float(np.median(np.abs(table @ rates / measured - 1)))
        # Under data-parallel attention each rank works on its share of the chunks at the same time.
        scale = np.array([1.0, *([1.0 / self._dp] * 4)])
        fixed, chunk_s, token_s, pair_s, read_s = (float(rate) for rate in rates * scale)
        return fixed, chunk_s, token_s, pair_s, read_s


def _seen(group: AttentionGroup, length: int) -> int:
    return length if group.window is None else min(length, group.window)


def _group(translator: Translator, mixer: Attention | LatentAttention, count: float, tp: int) -> AttentionGroup:
    tables, operations = translator.tables, translator.tables.operations
    cache, kind = translator.cache_type, translator.attention_type
    prefill: Any
    decode: Any
    window = mixer.window if isinstance(mixer, Attention) else None
    if isinstance(mixer, LatentAttention):
        sizes = (
            mixer.q_lora_rank,
            mixer.kv_lora_rank,
            mixer.qk_nope_head_dim,
            mixer.qk_rope_head_dim,
            mixer.v_head_dim,
        )
        if sizes != DEEPSEEK_MLA or mixer.index_topk:
            raise OutOfRangeError(f"latent attention of ranks and heads {sizes} was not measured")
        heads, gemm = mixer.num_heads // tp, translator.module_gemm_type
        prefill, decode = (
            operations.MLAModule(
                "attention block", count, context, heads, cache, kind, gemm, native_num_heads=mixer.num_heads
            )
            for context in (True, False)
        )
    else:
        if mixer.v_head_dim != mixer.head_dim:
            raise OutOfRangeError(
                f"value heads of {mixer.v_head_dim} beside keys of {mixer.head_dim} were not measured"
            )
        heads, kv_heads = mixer.num_heads // tp, kv_heads_per_gpu(mixer, tp)
        dim = mixer.head_dim
        prefill = operations.ContextAttention("attention", count, heads, kv_heads, cache, kind, head_size=dim)
        decode = operations.GenerationAttention("attention", count, heads, kv_heads, cache, head_size=dim)
        tables.choose_kernels(prefill, decode)
    return AttentionGroup(decode=tables.compile(decode), prefill=tables.compile(prefill), window=window)


def _relative_fit(table: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Non-negative rates that minimise the relative squared error, by projected coordinate descent."""
    scaled = table / measured[:, None]
    size = np.linalg.norm(scaled, axis=0)
    columns = scaled / np.where(size > 0, size, 1.0)
    gram, target = columns.T @ columns, columns.T @ np.ones(len(measured))
    rates = np.zeros(table.shape[1])
    for _ in range(2000):
        before = rates.copy()
        for i in range(len(rates)):
            rates[i] = max(0.0, rates[i] + (target[i] - gram[i] @ rates) / max(gram[i, i], 1e-30))
        if np.max(np.abs(rates - before)) < 1e-12:
            break
    result: np.ndarray = rates / np.where(size > 0, size, 1.0)
    return result
