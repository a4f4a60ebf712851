"""The calibration file: factors, what they were fitted to, and how well they did on what they had not seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll.core.errors import InputError

KIND = "plimsoll calibration"
VERSION = 1
IDENTITY = ("model", "gpu", "step_model")
CIRCUMSTANCES = ("engine", "tp", "pp", "dp", "ep", "precision", "kv_precision")
HOST_FACTORS = ("per_step_s", "per_request_s")
"""Factors that are seconds beyond the host time they were fitted with, and mean nothing beside another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibration file's content.

    Attributes:
        model, gpu: catalogue ids; a file is refused for any other.
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
    name: str = ""

    def check(self, model: str, gpu: str, step_model: str) -> None:
        """Refuse another model, GPU or step model.

        Raises:
            InputError: names what differs, and what the file is for.
        """
        for field, given in zip(IDENTITY, (model, gpu, step_model), strict=True):
            known = getattr(self, field)
            if known != given:
                remedy = f"it was made for {field.replace('_', ' ')} {known}, this is {given}: run plimsoll calibrate"
                raise InputError("--calibration", self.name, remedy)

    def differences(self, circumstances: Mapping[str, Any]) -> list[str]:
        """A sentence where the deployment is not the one that was measured."""
        other = [
            f"{name} {self.circumstances[name]} (here {circumstances[name]})"
            for name in CIRCUMSTANCES
            if name in self.circumstances and name in circumstances and self.circumstances[name] != circumstances[name]
        ]
        return [f"the calibration was measured with {', '.join(other)}: its factors are carried over"] if other else []

    def check_host_time(self, host_time: Mapping[str, Any], engine: str, stages: int) -> list[str]:
        """Sentences where a deployment's host time is not the one that the factors were fitted with.

        Args:
            host_time: of the deployment, as `Calibration.host_time`.
            engine: its engine.
            stages: its pipeline stages: with others the seconds are not comparable.

        Raises:
            InputError: the same engine has another host time now, and factors are seconds beyond the former one.
        """
        counted = [name for name in HOST_FACTORS if self.factors.get(name)]
        factors = " and ".join(name.removesuffix("_s").replace("_", "-") for name in counted)
        if not self.host_time:
            return [f"the calibration does not say beside which host time its {factors} holds"] if counted else []
        was, now = (_host_words(one) for one in (self.host_time, host_time))
        remedy = "give --overheads as when it was made"
        is_same_cut = self.circumstances.get("pp", 1) == stages
        if was == now and is_same_cut and self.host_time.get("seconds") != host_time.get("seconds"):
            was, now = (f"{_host_words(one)} ({_host_seconds(one)})" for one in (self.host_time, host_time))
            remedy = "that name has other seconds now"
        if was != now:
            if counted and self.circumstances.get("engine") == engine:
                said = f"its {factors} was fitted beside the host time {was}, here it is {now}: {remedy}"
                raise InputError("--calibration", self.name, f"{said}, or run plimsoll calibrate again")
            return [f"the calibration was fitted beside the host time {was} (here {now})"]
        version, here = self.host_time.get("engine_version"), host_time.get("engine_version")
        if version and here and version != here and self.circumstances.get("engine") == engine:
            return [f"the calibration was fitted for {engine} {version} (here {here})"]
        return []


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
    try:
        calibration = Calibration(**document, name=path)
        for group in (calibration.factors, calibration.deviations):
            for name, value in group.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise TypeError(f"{name} is {value!r}, no number")
        calibration.host_time.items()
        is_worse = calibration.error_after > calibration.error_before
    except (TypeError, AttributeError) as error:
        raise InputError("--calibration", path, f"{error}; run plimsoll calibrate again") from error
    if is_worse:
        errors = f"{calibration.error_before:.1%} without, {calibration.error_after:.1%} with it"
        raise InputError("--calibration", path, f"it made what it had not seen worse ({errors}): measure more runs")
    return calibration
