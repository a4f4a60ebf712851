"""Rules that several policies of the general kernel share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plimsoll.core.errors import InputError

if TYPE_CHECKING:
    from plimsoll.engine.config import EngineConfig
    from plimsoll.engine.general.state import GeneralState

INFINITE = float("inf")
RESERVATIONS = ("max", "pow2", "oracle", "told")


def check_at_least(least: float, **options: Any) -> None:
    """Raise an InputError for the first option that is below `least`, or no finite number: shown as it was given."""
    for name, value in options.items():
        if not least <= value < INFINITE:
            raise InputError(name, value, f"give a number of at least {least:g}")


def longest_sequence(config: EngineConfig) -> int:
    """Tokens of the longest sequence that may and can be."""
    return min(config.max_model_len, config.num_blocks * config.block_size)


def watermark_blocks(config: EngineConfig, watermark: float) -> int:
    """Blocks that admission leaves free: ``int(watermark * num_gpu_blocks)``, as vLLM v0 counts them."""
    if not 0 <= watermark < 1:
        raise InputError("watermark", watermark, "give a share from 0 to below 1")
    return int(watermark * config.num_blocks)


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`; 1 for anything below 1."""
    return 1 << max(number - 1, 0).bit_length()


def latest_to_evict(view: GeneralState) -> list[int]:
    """Whom vLLM v0's block manager makes give way in a decode step, in the order of eviction.

    The decodes are served by arrival. Each wants one free block, whether it will take it or not (``can_append_slot``);
    while there is none, whoever came last gives way, at the end the one who asks.
    Source: vllm/core/scheduler.py and block_manager_v1.py of 0.2 to 0.8; sarathi-serve's copies of them.
    """
    size, free = view.block_size, view.free_blocks
    order = sorted(view.running)
    end = len(order)
    victims: list[int] = []
    at = 0
    while at < end:
        request = order[at]
        if request not in view.prefilling:
            while free < 1 and end > at:
                end -= 1
                free += view.held_blocks(order[end])
                victims.append(order[end])
            if end == at:
                break
            if not view.cached_tokens(request) % size:
                free -= 1
        at += 1
    return victims
