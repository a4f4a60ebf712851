"""What a step of the general kernel costs that is not one plain forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plimsoll.core.step import AttentionLayers

if TYPE_CHECKING:
    from plimsoll.engine.general.plan import GeneralPlan
    from plimsoll.engine.general.state import GeneralState

Piece = tuple[int, int, bool]
"""Tokens of a chunk in one forward pass, its context before, and whether the prompt is complete with it."""


def chunk_cost(layers: AttentionLayers, chunk: int, context: int) -> tuple[int, int]:
    """Attention pairs and context read of one chunk, folded over the attention windows."""
    from plimsoll.engine.replicas.replica import window_pairs

    pairs = sum(weight * window_pairs(chunk, context, window) for weight, window in layers)
    read = sum(weight * (context if window is None else min(context, window)) for weight, window in layers)
    return pairs, read


def passes_s(replica: GeneralState, plan: GeneralPlan, decodes: tuple[int, int]) -> float:
    """Seconds of a step whose prompts are padded or that is cut into several forward passes.

    Args:
        replica: whose step model and attention windows hold; the chunks are in place already.
        plan: with `pad_prompt` or `pass_tokens`.
        decodes: their number and the tokens they read; they all go into the first pass.
    """
    target, prefilling, pad = replica.requests.target, replica.prefilling, plan.pad_prompt
    chunks = []
    for request, chunk in plan.chunks:
        total = prefilling[request] if request in prefilling else target[request]
        chunks.append((request, chunk, total - chunk))
    if replica.plain_attention:
        if not pad:
            return _plain_passes_s(replica, plan.pass_tokens, chunks, decodes)
        if not plan.pass_tokens:
            return _padded_s(replica, pad, chunks, decodes)
    pieces: list[Piece] = []
    for request, chunk, have in chunks:
        complete = have + chunk >= target[request]
        pieces.append((max(chunk, pad), have, complete))
    most = plan.pass_tokens or sum(piece[0] for piece in pieces) + decodes[0]
    layers = getattr(replica.model, "prefill_attention_layers", replica.layers)
    seconds = 0.0
    for number, batch in enumerate(_cut(pieces, most, decodes[0])):
        costs = [chunk_cost(layers, chunk, have) for chunk, have, _ in batch]
        seconds += replica.step_s(
            sum(piece[0] for piece in batch),
            len(batch),
            sum(pairs for pairs, _ in costs),
            sum(read for _, read in costs),
            sum(piece[2] for piece in batch),
            *(decodes if number == 0 else (0, 0)),
        )
    return seconds


def _padded_s(replica: GeneralState, pad: int, chunks: list[tuple[int, int, int]], decodes: tuple[int, int]) -> float:
    """`passes_s` of one pass where every layer attends to everything."""
    prefilling = replica.prefilling
    tokens = twice_pairs = read = done = 0
    for request, chunk, have in chunks:
        done += request not in prefilling
        if chunk < pad:
            chunk = pad
        tokens += chunk
        read += have
        twice_pairs += chunk * (2 * have + chunk + 1)
    return replica.step_s(tokens, len(chunks), twice_pairs // 2, read, done, *decodes)


def _cut(pieces: list[Piece], most: int, num_decode: int) -> list[list[Piece]]:
    """Fill passes of `most` tokens one after another; the decodes are the first tokens of the first."""
    passes: list[list[Piece]] = [[]]
    room = most - num_decode
    for chunk, have, complete in pieces:
        while chunk:
            if room <= 0:
                passes.append([])
                room = most
            part = min(chunk, room)
            passes[-1].append((part, have, complete and part == chunk))
            chunk, have, room = chunk - part, have + part, room - part
    return passes


def _plain_passes_s(
    replica: GeneralState, most: int, chunks: list[tuple[int, int, int]], decodes: tuple[int, int]
) -> float:
    """`passes_s` where every layer attends to everything, in one go through the chunks."""
    target, step_s = replica.requests.target, replica.step_s
    seconds, room = 0.0, most - decodes[0]
    tokens = count = twice_pairs = read = done = 0
    for request, chunk, context in chunks:
        have, left = context, chunk
        while left:
            if room <= 0:
                seconds += step_s(tokens, count, twice_pairs // 2, read, done, *decodes)
                tokens = count = twice_pairs = read = done = 0
                decodes, room = (0, 0), most
            part = left if left < room else room
            tokens += part
            count += 1
            read += have
            twice_pairs += part * (2 * have + part + 1)
            have += part
            left -= part
            room -= part
        done += have >= target[request]
    return seconds + step_s(tokens, count, twice_pairs // 2, read, done, *decodes)
