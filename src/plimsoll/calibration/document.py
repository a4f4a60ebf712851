"""The calibration file: factors, what they were fitted to, and how well they did on what they had not seen."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plimsoll.core.errors import InputError

KIND = "plimsoll calibration"
VERSION = 1
IDENTITY = ("model", "gpu", "step_model")
TEXTS = (*IDENTITY, "fitted_on", "held_back", "date", "plimsoll_version", "model_shape")
ERRORS = ("error_before", "error_after")
OBJECTS = ("circumstances", "host_time", "factors", "deviations", "gpu_figures")
REQUIRED = (*IDENTITY, "circumstances", "factors", *ERRORS)
LARGEST = 1e300
CUT = ("tp", "pp", "dp", "ep")
CIRCUMSTANCES = ("engine", *CUT, "precision", "kv_precision")
HOST_FACTORS = ("per_step_s", "per_request_s")
"""Factors that are seconds beyond the host time they were fitted with, and mean nothing beside another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibration file's content.

    Attributes:
        model, gpu: catalogue ids; a file is refused for any other.
        model_shape: a digest of what the model is made of: a path such as ``config.json`` may name any; empty in files
            older than 2026-11-20.
        gpu_figures: those of the GPU's file that the factors correct, by name: a user's own file may give any to an id;
            empty in older files.
        step_model: the step model that the factors correct; refused for any other.
        circumstances: engine, cut and precisions at which it was measured; others are allowed, and said.
        host_time: that the simulations had while the factors were fitted: ``name``, ``seconds`` by name, ``api_server``
            (a name or empty) and ``engine_version``; empty in files older than 2026-11-20.
        factors: ``compute``, ``bandwidth``, ``kv_blocks`` (ratios), ``per_step_s``, ``per_request_s``.
        deviations: posterior standard deviations.
        error_before, error_after: median absolute error of the figures held back.
        fitted_on, held_back, date, plimsoll_version: how it came about.
        name: of the file.
    """

    model: str
    gpu: str
    step_model: str
    circumstances: Mapping[str, Any]
    host_time: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    factors: Mapping[str, float]
    deviations: Mapping[str, float] = dataclasses.field(default_factory=dict)
    error_before: float
    error_after: float
    fitted_on: str = ""
    held_back: str = ""
    date: str = ""
    plimsoll_version: str = ""
    model_shape: str = ""
    gpu_figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""

    def check(
        self,
        model: str,
        gpu: str,
        step_model: str,
        *,
        model_shape: str = "",
        gpu_figures: Mapping[str, Any] | None = None,
    ) -> None:
        """Refuse another model, GPU or step model, and another one under the same name where the file tells them apart.

        All arguments are of the deployment. Figures of the GPU that either side does not know are not compared.

        Raises:
            InputError: names what differs, and what the file is for.
        """
        for field, given in zip(IDENTITY, (model, gpu, step_model), strict=True):
            known = getattr(self, field)
            if known != given:
                remedy = f"it was made for {field.replace('_', ' ')} {known}, this is {given}: run plimsoll calibrate"
                raise InputError("--calibration", self.name, remedy)
        if self.model_shape and model_shape and self.model_shape != model_shape:
            remedy = f"it was made for a model of another shape that was called {model} too: run plimsoll calibrate"
            raise InputError("--calibration", self.name, remedy)
        for field, here in (gpu_figures or {}).items():
            known = self.gpu_figures.get(field, here)
            if known != here:
                remedy = (
                    f"it was made for another {gpu}, of {field} {known}, this one has {here}: run plimsoll calibrate"
                )
                raise InputError("--calibration", self.name, remedy)

    def gpu_notes(self) -> list[str]:
        """A sentence where the file does not know which figures its GPU had."""
        unsaid = f"the calibration does not say which figures {self.gpu} had: make it again if its file has changed"
        return [] if self.gpu_figures else [unsaid]

    def differences(self, *circumstances: Mapping[str, Any]) -> list[str]:
        """A sentence where a deployment, or any of several, is not the one that was measured.

        An engine in another version is the same engine: `check_host_time` compares versions.
        """
        other = []
        for name in CIRCUMSTANCES:
            known = self.circumstances.get(name)
            found = dict.fromkeys(here[name] for here in circumstances if name in here)
            differing = [str(value) for value in found if _plain_engine(value) != _plain_engine(known)]
            if known is not None and differing:
                other.append(f"{name} {known} (here {', '.join(differing)})")
        return [f"the calibration was measured with {', '.join(other)}: its factors are carried over"] if other else []

    def check_host_time(self, host_time: Mapping[str, Any], engine: str, stages: int) -> list[str]:
        """Sentences where a deployment's host time is not the one that the factors were fitted with.

        Args:
            host_time: of the deployment, as `Calibration.host_time`.
            engine: its engine.
            stages: its pipeline stages: with others the seconds are not comparable.

        Raises:
            InputError: the same engine has another host time now, and factors are seconds beyond the former one; a
                version by its own name (``vllm-v1@0.11.0``) is the same engine.
        """
        is_same_engine = _plain_engine(self.circumstances.get("engine")) == _plain_engine(engine)
        others = self._other_version(host_time, engine) if is_same_engine else []
        counted = [name for name in HOST_FACTORS if self.factors.get(name)]
        factors = " and ".join(name.removesuffix("_s").replace("_", "-") for name in counted)
        if not self.host_time:
            unsaid = f"the calibration does not say beside which host time its {factors} holds"
            return [*([unsaid] if counted else []), *others]
        was, now = (_host_words(one) for one in (self.host_time, host_time))
        remedy = "give --overheads as when it was made"
        is_same_cut = self.circumstances.get("pp", 1) == stages
        if was == now and is_same_cut and self.host_time.get("seconds") != host_time.get("seconds"):
            was, now = (f"{_host_words(one)} ({_host_seconds(one)})" for one in (self.host_time, host_time))
            remedy = "that name has other seconds now"
        if was != now:
            if counted and is_same_engine:
                said = f"its {factors} was fitted beside the host time {was}, here it is {now}: {remedy}"
                raise InputError("--calibration", self.name, f"{said}, or run plimsoll calibrate again")
            return [f"the calibration was fitted beside the host time {was} (here {now})", *others]
        return others

    def _other_version(self, host_time: Mapping[str, Any], engine: str) -> list[str]:
        """A sentence where the same engine is of another version."""
        named = str(self.circumstances.get("engine", "")).partition("@")[2]
        version, here = self.host_time.get("engine_version") or named, host_time.get("engine_version")
        if not version or not here or _plain_version(version) == _plain_version(here):
            return []
        return [f"the calibration was fitted for {_plain_engine(engine)} {version} (here {here})"]


def _plain_engine(value: object) -> object:
    """An engine's name without its version; anything else, a policy's file too, as it is."""
    return value.partition("@")[0] if isinstance(value, str) and not value.endswith(".py") else value


def _plain_version(version: str) -> str:
    """``0.32`` of ``v0.32.0``."""
    parts = version.removeprefix("v").split(".")
    while len(parts) > 1 and parts[-1] == "0":
        parts.pop()
    return ".".join(parts)


def _host_words(host_time: Mapping[str, Any]) -> str:
    """``vllm-v1`` or ``vllm-v1 and api-server-vllm``."""
    return " and ".join(str(host_time[key]) for key in ("name", "api_server") if host_time.get(key))


def _host_seconds(host_time: Mapping[str, Any]) -> str:
    found = host_time.get("seconds") or {}
    return ", ".join(f"{name} {value:g}" for name, value in found.items()) or "no seconds"


def to_text(calibration: Calibration) -> str:
    """The file's text: JSON that `read_calibration` reads."""
    document = {"kind": KIND, "version": VERSION, **dataclasses.asdict(calibration)}
    document.pop("name")
    return json.dumps(document, indent=2) + "\n"


