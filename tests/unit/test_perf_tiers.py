"""Tiers below the GPU: what passes through it, and how much they hold."""

from __future__ import annotations

import pytest

from plimsoll.core.deployment import Parallelism
from tests.unit.test_perf_compositions import effect


def test_what_is_fetched_passes_through_the_gpu():
    """The layer in use is there, with overlap the next one too: a share of 1 leaves more than nothing."""
    assert effect("kv_offload").gpu_kv_share == pytest.approx(2 / 32)
    assert effect("kv_offload,overlap=off").gpu_kv_share == pytest.approx(1 / 32)
    staged = effect("kv_offload", model="meta-llama/Llama-3.1-70B", parallelism=Parallelism(tp=2, pp=4))
    assert staged.gpu_kv_share == pytest.approx(2 / 20)


@pytest.mark.parametrize(
    ("stack", "gpu", "gib", "source"),
    [
        ("kv_offload", "H100-SXM", 256, "usually rented"),
        ("infinigen", "A100-SXM-80GB", 144, "usually rented"),
        ("kv_offload", "RTX-4090", 128, "assumed"),
        ("kv_offload,tier=disk", "H100-SXM", 931, "8 TB of NVMe disks"),
        ("kv_offload,capacity_gib=7.5", "H100-SXM", 7.5, "as given"),
    ],
)
def test_a_tier_has_a_size(stack, gpu, gib, source):
    sized = effect(stack, gpu=gpu)
    assert sized.tier_bytes == gib * 2**30
    assert source in sized.tier_source
    stacked = effect(f"kv_quantisation,bits=8+{stack}+h2o,ratio=0.5", gpu=gpu) if "kv_offload" in stack else sized
    assert stacked.tier_bytes == sized.tier_bytes
