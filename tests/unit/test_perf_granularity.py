"""Blocks and granules by hand."""

from __future__ import annotations

import pytest

from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InputError
from plimsoll.core.units import MIB
from plimsoll.perf.granularity import CUDA_GRANULE_BYTES, KvGranularity, granularity


def test_blocks_round_tokens_up() -> None:
    cut = KvGranularity(block_tokens=16, tensors=(4.0, 4.0))
    assert (cut.used_bytes(17), cut.taken_bytes(17)) == (136.0, 256.0)
    assert cut.utilisation_frac(16) == 1.0


def test_granules_round_every_tensor_up() -> None:
    cut = KvGranularity(block_tokens=1, tensors=(4.0, 6.0), granule_bytes=100)
    assert cut.taken_bytes(10) == 200.0  # 40 and 60 bytes: a granule each
    assert cut.taken_bytes(17) == 300.0  # 68 and 102
    assert cut.utilisation_frac(10) == 0.5


def test_a_block_that_is_no_multiple_of_a_granule_wastes_both_ways() -> None:
    blocks = KvGranularity(block_tokens=10, tensors=(7.0,))
    both = KvGranularity(block_tokens=10, tensors=(7.0,), granule_bytes=50)
    assert (blocks.taken_bytes(11), both.taken_bytes(11)) == (140.0, 150.0)


def test_of_a_model_with_grouped_queries() -> None:
    """Llama-3.1-8B: 32 layers of 8 heads of 128, two bytes each: 2 KiB a token and tensor, 128 KiB in all."""
    cut = granularity(load_model("Llama-3.1-8B"), 16, CUDA_GRANULE_BYTES)
    assert cut.tensors == (2048.0,) * 64
    assert cut.used_bytes(1) == 128 * 1024
    assert cut.taken_bytes(1) == 64 * 2 * MIB
    assert cut.utilisation_frac(1024) == 1.0


def test_latent_attention_keeps_one_tensor() -> None:
    cut = granularity(load_model("DeepSeek-V3"), 64)
    assert cut.tensors == ((512 + 64) * 2.0,) * 61


@pytest.mark.parametrize(("block", "granule"), [(0, 0), (16, -1)])
def test_sizes_must_be_positive(block: int, granule: int) -> None:
    with pytest.raises(InputError, match="positive sizes"):
        KvGranularity(block_tokens=block, tensors=(1.0,), granule_bytes=granule)
