"""What was asked: one flat list of fields per verb, the same for flags, scenario files and Python keywords.

A field `rate_per_s` is the flag ``--rate``; every other field is the flag of its name. None means "not given".
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from plimsoll.core.errors import InputError, UnknownNameError

FLAG_NAMES = {"rate_per_s": "rate", "prefix_hit_frac": "prefix-hit"}
"""Fields whose flag is not simply their name."""

LARGEST_SCENARIO_BYTES = 2**20
MOST_BITS = 1023
"""Of a whole number: what a float can hold."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkloadFields:
    """Which requests come, and how."""

    workload: str | None = None
    trace: str | None = None
    trace_format: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    rate_per_s: float | None = None
    arrivals: str | None = None
    burstiness: float | None = None
    users: int | None = None
    think_s: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeploymentFields:
    """What is deployed."""

    model: str | None = None
    gpu: str | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    replicas: int = 1
    router: str = "round-robin"
    engine: str = "vllm-v1"
    precision: str | None = None
    kv_precision: str = "auto"
    step_model: str = "roofline"
    overheads: str | None = None
    calibration: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    kv_blocks: int | None = None
    block_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetFields:
    """Latency targets."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    percentile: float = 99.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateScenario(DeploymentFields, WorkloadFields, TargetFields):
    """Fields of ``plimsoll simulate``; targets add goodput and a verdict."""

    concurrency: int | None = None
    at_once: bool = False
    num_requests: int | None = None
    duration_s: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapacityScenario(DeploymentFields, WorkloadFields, TargetFields):
    """Fields of ``plimsoll capacity``: `num_seeds` searches make the interval.

    Each probe has `num_requests`, or ends at `duration_s`.
    """

    concurrency: int | None = None
    at_once: bool = False
    num_requests: int | None = None
    duration_s: float | None = None
    split: str | None = None
    num_seeds: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateScenario(DeploymentFields):
    """Fields of ``plimsoll calibrate``; lists are comma-separated text, as on the command line."""

    results: str | None = None
    results_format: str | None = None
    fit: str | None = None
    concurrency: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanScenario(WorkloadFields, TargetFields):
    """Fields of ``plimsoll plan``; lists are comma-separated text, as on the command line."""

    model: str | None = None
    gpus: str | None = None
    budget_usd_per_hour: float | None = None
    throughput_tokens_per_s: float | None = None
    latency_preference: str | None = None
    engines: str = "vllm-v1"
    step_model: str = "roofline"
    overheads: str | None = None
    calibration: str | None = None
    precisions: str | None = None
    precision_tolerance: str | None = None
    kv_precision: str = "auto"
    token_budgets: str = "512,2048,8192"
    tp: str | None = None
    pp: str | None = None
    dp: str | None = None
    disaggregated: str | None = None
    split: str | None = None
    placement: str | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    prefix_hit_frac: float = 0.0
    spare: int = 0
    router: str = "round-robin"
    optimize: str = "cost"
    top: int = 3
    start_from: str | None = None


def flag_name(field: str) -> str:
    """The flag of a field: ``--rate`` for `rate_per_s`."""
    return "--" + FLAG_NAMES.get(field, field.replace("_", "-"))


def build(kind: type[T], given: dict[str, Any], file: str | None = None) -> T:
    """A scenario from a file and from what was given; what was given wins.

    Raises:
        InputError: a value of the wrong type; names the field.
        UnknownNameError: a field that the verb does not have.
    """
    values = read_scenario(file) if file is not None else {}
    values.update({name: value for name, value in given.items() if value is not None})
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise UnknownNameError("scenario field", name, hints)
        values[name] = _checked(name, value, hints[name])
    return kind(**values)


def read_scenario(file: str) -> dict[str, Any]:
    """The fields of a scenario file (YAML), written as fields (``rate_per_s``) or as flags (``rate``).

    Raises:
        InputError: the file cannot be read, or is not one mapping of fields to values.
    """
    import yaml

    path = Path(file)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError("--scenario", file, "this is a device; give a file")
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_SCENARIO_BYTES + 1)
    except OSError as error:
        raise InputError("--scenario", file, f"it cannot be read ({error.strerror})") from error
    except ValueError as error:  # a null in the name
        raise InputError("--scenario", file, f"it cannot be read ({error})") from error
    if len(raw) > LARGEST_SCENARIO_BYTES:
        raise InputError("--scenario", file, f"a scenario has at most {LARGEST_SCENARIO_BYTES} bytes")
    try:
        document = yaml.safe_load(raw.decode("utf-8"))
    except RecursionError:
        raise InputError("--scenario", file, "it is nested too deeply; give fields and values") from None
    except (yaml.YAMLError, ValueError) as error:  # an impossible date and an endless number are ValueErrors
        raise InputError("--scenario", file, f"it is not YAML ({error})") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise InputError("--scenario", file, "it must hold fields and values, such as 'model: Llama-3.1-8B'")
    names = {flag: name for name, flag in FLAG_NAMES.items()}
    return {names.get(key, key.replace("-", "_")): value for key, value in document.items() if value is not None}


def to_yaml(scenario: object) -> str:
    """A scenario as a file: only what differs from the defaults."""
    import yaml

    assert dataclasses.is_dataclass(scenario)
    fields = {
        field.name: getattr(scenario, field.name)
        for field in dataclasses.fields(scenario)
        if getattr(scenario, field.name) != field.default
    }
    return yaml.safe_dump(fields, sort_keys=False)


def _checked(name: str, value: Any, hint: Any) -> Any:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not types.NoneType]
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    (kind,) = kinds
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise InputError(flag_name(name), f"a number of {value.bit_length()} bits", "give a smaller one")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, (int, float, list, tuple)) and not isinstance(value, bool):
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise InputError(flag_name(name), value, f"give {words[kind]}")
    return value
