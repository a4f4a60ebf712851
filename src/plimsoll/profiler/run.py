"""A whole profile: from a model, a device and limits to a folder."""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll._version import __version__
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.core.errors import InputError
from plimsoll.perf.profiles.own_format import COLLECTIVES, FORMAT, POWER
from plimsoll.perf.profiles.own_shape import plain_shape_of, shape_of
from plimsoll.profiler.clock import power_rows
from plimsoll.profiler.collectives import measure_collectives
from plimsoll.profiler.device import Device, cpu_device, cuda_device, device_toml, identity, memory_bytes
from plimsoll.profiler.grid import Rules
from plimsoll.profiler.samples import Effort
from plimsoll.profiler.serving import add_host_time, bench, calibration_runs
from plimsoll.profiler.shapes import Limits
from plimsoll.profiler.store import Store
from plimsoll.profiler.survey import Backend, Progress, Survey
from plimsoll.profiler.torch_backend import TorchBackend
from plimsoll.profiler.vllm_backend import EngineBackend, Worker
from plimsoll.profiler.vllm_server import ServerPlan

DEVICE_FILE = "device.toml"
ENGINE_EFFORT = Effort(warm_ups=1, min_samples=3, max_samples=15, budget_s=0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to profile.

    Attributes:
        model: catalogue entry.
        folder: of the profile.
        limits: how far the grid reaches.
        precision: ``bf16`` or ``fp16``.
        tp: devices that share a layer.
        rules: how fine the grid gets.
        progress: called before every measurement.
    """

    model: ModelSpec
    folder: Path
    limits: Limits
    precision: str = "bf16"
    tp: int = 1
    rules: Rules = dataclasses.field(default_factory=Rules)
    progress: Progress | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profiled:
    """What came of it.

    Attributes:
        folder: of the profile.
        header: ``profile.toml``.
        num_measured: measurements of this run.
        num_kept: rows that were there before.
    """

    folder: Path
    header: Mapping[str, Any]
    num_measured: int
    num_kept: int


def profile_torch(job: Job, device: str, threads: int) -> Profiled:
    """Operators as torch executes them on this machine.

    Raises:
        MissingExtraError: torch is not installed.
        InputError: no such device; a model or a folder that cannot be used.
    """
    shape = shape_of(job.model)
    backend = TorchBackend(shape, device=device, dtype=job.precision, tp=job.tp)
    torch = backend.torch
    torch.set_num_threads(threads)
    found = cuda_device(torch.cuda.get_device_name()) if device == "cuda" else cpu_device(threads)
    run = {"backend": "torch", "threads": threads, "torch": str(torch.__version__), "python": platform.python_version()}
    run.update({f"{name}_kernel": kernel for name, kernel in backend.kernels.items()})
    store = _store(job, shape, found, run)
    devices = torch.cuda.device_count() if device == "cuda" else 1
    for ranks in sorted({job.tp, devices}):
        if ranks > 1 and not store.find(COLLECTIVES, ranks=ranks):
            store.add(COLLECTIVES, measure_collectives(ranks, device))
    if device == "cuda" and not store.find(POWER):
        store.add(POWER, power_rows(torch, lambda: backend.work(job.limits.max_tokens)))
    try:
        return _survey(job, store, backend)
    except RuntimeError as error:  # torch's OutOfMemoryError on CUDA is one; on a CPU it has no class of its own
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        limits = job.limits
        raise InputError(
            "--max-num-seqs, --max-num-batched-tokens, --max-model-len",
            f"{limits.max_seqs}, {limits.max_tokens}, {limits.max_length}",
            f"{found.name} has too little memory for this grid; lower them (what was measured is kept)",
        ) from error


def profile_engine(job: Job, url: str, plan: ServerPlan) -> Profiled:
    """Operators and host time of a running vLLM server on this machine's CPU.

    Args:
        job: what to profile; its limits are the server's.
        url: of the server, which has the probe (`vllm_server`).
        plan: how it was started, for its benchmark client.

    Raises:
        InputError: nobody answers, the server computes on something else than a CPU, or the folder cannot be used.
    """
    shape = plain_shape_of(job.model, "the vllm backend times")
    worker = Worker(url)
    facts = worker.facts()
    if facts["device"] != "cpu":
        raise InputError("--server", url, f"it computes on {facts['device']}; only CPU workers are timed by now")
    if job.tp > 1:
        raise InputError("--tp", job.tp, "inside an engine one worker is timed; use --backend torch")
    run = {"backend": "vllm", **{name: facts[name] for name in ("threads", "torch", "vllm", "python")}}
    store = _store(job, shape, cpu_device(int(facts["threads"])), run)
    store.header["engine"] = {"block_size": facts["block_size"], "num_blocks": facts["num_blocks"]}
    # The sequence that is sampled at the longest length would grow beyond it.
    limits = dataclasses.replace(job.limits, max_length=job.limits.max_length - 1)
    backend = EngineBackend(worker, shape, limits.max_seqs, ENGINE_EFFORT)
    profiled = _survey(dataclasses.replace(job, limits=limits), store, backend)
    results = job.folder / "server"
    bench(url, plan, calibration_runs(job.limits), results)
    add_host_time(store, results, job.limits)
    return dataclasses.replace(profiled, header=store.header)


def _store(job: Job, shape: Mapping[str, int], device: Device, run: Mapping[str, Any]) -> Store:
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    header = {
        "format": FORMAT,
        "plimsoll": __version__,
        "model": {"id": job.model.id, **shape},
        "device": identity(device),
        "run": {**run, "dtype": job.precision, "tp": job.tp, "date": today},
        "grid": dataclasses.asdict(job.limits),
    }
    store = Store(job.folder, header)
    if not device.catalogued and device.kind == "cpu":
        (job.folder / DEVICE_FILE).write_text(device_toml(device, memory_bytes()), encoding="utf-8")
    return store


def _survey(job: Job, store: Store, backend: Backend) -> Profiled:
    survey = Survey(store, backend, job.limits, rules=job.rules, progress=job.progress)
    survey.run()
    return Profiled(folder=job.folder, header=store.header, num_measured=survey.num_measured, num_kept=store.num_kept)
