"""Messages between the devices of one machine: torch's collectives, over NCCL between GPUs (Gloo in tests)."""

from __future__ import annotations

import socket
import time
from typing import Any

from plimsoll.core.errors import PlimsollError
from plimsoll.perf.profiles.own_format import Row
from plimsoll.profiler.samples import figures
from plimsoll.profiler.torch_backend import load_torch

MESSAGES = tuple(4**power * 2**10 for power in range(8))  # 1 KiB to 16 MiB
OPERATIONS = ("all_reduce", "all_gather")
SAMPLES, WARM_UPS, CALLS = 9, 3, 10


def measure_collectives(ranks: int, device: str) -> list[Row]:
    """Rows of ``collectives.csv`` for `ranks` devices; none for a single one. A message is what one rank holds."""
    if ranks < 2:
        return []
    load_torch()
    from torch import multiprocessing

    queue = multiprocessing.get_context("spawn").SimpleQueue()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    try:
        multiprocessing.start_processes(_rank, (ranks, device, port, queue), nprocs=ranks, start_method="spawn")
    except Exception as error:
        raise PlimsollError(f"collectives over {ranks} devices failed: {error}") from error
    samples: dict[tuple[str, int], list[float]] = queue.get()
    return [
        {"operation": operation, "ranks": ranks, "message_bytes": size, **figures(seconds)}
        for (operation, size), seconds in samples.items()
    ]


def _rank(rank: int, ranks: int, device: str, port: int, queue: Any) -> None:
    """One process; the first one reports."""
    import torch
    from torch import distributed

    if device == "cuda":
        torch.cuda.set_device(rank)
    backend, where = ("nccl", f"cuda:{rank}") if device == "cuda" else ("gloo", "cpu")
    distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    found = {}
    for operation in OPERATIONS:
        for size in MESSAGES:
            message = torch.zeros(size // 4, device=where)
            gathered = [torch.zeros_like(message) for _ in range(ranks)]
            samples = []
            for _ in range(WARM_UPS + SAMPLES):
                distributed.barrier()
                began_s = time.perf_counter()
                for _ in range(CALLS):
                    if operation == "all_reduce":
                        distributed.all_reduce(message)
                    else:
                        distributed.all_gather(gathered, message)
                if device == "cuda":
                    torch.cuda.synchronize()
                samples.append((time.perf_counter() - began_s) / CALLS)
            found[operation, size] = samples[WARM_UPS:]
    if rank == 0:
        queue.put(found)
    distributed.destroy_process_group()
