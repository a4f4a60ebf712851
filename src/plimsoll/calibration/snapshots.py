"""A snapshot of vLLM's ``/metrics``: how many KV blocks the server really has, and how many tokens each holds.

Both stand in the labels of ``vllm:cache_config_info``. The histograms beside them mix all that the server ever
answered, so nothing else of a snapshot is used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plimsoll.calibration.measured import read_json, read_text
from plimsoll.core.errors import InputError

INFO = "vllm:cache_config_info"
LINE = re.compile(rf"^{INFO}\{{([^}}]*)\}}", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvCache:
    """What a server says of its KV cache.

    Attributes:
        num_blocks: ``num_gpu_blocks``, the null block included.
        block_tokens: tokens in a block; None where it does not say.
    """

    num_blocks: int
    block_tokens: int | None


def is_snapshot(path: Path) -> bool:
    """Whether the file is Prometheus text of a vLLM server."""
    head = read_text(path, 65536)
    return head.lstrip().startswith("#") and "vllm:" in head


def read_kv_cache(path: Path) -> KvCache:
    """What the snapshot says; all engines of a data-parallel server have the same.

    Raises:
        InputError: the snapshot does not say it.
    """
    caches = _caches(dict(LABEL.findall(labels)) for labels in LINE.findall(read_text(path)))
    if len(caches) != 1:
        found = sorted(cache.num_blocks for cache in caches) or "no num_gpu_blocks"
        raise InputError(f"{path} {INFO}", found, "one such line with num_gpu_blocks is needed; or give --kv-blocks")
    return caches.pop()


def kv_cache_in_aiperf(path: Path) -> KvCache | None:
    """The same from AIPerf's ``server_metrics_export.json``; None where there is no such file or it does not say."""
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        caches = _caches(series["labels"] for series in document["metrics"][INFO]["series"])
    except (KeyError, TypeError, AttributeError):
        return None  # not vLLM's metrics, or of another version: the memory model's blocks serve
    return caches.pop() if len(caches) == 1 else None


def _caches(lines: Iterable[Mapping[str, Any]]) -> set[KvCache]:
    caches = set()
    for labels in lines:
        num_blocks, tokens = str(labels.get("num_gpu_blocks")), str(labels.get("block_size"))
        if num_blocks.isdigit() and int(num_blocks) > 0:
            caches.add(KvCache(num_blocks=int(num_blocks), block_tokens=int(tokens) if tokens.isdigit() else None))
    return caches
