"""Cache bytes and attention work of a deployment, as the compositions need them: per GPU and per read token."""

from __future__ import annotations

from fractions import Fraction

from plimsoll.catalog.architecture import Attention
from plimsoll.core.errors import InputError
from plimsoll.perf.memory import KV_ELEMENT_BYTES
from plimsoll.perf.operator_list import list_operators
from plimsoll.perf.operators import AttentionWork
from plimsoll.perf.request import StepModelRequest


def attention_of(name: str, request: StepModelRequest) -> AttentionWork:
    """The attention work of the model on one GPU.

    Raises:
        InputError: a model without a cache.
    """
    ops = list_operators(request.model, request.parallelism, request.precision, request.kv_precision)
    if ops.attention is None:
        raise InputError("model", request.model.id, f"{name} changes attention, and this model has none")
    return ops.attention


def plain_attention_of(name: str, request: StepModelRequest) -> AttentionWork:
    """The same, for compositions that treat every head apart.

    Raises:
        InputError: a model whose heads share a latent (MLA), or without attention.
    """
    if not any(isinstance(group.mixer, Attention) for group in request.model.groups):
        raise InputError("model", request.model.id, f"{name} needs attention with keys and values by head")
    return attention_of(name, request)


def kv_bits(request: StepModelRequest) -> float:
    """Bits of a cached element."""
    return 8 * KV_ELEMENT_BYTES[request.kv_precision]


def share(name: str, value: float, *, zero: bool = False) -> Fraction:
    """A share above 0 (or from 0) up to 1 as a fraction that read tokens can be counted in, in steps of a thousandth.

    Raises:
        InputError: outside of that, or above 0 and yet nothing.
    """
    if not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise InputError(name, value, f"write a share {'from' if zero else 'above'} 0 up to 1")
    counted = Fraction(value).limit_denominator(1000)
    if value and not counted:
        raise InputError(name, value, "write a share from 0.001 on")
    return counted