def read_calibration(path: str) -> Calibration:
    """Read a file that `to_text` wrote.

    Raises:
        InputError: it cannot be read, is of another kind or version, or a field is missing or wrong.
    """
    if not path.strip():
        raise InputError("--calibration", path, "name a file that plimsoll calibrate wrote, or leave it out")
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("--calibration", path, f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError("--calibration", path, "it is no calibration file; plimsoll calibrate writes one") from error
    if not isinstance(document, dict) or document.pop("kind", None) != KIND:
        raise InputError("--calibration", path, "it is no calibration file; plimsoll calibrate writes one")
    if document.pop("version", None) != VERSION:
        raise InputError(
            "--calibration", path, f"it is of another version than {VERSION}: run plimsoll calibrate again"
        )
    if damage := next(itertools.chain(_wrong_fields(document), _wrong_entries(document)), None):
        raise InputError("--calibration", path, f"{damage}; run plimsoll calibrate again")
    calibration = Calibration(**document, name=path)
    if calibration.error_after > calibration.error_before:
        errors = f"{calibration.error_before:.1%} without, {calibration.error_after:.1%} with it"
        raise InputError("--calibration", path, f"it made what it had not seen worse ({errors}): measure more runs")
    return calibration


def _wrong_fields(document: Mapping[str, Any]) -> Iterator[str]:
    """Fields of a file that are missing, unknown or of another kind, in words."""
    yield from (f"it has no {name}" for name in REQUIRED if name not in document)
    for name, value in document.items():
        if name in TEXTS:
            if not isinstance(value, str):
                yield f"its {name} is no text"
        elif name in ERRORS:
            if not _is_number(value) or value < 0:
                yield f"its {name} is no number from 0"
        elif name not in OBJECTS:
            yield f"its field {name[:40]!r} is unknown"
        elif not isinstance(value, dict):
            yield f"its {name} is no object of names and values"


def _wrong_entries(document: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong within the fields, where `_wrong_fields` finds nothing."""
    if not document["factors"]:
        yield "its factors are empty"
    for group in ("factors", "deviations"):
        yield from _no_numbers(group, document.get(group, {}))
    for name, value in document["circumstances"].items():
        if not isinstance(value, str if name not in CUT else int) or isinstance(value, bool):
            yield f"its circumstances {name[:40]} is {_shown(value)}, which says nothing"
    for name, value in document.get("gpu_figures", {}).items():
        if not isinstance(value, str) and not _is_number(value):
            yield f"its gpu_figures {name[:40]} is {_shown(value)}, which says nothing"
    for name, value in document.get("host_time", {}).items():
        if name == "seconds" and isinstance(value, dict):
            yield from _no_numbers("host_time seconds", value)
        elif name == "seconds" or not isinstance(value, str):
            yield f"its host_time {name[:40]} is {_shown(value)}, which says nothing"


def _no_numbers(where: str, values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if not _is_number(value):
            yield f"its {where} {name[:40]} is {_shown(value)}, no number"


def _is_number(value: object) -> bool:
    """Whether finite, and no whole number beyond all floats."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _shown(value: object) -> str:
    return str(type(value).__name__) if isinstance(value, (dict, list)) else repr(value)[:40]
