"""``--calibration FILE`` applied to a deployment: its factors go to the step model, the memory plan and the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from plimsoll.api.scenario import DeploymentFields, PlanScenario
from plimsoll.calibration import Calibration, read_calibration
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
    found.check(request.model.id, request.gpu.id, step_model_identity(fields.step_model))
    factors = factors_of(found)
    here = circumstances(engine, request.parallelism, request.precision, request.kv_precision)
    return Applied(
        request=dataclasses.replace(request, factors=factors),
        factors=factors,
        notes=(calibration_note(found), *found.differences(here)),
        calibration=found,
    )


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


def calibrated_gpus(fields: PlanScenario, model: ModelSpec, gpus: Sequence[str]) -> dict[str, Factors]:
    """The factors of every file of a plan's ``--calibration A,B``, by GPU.

    Raises:
        InputError: a file that cannot be read, is of another model or step model, or of a GPU that is not asked for.
    """
    found: dict[str, Factors] = {}
    for name in _files(fields):
        calibration = read_calibration(name)
        if calibration.gpu not in gpus:
            remedy = f"it was made for {calibration.gpu}, which is not among --gpus ({', '.join(gpus)})"
            raise InputError("--calibration", name, remedy)
        calibration.check(model.id, calibration.gpu, step_model_identity(fields.step_model))
        found[calibration.gpu] = factors_of(calibration)
    return found


def calibration_notes(fields: PlanScenario, engines: Sequence[str] = ()) -> list[str]:
    """One sentence for every file of a plan's calibration, and one where an engine's host time is not the file's.

    Raises:
        InputError: an engine has another host time than the seconds in a file were fitted beside.
    """
    notes = []
    for calibration in (read_calibration(name) for name in _files(fields)):
        notes.append(f"{calibration.gpu}: {calibration_note(calibration)}")
        if str(calibration.host_time.get("name", "")).endswith("'s own"):
            continue  # of the step model, which the file belongs to
        for engine in engines:
            facts = find_engine(engine)
            policy = engine if facts is None else facts.policy
            options = with_option_defaults({}, policy, facts, Parallelism())
            name, version = (engine, "") if facts is None else (facts.id, facts.version)
            here = host_time_record(choose_host_time(name, options, fields.overheads), version)
            notes += [f"{calibration.gpu}: {note}" for note in calibration.check_host_time(here, name, 1)]
    return notes


def _files(fields: PlanScenario) -> list[str]:
    return [part.strip() for part in (fields.calibration or "").split(",") if part.strip()]
