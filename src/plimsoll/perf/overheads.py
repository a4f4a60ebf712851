"""Host time of an engine version, beside the GPU's kernels. Data in ``data/overheads``, one file each."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from importlib import resources

from plimsoll.core.errors import InputError, UnknownNameError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overheads:
    """Host time that the GPU waits for.

    Attributes:
        per_step_s: of every step, the empty one included (input preparation, launches, sampling's round trip).
        per_sequence_s: for every sequence that is scheduled in a step.
        per_prefill_token_s: for every prompt token in a step.
        per_request_s, per_request_token_s: of the API server for a request and for each token of its prompt, one
            request after another, before the scheduler sees it; used outside the step model.
        source: where the figures come from.
        date: when they were read, ISO.
    """

    per_step_s: float = 0.0
    per_sequence_s: float = 0.0
    per_prefill_token_s: float = 0.0
    per_request_s: float = 0.0
    per_request_token_s: float = 0.0
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        for field in (each.name for each in dataclasses.fields(self) if each.name.endswith("_s")):
            if not 0 <= getattr(self, field) < float("inf"):
                raise InputError(field, getattr(self, field), "write a number of seconds from 0")


NO_OVERHEADS = Overheads(source="none: kernels only")


def list_overheads() -> tuple[str, ...]:
    """Names of the engines whose host time is known."""
    folder = resources.files("plimsoll.perf") / "data" / "overheads"
    return tuple(sorted(e.name.removesuffix(".toml") for e in folder.iterdir() if e.name.endswith(".toml")))


@functools.cache
def load_overheads(engine: str = "vllm-v1") -> Overheads:
    """Host time of `engine`.

    Raises:
        UnknownNameError: no file of that name.
    """
    if engine not in list_overheads():
        raise UnknownNameError("engine", engine, list_overheads())
    text = (resources.files("plimsoll.perf") / "data" / "overheads" / f"{engine}.toml").read_text(encoding="utf-8")
    return Overheads(**tomllib.loads(text))
