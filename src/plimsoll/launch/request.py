"""What a launch target needs to know of a deployment."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Sequence

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.counting import native_precision
from plimsoll.catalog.engines import EngineFacts, default_settings, load_engine
from plimsoll.core.deployment import Deployment, EngineSettings
from plimsoll.core.errors import UnknownNameError

HEADER = "# Plimsoll:"
SIXTEEN_BIT = ("fp16", "bf16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """A deployment, the model it serves and the machines it runs on.

    Attributes:
        deployment: with the settings that were planned for; what is None in them is left to the engine.
        model: tells whether the checkpoint is quantised already; None assumes plain 16-bit weights.
        gpu: the accelerator: machine size, vendor, and what the target calls a precision there; None assumes NVIDIA
            GPUs in machines of eight.
        port: of the server.
    """

    deployment: Deployment
    model: ModelSpec | None = None
    gpu: Accelerator | None = None
    port: int = 8000

    @property
    def num_nodes(self) -> int:
        """Machines of one replica."""
        return -(-self.deployment.parallelism.num_gpus // (self.gpu.gpus_per_node if self.gpu else 8))

    @property
    def gpu_vendor(self) -> str:
        """Of the accelerator."""
        return self.gpu.vendor if self.gpu else "nvidia"

    @property
    def is_native_precision(self) -> bool:
        """Whether the checkpoint is stored in the deployment's precision, so that no flag is needed."""
        precision = self.deployment.precision
        if self.model is None or self.model.quantisation is None:
            return precision in SIXTEEN_BIT
        return native_precision(self.model) == precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetView:
    """The deployment as one framework takes it.

    Attributes:
        settings: those of the deployment; where it was planned for another framework, memory share and block size are
            the target's own defaults on this GPU, because they mean different things to each.
        kv_flag: the framework's word for the cache precision, where it is not the usual one; empty otherwise.
        checkpoint: what the checkpoint must be; empty where a plain one will do.
        model_note: what is to be known of the model there, as a rule nothing.
        comments: lines for the user.
    """

    settings: EngineSettings
    kv_flag: str
    checkpoint: str
    model_note: str
    comments: tuple[str, ...]

    @property
    def block_size(self) -> int:
        """Tokens of a KV block; `settings` always have it."""
        assert self.settings.block_size is not None
        return self.settings.block_size


def view(request: LaunchRequest, framework: str) -> TargetView:
    """The deployment as `framework` takes it. `framework` is an engine id or alias of the catalogue."""
    deployment, gpu = request.deployment, request.gpu
    target = load_engine(framework)
    try:
        planned: EngineFacts | None = load_engine(deployment.engine)
    except UnknownNameError:
        planned = None  # a scheduling policy without an engine of its own: its settings are taken as they are
    settings, comments = deployment.settings, list[str]()
    if planned is None:
        comments.append(f"# This server does not schedule as {deployment.engine} does: what was planned may not hold.")
        planned = target
    if planned.framework != target.framework:
        cleared = dataclasses.replace(
            settings, gpu_memory_utilization=None, block_size=target.block_size, num_kv_blocks=None
        )
        if gpu is not None:
            resolved = default_settings(target, gpu, cleared, None, deployment.parallelism).settings
            cleared = dataclasses.replace(cleared, gpu_memory_utilization=resolved.gpu_memory_utilization)
        settings = cleared
        comments.append(f"# Planned for {planned.name}: memory share and block size are {target.name}'s own defaults.")
    elif settings.block_size is None:
        settings = dataclasses.replace(settings, block_size=target.block_size)
    kv_flag = checkpoint = ""
    if gpu is not None:
        kv_flag = next(
            (row.launch for row in target.kv_precisions if row.precision == deployment.kv_precision and row.fits(gpu)),
            "",
        )
        needs = (row.needs for row in target.precisions if row.precision == deployment.precision and row.fits(gpu))
        checkpoint = "" if request.is_native_precision else next(needs, "")
    if checkpoint:
        comments.append(f"# {deployment.precision}: the model must be {checkpoint}.")
    known = None if request.model is None else target.model_notes.get(request.model.architecture)
    model_note = "" if known is None else known.note
    if model_note:
        comments.append(f"# {model_note}.")
    return TargetView(
        settings=settings, kv_flag=kv_flag, checkpoint=checkpoint, model_note=model_note, comments=tuple(comments)
    )


def arithmetic(deployment: Deployment) -> str:
    """``8 GPUs = 2 replicas × TP 4``."""
    cut = deployment.parallelism
    ways = [(cut.tp, "TP"), (cut.pp, "PP"), (cut.dp, "DP")]
    factors = [f"{name} {count}" for count, name in ways if count > 1 or name == "TP"]
    replicas = f"{deployment.replicas} replica{'s' if deployment.replicas > 1 else ''}"
    gpus = f"{deployment.num_gpus} GPU{'s' if deployment.num_gpus > 1 else ''}"
    experts = f" (experts over EP {cut.ep})" if cut.ep > 1 else ""
    return f"{gpus} = {' × '.join([replicas, *factors])}{experts}"


def header(request: LaunchRequest) -> list[str]:
    """Comment lines: what the command cannot say, in a form that `parse_vllm` reads back."""
    deployment = request.deployment
    facts = {
        "gpu": deployment.gpu,
        "replicas": deployment.replicas,
        "router": deployment.router,
        "engine": deployment.engine,
        "precision": deployment.precision,
    }
    lines = [f"{HEADER} {' '.join(f'{key}={shlex.quote(str(value))}' for key, value in facts.items())}"]
    lines.append(f"# {arithmetic(deployment)} ({deployment.gpu}).")
    if deployment.replicas > 1:
        lines.append(f"# Run it {deployment.replicas} times, behind a router ({deployment.router}).")
    return lines


def join_command(words: Sequence[str], options: Iterable[Sequence[str]]) -> str:
    """One shell command, an option per line, quoted where needed."""
    lines = [shlex.join(words), *(f"  {shlex.join(option)}" for option in options)]
    return " \\\n".join(lines)
