"""Messages between the devices of one machine: torch's collectives, over NCCL, or over Gloo between processes of a CPU.

The two differ in the name of the backend, in the device of the message, and in the clock.
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Sequence
from typing import Any

from plimsoll.core.errors import PlimsollError
from plimsoll.perf.profiles.own_format import Row
from plimsoll.profiler.clock import Call, clock_of
from plimsoll.profiler.samples import figures
from plimsoll.profiler.torch_backend import load_torch

MESSAGES = tuple(4**power * 2**10 for power in range(8))  # 1 KiB to 16 MiB
OPERATIONS = ("all_reduce", "all_gather")
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
SAMPLES, WARM_UPS, CALLS = 9, 3, 10
TIMEOUT_S = 120
ELEMENT_BYTES = 4
Samples = dict[tuple[str, int], list[float]]


def measure_collectives(ranks: int, device: str, messages: Sequence[int] = MESSAGES) -> list[Row]:
    """Rows of ``collectives.csv`` for `ranks` devices; none for a single one.

    Args:
        ranks: devices, or processes on a CPU.
        device: ``cpu`` or ``cuda``.
        messages: bytes that one rank holds.

    Raises:
        MissingExtraError: torch is not installed.
        PlimsollError: a process failed; its last line says why.
    """
    if ranks < 2:
        return []
    load_torch()
    from torch import multiprocessing

    queue = multiprocessing.get_context("spawn").SimpleQueue()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    arguments = (ranks, device, port, tuple(messages), queue)
    try:
        multiprocessing.start_processes(_rank, arguments, nprocs=ranks, start_method="spawn")
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise PlimsollError(f"collectives over {ranks} devices failed: {said}") from error
    samples: Samples = queue.get()
    return [
        {"operation": operation, "ranks": ranks, "message_bytes": size, **figures(seconds)}
        for (operation, size), seconds in samples.items()
    ]


def _rank(rank: int, ranks: int, device: str, port: int, messages: tuple[int, ...], queue: Any) -> None:
    """One process; the first one reports. All make the same calls in the same order, so that nobody waits for ever."""
    import torch
    from torch import distributed

    where = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(where)
    distributed.init_process_group(
        BACKENDS[device],
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
    )
    clock, found = clock_of(torch, device), Samples()
    for operation in OPERATIONS:
        for size in messages:
            call = _call(torch, operation, size, ranks, where)
            samples = [clock.together(call, CALLS) for _ in range(WARM_UPS + SAMPLES)]
            found[operation, size] = samples[WARM_UPS:]
    if rank == 0:
        queue.put(found)
    distributed.destroy_process_group()


def _call(torch: Any, operation: str, size: int, ranks: int, where: Any) -> Call:
    """One collective of `size` bytes on every rank."""
    elements = size // ELEMENT_BYTES
    message = torch.zeros(elements, device=where)
    if operation == "all_reduce":
        return lambda _: torch.distributed.all_reduce(message)
    gathered = torch.zeros(ranks * elements, device=where)
    # torch 2.13 renamed it
    gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
    return lambda _: gather(gathered, message)
