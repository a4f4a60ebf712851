"""``--engine llamacpp,gpu_layers=N``: the last layers of a model on the GPU, the others on the host."""

from __future__ import annotations

import dataclasses

from plimsoll.api.scenario import DeploymentFields
from plimsoll.core.deployment import EngineSettings
from plimsoll.core.errors import InfeasibleError, InputError
from plimsoll.core.source import Source
from plimsoll.core.units import GB, GIB, TERA
from plimsoll.engine.plugins import load_plugin, option_defaults
from plimsoll.perf.build import DescribedStepModel, build_step_model
from plimsoll.perf.host_layers import Host, HostLayers, host_weight_bytes, layers_of, load_host
from plimsoll.perf.memory import MemoryPlan
from plimsoll.perf.request import StepModelRequest

POLICY, ALL = "llamacpp", -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSplit:
    """Where the layers lie.

    Attributes:
        request: step model request of the whole model.
        gpu_layers: layers on the GPU, the output layer not among them.
        host: holds and runs the others.
    """

    request: StepModelRequest
    gpu_layers: int
    host: Host

    @property
    def part(self) -> StepModelRequest:
        """Of the layers on the GPU, as a model of its own."""
        return dataclasses.replace(self.request, model=layers_of(self.request.model, self.gpu_layers))

    def with_host_memory(self, memory: MemoryPlan) -> MemoryPlan:
        """The plan of the layers on the GPU, with no more blocks than the host holds of the others.

        Raises:
            InfeasibleError: the host does not hold its weights and one block.
        """
        model = self.request.model
        weights = host_weight_bytes(model, self.request.precision, self.gpu_layers)
        on_host = model.num_layers - self.gpu_layers
        block_bytes = memory.block_bytes * on_host / self.gpu_layers
        num_blocks = int((self.host.memory_bytes - weights) // block_bytes)
        have = f"the host has {self.host.memory_bytes / GIB:.1f} GiB"
        if num_blocks < 2:
            reason = f"{on_host} layers take {weights / GIB:.1f} GiB and {have}; use more gpu_layers or host_gib"
            raise InfeasibleError(reason, "memory")
        where = f"{on_host} of {model.num_layers} layers on the host: weights {weights / GIB:.2f} GiB of it"
        if memory.source is not Source.MEASURED and num_blocks < memory.num_blocks:
            where += f", which leaves it {num_blocks} blocks"
            longest = min(memory.max_model_len, (num_blocks - 1) * memory.block_size)
            settings = dataclasses.replace(memory.settings, max_model_len=longest)
            memory = dataclasses.replace(memory, num_blocks=num_blocks, max_model_len=longest, settings=settings)
        return dataclasses.replace(memory, breakdown=f"{memory.breakdown}; {where}")

    def step_model(self, name: str) -> DescribedStepModel:
        """Seconds of a step that passes through both."""
        part, whole = build_step_model(name, self.part), build_step_model(name, self.request)
        return HostLayers(part, whole, self.request, self.gpu_layers, self.host)

    @property
    def notes(self) -> list[str]:
        """Which rates the host has."""
        rates = f"{self.host.memory_bytes_per_s / GB:g} GB/s and {self.host.flop_per_s / TERA:g} TFLOP/s"
        return [f"layers on the host run at {rates} ({self.host.reference}); nobody compared this with measured runs"]


def layer_split(
    policy: str, settings: EngineSettings, request: StepModelRequest, fields: DeploymentFields
) -> LayerSplit | None:
    """The split that an engine's options ask for; None where all layers lie on the GPU.

    Raises:
        InputError: layers or rates that cannot be, or something that is not simulated with them.
    """
    if policy != POLICY:
        return None
    options = {**option_defaults(load_plugin("plimsoll.engine.policies", policy, "--engine")), **settings.options}
    given, model = int(options["gpu_layers"]), request.model
    if given == ALL or given > model.num_layers:
        return None
    if given < 2:
        remedy = f"give 2 to {model.num_layers + 1}: the output layer counts first; -1 is all"
        raise InputError("option gpu_layers of llamacpp", given, remedy)
    if request.parallelism.num_gpus > 1:
        raise InputError("option gpu_layers of llamacpp", given, "is simulated on one GPU; use --tp 1 and --pp 1")
    if fields.step_model != "roofline" or fields.calibration is not None:
        remedy = "is simulated with --step-model roofline and without a calibration"
        raise InputError("option gpu_layers of llamacpp", given, remedy)
    return LayerSplit(request=request, gpu_layers=given - 1, host=_host(options))


def _host(options: dict[str, object]) -> Host:
    """The usual host with what the user says of his own."""
    usual = load_host()
    units = {"host_gb_per_s": ("memory_bytes_per_s", GB), "host_tflops": ("flop_per_s", TERA)}
    units["host_gib"] = ("memory_bytes", GIB)
    given: dict[str, float] = {}
    for option, (field, unit) in units.items():
        value = float(str(options[option]))
        if not 0 <= value < float("inf"):
            remedy = "give a number above zero, or 0 for the usual host's"
            raise InputError(f"option {option} of llamacpp", value, remedy)
        if value:
            given[field] = value * unit
    if not given:
        return usual
    said = set(given) >= {"memory_bytes_per_s", "flop_per_s"}
    source = Source.MODELLED if said else usual.source
    return dataclasses.replace(usual, **given, source=source, reference="as given" if said else usual.reference)
