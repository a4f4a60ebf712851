"""Operations and weights of one call of an operator, at a model's sizes: what plausibility is judged by."""

from __future__ import annotations

from collections.abc import Mapping

from plimsoll.perf.profiles.own_shape import PLAIN_NORMS

WEIGHT_BYTES = 2
OF_SEQUENCES = ("head", "sampler")


def calls_of(shape: Mapping[str, int]) -> dict[str, int]:
    """How often a step calls each operator, attention of each kind and experts included; others are 0 or absent."""
    layers, moe, behind = shape["num_layers"], shape.get("num_moe_layers", 0), shape.get("num_window_layers", 0)
    latent, shared = "kv_lora_rank" in shape, shape.get("shared_size", 0) > 0
    each = ("o_proj", "rotary", "kv_write")
    return {
        "embedding": 1,
        "other": 1,
        "head": 1,
        "sampler": 1,
        "norm": shape.get("norms_per_layer", PLAIN_NORMS) * layers + 1,
        **dict.fromkeys(each, layers),
        "qk_norm": layers * (shape.get("qk_norm", 0) or latent),
        "qkv_proj": 0 if latent else layers,
        "q_proj": layers if latent and not shape["q_lora_rank"] else 0,
        **dict.fromkeys(("q_a_proj", "q_b_proj"), layers if latent and shape["q_lora_rank"] else 0),
        "kv_a_proj": layers if latent else 0,
        **dict.fromkeys(("gate_up_proj", "activation", "down_proj"), layers - moe),
        **dict.fromkeys(("router", "top_k", "experts"), moe),
        **dict.fromkeys(("shared_gate_up_proj", "shared_activation", "shared_down_proj"), moe if shared else 0),
        "attention": layers - behind,
        "attention_window": behind,
    }


def token_operators(shape: Mapping[str, int]) -> tuple[str, ...]:
    """The operators of a model that work on all tokens of a step, in the order of a layer."""
    calls = calls_of(shape)
    names = (
        "embedding", "norm", "qkv_proj", "q_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "qk_norm", "rotary",
        "kv_write", "o_proj", "gate_up_proj", "activation", "down_proj", "router", "top_k", "shared_gate_up_proj",
        "shared_activation", "shared_down_proj",
    )  # fmt: skip
    return tuple(name for name in names if calls[name])


def matrix_of(operator: str, shape: Mapping[str, int], tp: int = 1) -> tuple[int, int] | None:
    """``(k, n)`` of a matrix product ``[rows, k] · [k, n]`` on one of `tp` devices; None for other operators."""
    hidden, head = shape["hidden_size"], shape["head_dim"]
    heads, kv_heads = shape["num_heads"] // tp, max(1, shape["num_kv_heads"] // tp)
    ups = shape["mlp_matrices"] - 1
    inner, shared = shape["intermediate_size"] // tp, shape.get("shared_size", 0) // tp
    query, compressed = heads * head, shape.get("q_lora_rank", 0)
    latent = shape.get("kv_lora_rank", 0) + shape.get("qk_rope_head_dim", 0)
    return {
        "qkv_proj": (hidden, (heads + 2 * kv_heads) * head),
        "q_proj": (hidden, query),
        "q_a_proj": (hidden, compressed),
        "q_b_proj": (compressed, query),
        "kv_a_proj": (hidden, latent),
        "o_proj": (heads * shape.get("v_head_dim", head), hidden),
        "gate_up_proj": (hidden, ups * inner),
        "down_proj": (inner, hidden),
        "router": (hidden, shape.get("num_experts", 0) + shape.get("shared_gate", 0)),
        "shared_gate_up_proj": (hidden, ups * shared),
        "shared_down_proj": (shared, hidden),
        "head": (hidden, shape["vocab_size"] // tp),
    }.get(operator)


def work_of(operator: str, shape: Mapping[str, int], tp: int = 1) -> tuple[int, int]:
    """``(operations per row, bytes of weights)`` of one call; zero for operators that are no matrix product."""
    matrix = matrix_of(operator, shape, tp)
    if matrix is None:
        return 0, 0
    size = matrix[0] * matrix[1]
    return 2 * size, WEIGHT_BYTES * size


def expert_work_of(shape: Mapping[str, int], tp: int = 1) -> tuple[int, int]:
    """``(operations per token, bytes of one expert's weights)`` on one of `tp` devices, which cut every expert."""
    size = shape["mlp_matrices"] * shape["hidden_size"] * (shape["expert_size"] // tp)
    return 2 * size * shape["experts_per_token"], WEIGHT_BYTES * size
