"""Operations and weights of one call of an operator, at a model's sizes: what plausibility is judged by."""

from __future__ import annotations

from collections.abc import Mapping

WEIGHT_BYTES = 2


def calls_of(shape: Mapping[str, int]) -> dict[str, int]:
    """How often a step calls each operator."""
    layers = shape["num_layers"]
    once = {"embedding": 1, "other": 1, "head": 1, "sampler": 1, "norm": 2 * layers + 1}
    each = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "activation", "rotary", "attention", "kv_write")
    return {**once, **dict.fromkeys(each, layers)}


def matrix_of(operator: str, shape: Mapping[str, int], tp: int = 1) -> tuple[int, int] | None:
    """``(k, n)`` of a matrix product ``[rows, k] · [k, n]`` on one of `tp` devices; None for other operators."""
    hidden, head = shape["hidden_size"], shape["head_dim"]
    heads, kv_heads = shape["num_heads"] // tp, max(1, shape["num_kv_heads"] // tp)
    inner = shape["intermediate_size"] // tp
    return {
        "qkv_proj": (hidden, (heads + 2 * kv_heads) * head),
        "o_proj": (heads * head, hidden),
        "gate_up_proj": (hidden, (shape["mlp_matrices"] - 1) * inner),
        "down_proj": (inner, hidden),
        "head": (hidden, shape["vocab_size"] // tp),
    }.get(operator)


def work_of(operator: str, shape: Mapping[str, int], tp: int = 1) -> tuple[int, int]:
    """``(operations per row, bytes of weights)`` of one call; zero for operators that are no matrix product."""
    matrix = matrix_of(operator, shape, tp)
    if matrix is None:
        return 0, 0
    size = matrix[0] * matrix[1]
    return 2 * size, WEIGHT_BYTES * size
