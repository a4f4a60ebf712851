"""What attention over the cache and recurrent layers do on one GPU, in read tokens as the engine folds them."""

from __future__ import annotations

from plimsoll.catalog import counting
from plimsoll.catalog.architecture import Attention, LatentAttention, ModelSpec, StateSpace
from plimsoll.perf.cut import Cut, divide, kv_heads_per_gpu
from plimsoll.perf.operators import ACTIVATION_BYTES, AttentionWork, StateWork


def attention_work(model: ModelSpec, cut: Cut) -> AttentionWork | None:
    """Attention of one GPU, or None where no layer has a cache."""
    layers = counting.attention_layers(model)
    total_weight = sum(weight for weight, _ in layers)
    if not total_weight:
        return None
    tp, dp = cut.parallelism.tp, cut.parallelism.dp
    num_layers = read = decode = pair = token = context = 0.0
    main: Attention | LatentAttention | None = None
    most = 0
    for group in model.groups:
        mixer, count = group.mixer, group.count
        if not isinstance(mixer, Attention | LatentAttention):
            continue
        if count > most:
            most, main = count, mixer
        num_layers += count
        heads = divide("query heads", mixer.num_heads, tp)
        if isinstance(mixer, Attention):
            kv_heads, both = kv_heads_per_gpu(mixer, tp), mixer.head_dim + mixer.v_head_dim
            read += count * kv_heads * both * cut.kv_bytes
            decode += count * 2.0 * heads * both
            pair += count * 2.0 * heads * both
            token += count * ACTIVATION_BYTES * (heads + kv_heads) * both
        else:
            latent, key = mixer.kv_lora_rank, mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
            read += count * ((latent + mixer.qk_rope_head_dim) * cut.kv_bytes + counting.index_key_bytes(mixer))
            index_flop = 2.0 * mixer.index_heads * mixer.index_head_dim
            decode += count * (2.0 * heads * (2 * latent + mixer.qk_rope_head_dim) + index_flop)
            pair += count * (2.0 * heads * (key + mixer.v_head_dim) + index_flop)
            token += count * ACTIVATION_BYTES * 2.0 * heads * (key + mixer.v_head_dim)
            context += count * 2.0 * latent * heads * (mixer.qk_nope_head_dim + mixer.v_head_dim)
    assert main is not None
    per_read = cut.stage_share / total_weight / dp
    is_latent = isinstance(main, LatentAttention)
    return AttentionWork(
        num_layers=num_layers * cut.stage_share,
        read_bytes=read * per_read,
        decode_flop=decode * per_read,
        pair_flop=pair * per_read,
        token_bytes=token * cut.stage_share / dp,
        context_flop=context * per_read,
        num_heads=main.num_heads // tp,
        num_kv_heads=1 if isinstance(main, LatentAttention) else kv_heads_per_gpu(main, tp),
        head_dim=main.kv_lora_rank if isinstance(main, LatentAttention) else main.head_dim,
        latent=is_latent,
    )


def state_work(model: ModelSpec, cut: Cut) -> StateWork | None:
    """Recurrent layers of one GPU, or None where there are none."""
    groups = [(group.count, group.mixer) for group in model.groups if isinstance(group.mixer, StateSpace)]
    if not groups:
        return None
    share = cut.stage_share / cut.parallelism.tp / cut.parallelism.dp
    state = sum(count * mixer.state_elements for count, mixer in groups)
    # Read and written once a step. The chunked scan of a prompt is about six multiply-adds per state element a token.
    return StateWork(
        num_layers=sum(count for count, _ in groups) * cut.stage_share,
        sequence_bytes=2.0 * counting.state_bytes_per_sequence(model) * share,
        token_flop=6.0 * state * share,
        token_bytes=2.0 * ACTIVATION_BYTES * sum(count * mixer.conv_elements for count, mixer in groups) * share,
    )
