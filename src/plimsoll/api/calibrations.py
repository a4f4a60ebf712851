"""``--calibration FILE`` applied to a deployment: its factors go to the step model, the memory plan and the engine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.api.scenario import DeploymentFields, PlanScenario
from plimsoll.calibration import Calibration, read_calibration
from plimsoll.catalog.accelerators import Accelerator
from plimsoll.catalog.architecture import ModelSpec
from plimsoll.catalog.engines import find_engine
from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError, UnknownNameError
from plimsoll.core.source import Source
from plimsoll.engine import EngineConfig
from plimsoll.perf.factors import Factors
from plimsoll.perf.memory import MemoryPlan
from plimsoll.perf.overheads import HostTime, choose_host_time
from plimsoll.perf.request import StepModelRequest
from plimsoll.planner.sizing import with_option_defaults

NO_SHAPE = (
    "id", "architecture", "max_position", "published_params", "published_active_params", "source", "date", "aliases",
)  # fmt: skip
"""Fields of a model that say what it is called, not what a step of it takes."""
GPU_FIGURES = ("architecture", "compute_capability", "memory_bytes", "memory_bandwidth_bytes_per_s", "pcie_bytes_per_s")
LINK_FIGURES = ("intra_node_link", "intra_node_bytes_per_s", "scale_up_size", "inter_node_bytes_per_s")
"""Figures of a GPU that a step's time or the cache's size comes from; links only between several."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Applied:
    """A deployment's step model request with a calibration in it, or without one.

    Attributes:
        request: carries the factors to the step model.
        factors: what was fitted; none of it without a calibration.
        notes: sentences for the user.
        calibration: the file; None without one.
    """

    request: StepModelRequest
    factors: Factors = dataclasses.field(default_factory=Factors)
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None

    def host_time_notes(self, host_time: HostTime, engine: str, version: str) -> list[str]:
        """What to know where the deployment's host time is not the one that the factors were fitted with.

        Raises:
            InputError: as `Calibration.check_host_time`.
        """
        if self.calibration is None:
            return []
        stages = self.request.parallelism.pp
        return self.calibration.check_host_time(host_time_record(host_time, version), engine, stages)

    def with_blocks(self, memory: MemoryPlan) -> MemoryPlan:
        """The memory plan with the blocks that the server really had, unless they were given."""
        if self.factors.kv_blocks == 1.0 or memory.source is Source.MEASURED:
            return memory
        return dataclasses.replace(memory, num_blocks=max(2, round(memory.num_blocks * self.factors.kv_blocks)))

    def with_frontend(self, config: EngineConfig) -> EngineConfig:
        """The engine behind the time that a request takes to reach its scheduler."""
        return dataclasses.replace(config, frontend_s=config.frontend_s + self.factors.per_request_s)


def step_model_identity(name: str) -> str:
    """What a calibration belongs to: the step model, its options and compositions, without the folder of a profile."""
    base, plus, compositions = name.partition("+")
    kind, _, argument = base.strip().partition(":")
    return (kind if kind == "profile" or not argument else f"{kind}:{argument}") + plus + compositions.strip()


def model_shape(model: ModelSpec) -> str:
    """A digest of what a model is made of: its path may be that of another model elsewhere.

    Fields at their defaults are left out, so that a field which a later version adds changes no digest.
    """
    return hashlib.sha256(repr(_made_of(model)).encode()).hexdigest()[:16]


def _made_of(part: object) -> object:
    if isinstance(part, tuple):
        return tuple(map(_made_of, part))
    if not dataclasses.is_dataclass(part):
        return part
    fields = [field for field in dataclasses.fields(part) if field.name not in NO_SHAPE]
    values = [(field.name, getattr(part, field.name)) for field in fields if getattr(part, field.name) != field.default]
    return type(part).__name__, tuple((name, _made_of(value)) for name, value in values)


def gpu_figures(gpu: Accelerator, num_gpus: int) -> dict[str, str | float]:
    """The figures that a calibration on so many of this GPU corrects; an id in a user's own file may have any."""
    names = (*GPU_FIGURES, *LINK_FIGURES) if num_gpus > 1 else GPU_FIGURES
    found = {name: getattr(gpu, name) for name in names if getattr(gpu, name) is not None}
    return {**found, **{f"dense_flop_per_s.{name}": value for name, value in gpu.dense_flop_per_s.items()}}


def circumstances(engine: str, cut: Parallelism, precision: str, kv_precision: str) -> dict[str, str | int]:
    """What else a calibration was measured at."""
    return {"engine": engine, **dataclasses.asdict(cut), "precision": precision, "kv_precision": kv_precision}


def apply_calibration(fields: DeploymentFields, request: StepModelRequest, engine: str) -> Applied:
    """The calibration that the fields name, checked against the deployment.

    Raises:
        InputError: the file cannot be read, or was made for another model, GPU or step model.
    """
    if fields.calibration is None:
        return Applied(request=request)
    found = read_calibration(fields.calibration)
    _check(found, fields, request.model, request.gpu)
    factors = factors_of(found)
    here = circumstances(engine, request.parallelism, request.precision, request.kv_precision)
    return Applied(
        request=dataclasses.replace(request, factors=factors),
        factors=factors,
        notes=(calibration_note(found), *found.gpu_notes(), *found.differences(here)),
        calibration=found,
    )


