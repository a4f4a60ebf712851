"""A snapshot of vLLM's ``/metrics``: how many KV blocks the server really has.

The figure stands in the labels of ``vllm:cache_config_info``. The histograms beside it mix all that the server ever
answered, so nothing else of a snapshot is used.
"""

from __future__ import annotations

import re
from pathlib import Path

from plimsoll.calibration.measured import read_text
from plimsoll.core.errors import InputError

BLOCKS = re.compile(r'^vllm:cache_config_info\{[^}]*\bnum_gpu_blocks="(\d+)"', re.MULTILINE)


def is_snapshot(path: Path) -> bool:
    """Whether the file is Prometheus text of a vLLM server."""
    head = read_text(path, 65536)
    return head.lstrip().startswith("#") and "vllm:" in head


def read_num_blocks(path: Path) -> int:
    """``num_gpu_blocks``, the null block included.

    Raises:
        InputError: the snapshot does not name them.
    """
    found = {int(text) for text in BLOCKS.findall(read_text(path))}
    if len(found) != 1:
        remedy = "one vllm:cache_config_info line with num_gpu_blocks is needed; or give --kv-blocks"
        raise InputError(str(path), sorted(found) or "no num_gpu_blocks", remedy)
    return found.pop()
