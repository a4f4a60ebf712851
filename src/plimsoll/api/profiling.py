"""`profile`: measure the operators of this machine, for ``--step-model profile:DIR``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plimsoll._version import __version__
from plimsoll.api.checks import required
from plimsoll.api.scenario import build
from plimsoll.catalog.counting import native_precision
from plimsoll.catalog.models import load_model
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.units import GIB
from plimsoll.perf.profiles.own_shape import plain_shape_of
from plimsoll.profiler.device import usable_cores
from plimsoll.profiler.run import DEVICE_FILE, Job, Profiled, profile_engine, profile_torch
from plimsoll.profiler.shapes import Limits
from plimsoll.profiler.vllm_server import ServerPlan, running, split_cores

BACKENDS = ("torch", "vllm")
DEVICES = ("cpu", "cuda")
DEFAULT_PYTHON = ".venv-vllm/bin/python"
PRECISION_BYTES = 2
Progress = Callable[[int, int | None, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileScenario:
    """Fields of ``plimsoll profile``.

    Attributes:
        model: as everywhere; for the vllm backend a folder with config.json and tokenizer.
        device: ``cpu`` or ``cuda``.
        backend: ``torch`` (operators alone) or ``vllm`` (operators and host time of a real vLLM on this CPU).
        tp: devices that share a layer.
        precision: ``bf16`` or ``fp16``; None is the checkpoint's own.
        max_num_seqs, max_num_batched_tokens, max_model_len: how far the grid reaches: the engine's limits.
        threads: cores that compute; None takes all, and leaves one to everything else with the vllm backend.
        vllm_python: interpreter of the environment that vLLM is installed in.
        server: URL of a running server with the probe; None starts one.
        folder: where the profile is kept; None is ``profile-MODEL``.
    """

    model: str | None = None
    device: str = "cpu"
    backend: str = "torch"
    tp: int = 1
    precision: str | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 2048
    max_model_len: int = 4096
    threads: int | None = None
    vllm_python: str = DEFAULT_PYTHON
    server: str | None = None
    folder: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """What was measured.

    Attributes:
        scenario: what was asked.
        profiled: the folder, its header, and how much of it is new.
    """

    scenario: ProfileScenario
    profiled: Profiled

    def to_json_dict(self) -> dict[str, Any]:
        """The document that ``plimsoll profile --json`` prints."""
        found = self.profiled
        device_file = found.folder / DEVICE_FILE
        return {
            "folder": str(found.folder),
            "gpu": str(device_file) if device_file.is_file() else found.header["device"]["id"],
            "num_measured": found.num_measured,
            "num_kept": found.num_kept,
            **{name: section for name, section in found.header.items() if isinstance(section, dict)},
            "version": __version__,
        }


def profile(
    scenario: ProfileScenario | None = None, *, progress: Progress | None = None, **fields: Any
) -> ProfileResult:
    """Measure the operators of this machine at a model's sizes.

    Args:
        scenario: what is asked; or give its fields as keywords.
        progress: called before every measurement with how many were made, None, and what comes.
        **fields: of `ProfileScenario`.

    Raises:
        InputError, UnknownNameError: a field that cannot be used.
        MissingExtraError: torch is not installed.
        InfeasibleError: the tensor-parallel degree does not divide the model.
    """
    asked = scenario if scenario is not None else build(ProfileScenario, fields)
    job = job_of(asked, progress)
    if asked.backend == "vllm":
        if asked.device != "cpu":
            raise InputError("--device", asked.device, "the vllm backend times CPU workers by now; use --backend torch")
        return ProfileResult(scenario=asked, profiled=_in_engine(asked, job))
    threads = asked.threads or len(usable_cores())
    return ProfileResult(scenario=asked, profiled=profile_torch(job, asked.device, threads))


def job_of(asked: ProfileScenario, progress: Progress | None = None) -> Job:
    """What `asked` means: a catalogue entry, a folder and limits; raises as `profile`."""
    required(asked, "model")
    assert asked.model is not None
    for field, known in (("backend", BACKENDS), ("device", DEVICES)):
        if getattr(asked, field) not in known:
            raise UnknownNameError(f"--{field}", getattr(asked, field), known)
    for field in ("tp", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "threads"):
        value = getattr(asked, field)
        if value is not None and value < 1:
            raise InputError("--" + field.replace("_", "-"), value, "give a whole number of at least 1")
    if asked.max_model_len < 256 or asked.max_num_batched_tokens < 32 or asked.max_num_seqs < 4:
        raise InputError(
            "--max-num-seqs, --max-num-batched-tokens, --max-model-len",
            f"{asked.max_num_seqs}, {asked.max_num_batched_tokens}, {asked.max_model_len}",
            "a grid needs at least 4 sequences, 32 tokens in a step and sequences of 256 tokens",
        )
    model = load_model(asked.model)
    precision = asked.precision or native_precision(model)
    folder = Path(asked.folder or f"profile-{Path(model.id).name}")
    limits = Limits(
        max_tokens=asked.max_num_batched_tokens,
        max_seqs=asked.max_num_seqs,
        max_length=min(asked.max_model_len, model.max_position),
    )
    return Job(model=model, folder=folder, limits=limits, precision=precision, tp=asked.tp, progress=progress)


def _in_engine(asked: ProfileScenario, job: Job) -> Profiled:
    with serving(asked, job) as (url, plan):
        return profile_engine(job, url, plan)


@contextlib.contextmanager
def serving(asked: ProfileScenario, job: Job) -> Iterator[tuple[str, ServerPlan]]:
    """The server that is asked for, or one that lives as long as this block; and how it is, or would be, started.

    Raises:
        InputError: the model is no folder with a tokenizer; vLLM is not there or does not start.
    """
    plan = server_plan(asked, job)
    if asked.server is not None:
        yield asked.server, plan
        return
    if job.progress is not None:
        job.progress(0, None, "starting vLLM")
    with running(plan) as url:
        yield url, plan


def server_plan(asked: ProfileScenario, job: Job) -> ServerPlan:
    """How a server for `job` is started; raises as `serving`."""
    assert asked.model is not None
    given = Path(asked.model)
    model = given.parent if given.is_file() else given
    if not (model / "config.json").is_file() or not any(model.glob("tokenizer*")):
        raise InputError("--model", asked.model, "the vllm backend needs a folder with config.json and tokenizer")
    worker_cores, other_cores = split_cores(usable_cores())
    shape = plain_shape_of(job.model, "the vllm backend times")
    token_bytes = 2 * PRECISION_BYTES * shape["num_layers"] * shape["num_kv_heads"] * shape["head_dim"]
    cache_bytes = job.limits.max_seqs * (job.limits.max_length + 128) * token_bytes
    return ServerPlan(
        python=Path(asked.vllm_python),
        model=model,
        limits=job.limits,
        kv_gib=int(cache_bytes // GIB) + 1,
        worker_cores=worker_cores[: asked.threads],
        other_cores=other_cores,
        log=job.folder / "vllm.log",
    )