def _check(
    calibration: Calibration, fields: DeploymentFields | PlanScenario, model: ModelSpec, gpu: Accelerator
) -> None:
    """Refuse what the file was not made for; raises InputError."""
    step_model, figures = step_model_identity(fields.step_model), gpu_figures(gpu, num_gpus=2)
    calibration.check(model.id, gpu.id, step_model, model_shape=model_shape(model), gpu_figures=figures)


def host_time_record(host_time: HostTime, engine_version: str) -> dict[str, Any]:
    """What a calibration remembers of the host time beside which it was fitted."""
    document = host_time.to_json_dict()
    parts = (document, document.get("api_server", {}))
    seconds = {name: value for part in parts for name, value in part.items() if name.endswith("_s")}
    return {
        "name": host_time.name,
        "seconds": seconds,
        "api_server": host_time.frontend_name,
        "engine_version": engine_version,
    }


def factors_of(calibration: Calibration) -> Factors:
    """The factors of a file.

    Raises:
        InputError: one that there is not, or a value that cannot be used.
    """
    known = {field.name for field in dataclasses.fields(Factors)}
    for name in calibration.factors:
        if name not in known:
            raise UnknownNameError(f"{calibration.name} factor", name, known)
    return Factors(**calibration.factors)


def calibration_note(calibration: Calibration) -> str:
    """One sentence: what is applied, and how well it did on what it had not seen."""
    words = ", ".join(f"{name} {value:.3g}" for name, value in calibration.factors.items())
    errors = f"{calibration.error_before:.1%} without, {calibration.error_after:.1%} with it"
    return f"calibrated ({words}); median error on {calibration.held_back} held back: {errors}"


def calibrated_gpus(fields: PlanScenario, model: ModelSpec, gpus: Sequence[Accelerator]) -> dict[str, Factors]:
    """The factors of every file of a plan's ``--calibration A,B``, by GPU.

    Raises:
        InputError: a file that cannot be read, is of another model or step model, or of a GPU that is not asked for;
            two files of one GPU.
    """
    found: dict[str, Calibration] = {}
    by_id = {gpu.id: gpu for gpu in gpus}
    for calibration in _calibrations(fields):
        name, gpu = calibration.name, calibration.gpu
        if gpu not in by_id:
            remedy = f"it was made for {gpu}, which is not among --gpus ({', '.join(by_id)})"
            raise InputError("--calibration", name, remedy)
        _check(calibration, fields, model, by_id[gpu])
        if gpu in found:
            raise InputError("--calibration", name, f"it is of {gpu}, as {found[gpu].name} is: give one file a GPU")
        found[gpu] = calibration
    return {gpu: factors_of(calibration) for gpu, calibration in found.items()}


def calibration_notes(fields: PlanScenario, engines: Sequence[str], gpus: Sequence[str]) -> list[str]:
    """A sentence for every file of a plan's calibration, where an engine's host time or version is not the file's, and
    which of the GPUs have no file.

    Raises:
        InputError: an engine has another host time than the seconds in a file were fitted beside.
    """
    notes = []
    calibrations = _calibrations(fields)
    for calibration in calibrations:
        notes += [f"{calibration.gpu}: {note}" for note in (calibration_note(calibration), *calibration.gpu_notes())]
        for engine in engines:
            facts = find_engine(engine)
            policy = engine if facts is None else facts.policy
            options = with_option_defaults({}, policy, facts, Parallelism())
            name, version = (engine, "") if facts is None else (facts.id, facts.version)
            here = host_time_record(choose_host_time(name, options, fields.overheads), version)
            if str(calibration.host_time.get("name", "")).endswith("'s own"):  # of the step model, as the file is
                here = {**calibration.host_time, "engine_version": version}
            notes += [f"{calibration.gpu}: {note}" for note in calibration.check_host_time(here, name, 1)]
    without = [gpu for gpu in gpus if gpu not in {calibration.gpu for calibration in calibrations}]
    if calibrations and without:
        notes.append(f"GPUs without a calibration: {', '.join(dict.fromkeys(without))}")
    return list(dict.fromkeys(notes))


def carried_over_notes(fields: PlanScenario, here: Mapping[str, Sequence[Mapping[str, str | int]]]) -> list[str]:
    """Where the deployments of an answer are not what was measured; `here` has their circumstances by GPU."""
    found = [(one.gpu, note) for one in _calibrations(fields) for note in one.differences(*here.get(one.gpu, ()))]
    return [f"{gpu}: {note}" for gpu, note in found]


def _calibrations(fields: PlanScenario) -> list[Calibration]:
    """All files, read; raises InputError."""
    names = [] if fields.calibration is None else fields.calibration.split(",")
    return [read_calibration(name.strip()) for name in names]
