"""Attention of one layer as torch executes it: full, behind a sliding window, over latents; chunks and decodes.

On CUDA `torch.nn.attention.varlen.varlen_attn` is taken where this torch has it with windows and grouped queries: the
flash kernel, all sequences of a step in one call, aligned at the bottom right. Elsewhere attention is
`scaled_dot_product_attention`: chunks behind a context take a mask, and behind a window queries go block by block, each
with only the keys that it can see, since a mask alone would compute what it hides. A decode reads the last `window`
keys in either case.

Latent attention (MLA). A decode works on the cached latents, the up projection being absorbed into query and output
(three kernels: scores, softmax, sum; engines have one). A chunk expands the latents of its context and its own into
keys and values, and attends as usual; flash kernels want values of the keys' size, so that they are padded.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Any

from plimsoll.profiler.clock import Call
from plimsoll.profiler.shapes import Shape

COLD_BYTES = 512 * 2**20
"""Copies of weights and keys together exceed this, and with it every cache known to us."""
MOST_COPIES = 8
ELEMENT_BYTES = 2
QUERY_BLOCK = 128
"""Queries of one block behind a window, at least."""


class Attend:
    """Makes calls of attention.

    Args:
        torch: the module.
        shape: the model's sizes (`own_shape.shape_of`).
        tp: devices that share the heads.
        random: makes random tensors of the profile's type on its device.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, torch: Any, shape: Mapping[str, int], tp: int, random: Any, device: str) -> None:
        self._torch, self._shape, self._random, self._device = torch, shape, random, device
        self._heads, self._kv_heads = shape["num_heads"] // tp, max(1, shape["num_kv_heads"] // tp)
        # flash kernels begin with compute capability 8.0
        modern = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
        self._flash = varlen_of(torch) if modern else None

    @property
    def kernel(self) -> str:
        """What is called, for the header."""
        return "scaled_dot_product_attention" if self._flash is None else "varlen_attn"

    def calls(self, shape: Shape, window: int | None = None) -> list[Call]:
        """What one layer calls in a step, in turn."""
        if "kv_lora_rank" in self._shape:
            return self._latent_calls(shape)
        if self._flash is not None:
            lengths = [(shape.chunk_tokens, shape.context_tokens)] * shape.num_prefill
            lengths += [(1, shape.decode_length_tokens - 1)] * shape.num_decode
            return [self._packed(lengths, window)]
        found = []
        if shape.num_prefill:
            found.append(self._chunks(shape.num_prefill, shape.chunk_tokens, shape.context_tokens, window))
        if shape.num_decode:
            length = shape.decode_length_tokens if window is None else min(shape.decode_length_tokens, window)
            found.append(self._chunks(shape.num_decode, 1, length - 1, None))
        return found

    # One kernel over packed sequences ----------------------------------------------------------------------------

    def _packed(self, lengths: list[tuple[int, int]], window: int | None) -> Call:
        """All sequences, given as new tokens and context, in one call of torch's flash kernel."""
        head, whole = self._shape["head_dim"], sum(new + context for new, context in lengths)
        query = self._random(sum(new for new, _ in lengths), self._heads, head)
        copies = self._copies(2 * whole * self._kv_heads * head)
        cache = [[self._random(whole, self._kv_heads, head) for _ in range(2)] for _ in range(copies)]
        flash, turn = packed(self._torch, self._flash, lengths, window, self._device), itertools.cycle(cache)
        return lambda _: flash(query, *next(turn))

    # scaled_dot_product_attention --------------------------------------------------------------------------------

    def _chunks(self, number: int, new: int, context: int, window: int | None) -> Call:
        """`number` sequences of `new` tokens each behind `context` tokens."""
        length, head = new + context, self._shape["head_dim"]
        query = self._random(number, self._heads, new, head)
        copies = self._copies(2 * number * self._kv_heads * length * head)
        keys = [self._random(number, self._kv_heads, length, head) for _ in range(copies)]
        values = [self._random(number, self._kv_heads, length, head) for _ in range(copies)]
        turn = itertools.cycle(range(copies))
        pieces = blocks(self._torch, new, context, window, self._device)

        def call(_: int) -> Any:
            copy = next(turn)
            return masked(self._torch, query, keys[copy], values[copy], pieces)

        return call

    def _copies(self, elements: int) -> int:
        fits = COLD_BYTES // max(1, ELEMENT_BYTES * elements)
        return max(1, min(self._shape["num_layers"], fits, MOST_COPIES))

    # Latents -----------------------------------------------------------------------------------------------------

    def _latent_calls(self, shape: Shape) -> list[Call]:
        found = []
        if shape.num_prefill:
            found.append(self._expanded(shape.num_prefill, shape.chunk_tokens, shape.context_tokens))
        if shape.num_decode:
            found.append(self._absorbed(shape.num_decode, shape.decode_length_tokens))
        return found

    def _absorbed(self, number: int, length: int) -> Call:
        """Decodes over cached latents."""
        torch, sizes, heads = self._torch, self._shape, self._heads
        rank, nope, rope = sizes["kv_lora_rank"], sizes["qk_nope_head_dim"], sizes["qk_rope_head_dim"]
        turn = itertools.cycle(self._latents(number, length))
        query = self._random(heads, number, nope), self._random(number, heads, rope)
        weights = self._random(heads, nope, rank), self._random(heads, rank, sizes["v_head_dim"])
        return lambda _: absorbed(torch, query, next(turn), weights)

    def _expanded(self, number: int, new: int, context: int) -> Call:
        """Chunks: the latents of the whole sequence become keys and values, then attention as usual."""
        torch, sizes, heads, length = self._torch, self._shape, self._heads, new + context
        nope, rope, out = sizes["qk_nope_head_dim"], sizes["qk_rope_head_dim"], sizes["v_head_dim"]
        up = self._random(heads, nope + out, sizes["kv_lora_rank"])
        query = self._random(number, new, heads, nope + rope)
        pieces, turn = blocks(torch, new, context, None, self._device), itertools.cycle(self._latents(number, length))
        padding = (0, nope + rope - out)
        if self._flash is None:
            first = query.transpose(1, 2)

            def plain(_: int) -> Any:
                key, value = expanded(torch, next(turn), up, nope)
                value = torch.nn.functional.pad(value, padding)
                return masked(torch, first, key.transpose(1, 2), value.transpose(1, 2), pieces)[..., :out]

            return plain
        flash = packed(torch, self._flash, [(new, context)] * number, None, self._device)

        def call(_: int) -> Any:
            key, value = expanded(torch, next(turn), up, nope)
            value = torch.nn.functional.pad(value, padding)
            return flash(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))[..., :out]

        return call

    def _latents(self, number: int, length: int) -> list[Any]:
        """Caches ``[number, length, rank + rope]``."""
        width = self._shape["kv_lora_rank"] + self._shape["qk_rope_head_dim"]
        return [self._random(number, length, width) for _ in range(self._copies(number * length * width))]


