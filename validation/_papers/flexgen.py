"""FlexGen's throughput on one T4 (arXiv 2303.06865, table 2; the repository's README and ``bench_suite.py``).

The placements and block sizes are those of the authors' benchmark suite, and so is how a decode is timed: the suite
runs everything but the all-GPU cases with ``--debug fewer_batch``, which times twenty layers of the first decode and
takes all decodes to cost as much (``generation_loop_debug_multi_batch`` in flexgen/flex_opt.py), whatever their length.
Rows with a disk come twice: with the disk rate of the released cost model, and with the rate the paper states.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from plimsoll.catalog.models import load_model
from plimsoll.perf.offload.flexgen import BlockWork, Placement, block_model, evaluate
from plimsoll.perf.offload.hardware import load_machine
from plimsoll.perf.offload.layer import layer_shape
from validation._papers._row import as_text, row

SOURCE = "https://arxiv.org/abs/2303.06865; https://github.com/FMInference/FlexLLMGen (README, benchmark/flexgen)"
OUTPUT_TOKENS = 32
FIRST_DECODE = 2
"""Output tokens of which a decode is timed: one from the prefill, and one of the decode."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: placement as in ``--percent``, blocks as in ``--gpu-batch-size`` and ``--num-gpu-batches``."""

    model: str
    prompt_tokens: int
    percent: tuple[float, float, float, float, float, float]
    gpu_batch: int
    num_gpu_batches: int
    paper: float
    compress: str = ""  # "", "cache" or "both"
    unchecked: bool = False  # the published figure was not found again in a source

    @property
    def bound(self) -> float:
        """Accepted relative error; none where the paper's figure could not be checked."""
        if self.unchecked:
            return float("inf")
        return 0.25 if self.model == "175b" else 0.15

    @property
    def on_disk(self) -> bool:
        """Whether anything lies on the disk."""
        return any(self.percent[k] + self.percent[k + 1] < 100 for k in (0, 2, 4))


ADDED_LOADS = (
    "the released form adds the load of the weights to a decode, the row above hides it behind the CPU's attention: "
    "adding fits 512 and 1024, hiding fits this run; a timeline of its copies would tell which it did"
)
GPU_ONLY = (100.0, 0.0, 100.0, 0.0, 100.0, 0.0)
CPU_ONLY = (0.0, 100.0, 0.0, 100.0, 0.0, 100.0)
DISK = (0.0, 50.0, 0.0, 0.0, 0.0, 100.0)
CASES = (
    Case("6.7b", 256, GPU_ONLY, 4, 1, 53.29),
    Case("6.7b", 512, GPU_ONLY, 2, 1, 25.26),
    Case("6.7b", 1024, GPU_ONLY, 1, 1, 13.72),
    Case("6.7b", 256, GPU_ONLY, 128, 1, 56.72, compress="both"),
    Case("6.7b", 512, GPU_ONLY, 72, 1, 29.12, compress="both"),
    Case("6.7b", 1024, GPU_ONLY, 28, 1, 13.18, compress="both", unchecked=True),
    Case("30b", 256, (10, 90, 0, 100, 0, 100), 160, 2, 16.01),
    Case("30b", 512, (20, 80, 0, 100, 0, 100), 48, 3, 7.32),
    Case("30b", 1024, (4, 96, 0, 100, 0, 100), 20, 4, 3.50),
    Case("30b", 256, CPU_ONLY, 128, 8, 16.86, compress="cache"),
    Case("30b", 512, CPU_ONLY, 64, 8, 8.38, compress="cache"),
    Case("30b", 1024, CPU_ONLY, 20, 12, 3.98, compress="cache", unchecked=True),
    Case("175b", 256, DISK, 64, 8, 1.36),
    Case("175b", 512, DISK, 32, 8, 0.69),
    Case("175b", 1024, DISK, 12, 12, 0.35),
    Case("175b", 256, CPU_ONLY, 96, 3, 2.26, compress="both"),
    Case("175b", 512, CPU_ONLY, 48, 3, 1.12, compress="both"),
    Case("175b", 1024, CPU_ONLY, 12, 4, 0.42, compress="both", unchecked=True),
)  # fmt: skip


def throughput(case: Case, *, paper_disk: bool, combine: str = "shipped") -> float:
    """Output tokens per second of the equations."""
    work = BlockWork(
        timed_tokens=None if case.percent == GPU_ONLY else FIRST_DECODE,
        prompt_tokens=case.prompt_tokens,
        output_tokens=OUTPUT_TOKENS,
        gpu_batch=case.gpu_batch,
        num_gpu_batches=case.num_gpu_batches,
        compress_weights=case.compress == "both",
        compress_cache=bool(case.compress),
        cpu_attention=not case.compress and case.percent != GPU_ONLY,
        combine=combine,
        overlap=case.percent != GPU_ONLY,  # the authors' suite runs the all-GPU cases with --overlap False
    )
    shape = layer_shape(load_model(f"facebook/opt-{case.model}"))
    block = block_model(shape, load_machine(paper_disk=paper_disk), work)
    return evaluate(block, Placement.percent(*case.percent)).throughput_tokens_per_s


def rows() -> list[dict[str, Any]]:
    """Paper, ours and error of every case."""
    table = []
    for case in CASES:
        name = f"OPT-{case.model} {case.prompt_tokens}+{OUTPUT_TOKENS} {case.gpu_batch}x{case.num_gpu_batches}"
        name += f" 4-bit {case.compress}" if case.compress else ""
        notes = []
        if case.percent == GPU_ONLY:
            notes.append("decode reads weights from GPU memory at 220 GB/s")
        if case.compress:
            notes.append("4-bit tensors unpacked at 15 bytes per element")
        if case.unchecked:
            notes.append("the published figure is quoted from memory and not judged")
        if case.on_disk:
            shipped = throughput(case, paper_disk=False)
            why = "disk rate of the released cost model (0.473 GiB/s), which does not fit these runs"
            table.append(
                row(f"{name} shipped disk", case.paper, shipped, float("inf"), unit="tokens/s", assumption=why)
            )
            notes.append("the paper's SSD: 2 GB/s read, 1 GB/s write")
        if case.percent != GPU_ONLY and not case.compress:
            overlapped = throughput(case, paper_disk=True, combine="paper")
            why = "the text's max of all five; the released model adds loads to the rest of a decode"
            table.append(
                row(f"{name} full overlap", case.paper, overlapped, float("inf"), unit="tokens/s", assumption=why)
            )
        if case.percent != GPU_ONLY:
            notes.append("timed on the first decode, as in the suite")
        if case.model == "30b" and case.prompt_tokens == 256 and not case.compress:
            notes.append(ADDED_LOADS)
        ours = throughput(case, paper_disk=True)
        table.append(row(name, case.paper, ours, case.bound, unit="tokens/s", assumption="; ".join(notes)))
    return table


if __name__ == "__main__":
    print(as_text(rows()))
