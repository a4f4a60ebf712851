"""A machine to offload on, for GPUs that nobody measured: FlexGen's fitted T4, scaled by datasheet ratios.

What a GPU does (matrix products, attention, memory, the way to the host) is scaled by the ratio of the datasheets; host
and disk stay those of the fitted machine. So a share of the datasheet that FlexGen's kernels reach on a T4 is taken to
be the share that they reach elsewhere: an assumption, and said so.
"""

from __future__ import annotations

import dataclasses

from plimsoll.catalog.accelerators import Accelerator, load_accelerator
from plimsoll.core.errors import InfeasibleError
from plimsoll.perf.offload.hardware import OffloadHardware, list_machines, load_machine

REFERENCE_MACHINE, REFERENCE_GPU = "t4-gcp", "T4"
USABLE = 0.8


def machine_for(gpu: Accelerator, machine: str = "") -> tuple[OffloadHardware, str]:
    """The rates to use, and a sentence for the user where they are scaled (else empty).

    Args:
        gpu: on which FlexGen runs.
        machine: a name of ``perf/offload/data``; empty chooses.

    Raises:
        UnknownNameError: no machine of that name.
        InfeasibleError: the GPU has no 16-bit arithmetic.
    """
    if machine:
        return load_machine(machine), ""
    reference = load_machine(REFERENCE_MACHINE, paper_disk=True)
    if gpu.id == REFERENCE_GPU:
        return reference, ""
    known = load_accelerator(REFERENCE_GPU)
    if "fp16" not in gpu.dense_flop_per_s:
        raise InfeasibleError(f"FlexGen computes in fp16, which {gpu.id} does not; use another GPU", "precision")
    flops = gpu.dense_flop_per_s["fp16"] / known.dense_flop_per_s["fp16"]
    memory = gpu.memory_bandwidth_bytes_per_s / known.memory_bandwidth_bytes_per_s
    link = gpu.pcie_bytes_per_s / known.pcie_bytes_per_s
    scaled = dataclasses.replace(
        reference,
        name=f"{gpu.id} in the host of {REFERENCE_MACHINE}",
        gpu_bytes=USABLE * gpu.memory_bytes,
        cpu_to_gpu_bytes_per_s=link * reference.cpu_to_gpu_bytes_per_s,
        gpu_to_cpu_cache_bytes_per_s=link * reference.gpu_to_cpu_cache_bytes_per_s,
        gpu_to_cpu_hidden_bytes_per_s=link * reference.gpu_to_cpu_hidden_bytes_per_s,
        matmul_prefill_flop_per_s=flops * reference.matmul_prefill_flop_per_s,
        matmul_decode_flop_per_s=memory * reference.matmul_decode_flop_per_s,
        attention_prefill_flop_per_s=flops * reference.attention_prefill_flop_per_s,
        attention_decode_flop_per_s=memory * reference.attention_decode_flop_per_s,
        gpu_memory_bytes_per_s=memory * reference.gpu_memory_bytes_per_s,
    )
    note = (
        f"nobody published FlexGen's rates on {gpu.id}: those of the T4 machine are scaled by the datasheets, host and "
        f"disk stay (measured machines: {', '.join(list_machines())})"
    )
    return scaled, note