def absorbed(torch: Any, query: tuple[Any, Any], latents: Any, weights: tuple[Any, Any]) -> Any:
    """Attention of one new token a sequence over latents: scores and sums are products with them.

    Args:
        torch: the module.
        query: without positions ``[heads, sequences, nope]``, with rotary ones ``[sequences, heads, rope]``.
        latents: ``[sequences, length, rank + rope]``.
        weights: the up projection of keys ``[heads, nope, rank]`` and of values ``[heads, rank, out]``.

    Returns:
        ``[heads, sequences, out]``.
    """
    (plain, turned), (into, back) = query, weights
    rank, size = into.shape[-1], plain.shape[-1] + turned.shape[-1]
    whole = torch.cat([torch.bmm(plain, into).transpose(0, 1), turned], dim=-1)
    scores = torch.bmm(whole, latents.transpose(1, 2)) / math.sqrt(size)
    summed = torch.bmm(torch.softmax(scores, dim=-1), latents[..., :rank])
    return torch.bmm(summed.transpose(0, 1), back)


def expanded(torch: Any, latents: Any, up: Any, nope: int) -> tuple[Any, Any]:
    """Keys ``[sequences, length, heads, nope + rope]`` and values ``[sequences, length, heads, out]`` of latents.

    Args:
        torch: the module.
        latents: ``[sequences, length, rank + rope]``.
        up: the up projection ``[heads, nope + out, rank]``.
        nope: size of a key's part without positions.
    """
    heads, size, rank = up.shape
    wide = (latents[..., :rank] @ up.flatten(0, 1).t()).unflatten(-1, (heads, size))
    shared = latents[:, :, None, rank:].expand(-1, -1, heads, -1)
    return torch.cat([wide[..., :nope], shared], dim=-1), wide[..., nope:]


def packed(torch: Any, flash: Any, lengths: list[tuple[int, int]], window: int | None, device: str) -> Any:
    """A function of queries, keys and values ``[tokens, heads, dim]`` of sequences one behind the other.

    Args:
        torch: the module.
        flash: `varlen_attn`.
        lengths: new tokens and context of every sequence.
        window: tokens that a token sees at most, itself included.
        device: where the tensors lie.
    """
    new, whole = [first for first, _ in lengths], [first + context for first, context in lengths]
    starts = [
        torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=device) for counts in (new, whole)
    ]
    # (-1, 0) is causal, (w - 1, 0) sees w - 1 tokens before each; both aligned to the last query and key
    sees = (-1 if window is None else window - 1, 0)

    def call(query: Any, key: Any, value: Any) -> Any:
        grouped = query.shape[1] != key.shape[1]
        return flash(query, key, value, *starts, max(new), max(whole), window_size=sees, enable_gqa=grouped)

    return call


Piece = tuple[slice, slice, Any, bool]
"""Queries, the keys that they can see, the mask between them (None: no mask), and whether it is plainly causal."""


def blocks(torch: Any, new: int, context: int, window: int | None, device: str) -> list[Piece]:
    """How `new` queries behind `context` keys attend: at once, or behind a window block by block."""
    if window is None or context + new <= window:
        mask = None
        if context and new > 1:
            mask = torch.ones(new, new + context, dtype=torch.bool, device=device).tril(diagonal=context)
        return [(slice(0, new), slice(0, new + context), mask, mask is None and new > 1)]
    found, size = [], max(QUERY_BLOCK, window // 4)
    for start in range(0, new, size):
        end = min(new, start + size)
        first = max(0, context + start - window + 1)
        queries = torch.arange(context + start, context + end, device=device)[:, None]
        keys = torch.arange(first, context + end, device=device)[None, :]
        mask = (keys <= queries) & (keys > queries - window)
        found.append((slice(start, end), slice(first, context + end), None if end - start == 1 else mask, False))
    return found


def masked(torch: Any, query: Any, key: Any, value: Any, pieces: list[Piece]) -> Any:
    """Attention ``[sequences, heads, new, dim]`` over `pieces`."""
    grouped = query.shape[1] != key.shape[1]
    found = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, queries],
            key[:, :, keys],
            value[:, :, keys],
            attn_mask=mask,
            is_causal=causal,
            enable_gqa=grouped,
        )
        for queries, keys, mask, causal in pieces
    ]
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def varlen_of(torch: Any) -> Any:
    """`varlen_attn` where this torch has it with windows and grouped queries, else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    del torch
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa"} <= set(known) else None
