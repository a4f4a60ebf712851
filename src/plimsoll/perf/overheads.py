"""Host time of an engine version, beside the GPU's kernels. Data in ``data/overheads``, one file each."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from plimsoll.core.errors import InputError, UnknownNameError

STAND_IN = "vllm-v1"
"""Whose host time is taken for an engine that nobody measured."""

NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overheads:
    """Host time that the GPU waits for.

    Attributes:
        per_step_s: of every step, the empty one included (input preparation, launches, sampling's round trip).
        per_sequence_s: for every sequence that is scheduled in a step.
        per_prefill_token_s: for every prompt token in a step.
        per_request_s, per_request_token_s: of the API server for a request and for each token of its prompt, one
            request after another, before the scheduler sees it; used outside the step model.
        engine: whose steps they are, an id of the catalogue; empty where they are not chosen without being asked for.
        async_scheduling: whether for asynchronous scheduling; None for either.
        source: where the figures come from.
        date: when they were read, ISO.
    """

    per_step_s: float = 0.0
    per_sequence_s: float = 0.0
    per_prefill_token_s: float = 0.0
    per_request_s: float = 0.0
    per_request_token_s: float = 0.0
    engine: str = ""
    async_scheduling: bool | None = None
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        for field in (each.name for each in dataclasses.fields(self) if each.name.endswith("_s")):
            if not 0 <= getattr(self, field) < float("inf"):
                raise InputError(field, getattr(self, field), "write a number of seconds from 0")

    @property
    def is_frontend(self) -> bool:
        """Whether of an API server rather than of steps."""
        return self.per_request_s + self.per_request_token_s > 0 == self.per_step_s


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostTime:
    """The host time of a deployment.

    Attributes:
        name: of the steps' host time: a file of ``data/overheads``, or ``none``.
        steps: of every step.
        frontend_name: of the API server's time; empty where there is none.
        frontend: of every request.
        asked: whether the steps' host time was asked for by name.
        notes: sentences for the user.
    """

    name: str
    steps: Overheads
    frontend_name: str = ""
    frontend: Overheads = NO_OVERHEADS
    asked: bool = False
    notes: tuple[str, ...] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """Name and source of each, with its seconds."""
        document = {"name": self.name, **_figures(self.steps)}
        if self.frontend_name:
            document["api_server"] = {"name": self.frontend_name, **_figures(self.frontend)}
        return document


def _figures(overheads: Overheads) -> dict[str, Any]:
    """What is not zero, and where it comes from."""
    seconds = {name: value for name, value in dataclasses.asdict(overheads).items() if name.endswith("_s") and value}
    return {**seconds, "source": overheads.source, "date": overheads.date}


def choose_host_time(engine: str, options: Mapping[str, object], asked: str | None = None, stages: int = 1) -> HostTime:
    """The host time of an engine with its options, or the one that was asked for.

    Args:
        engine: catalogue id without a version, or the name of a scheduling policy.
        options: of the policy, the defaults of its version included; ``async_scheduling`` counts.
        asked: names from `list_overheads`, separated by commas: one for steps and one of an API server; ``none`` for
            no time around steps. What is not named is the engine's own, an API server's time only where it is named.
        stages: pipeline stages; what the scheduler does for a batch then counts once on its way through all of them,
            since it plans a batch when it is back, while others are on their way.

    Raises:
        UnknownNameError: no such name.
        InputError: two names for the same.
    """
    known = (NONE, *list_overheads())
    steps: dict[str, Overheads] = {}
    frontends: dict[str, Overheads] = {}
    for name in (word.strip() for word in (asked or "").split(",") if word.strip()):
        if name not in known:
            raise UnknownNameError("--overheads", name, known)
        found = NO_OVERHEADS if name == NONE else load_overheads(name)
        (frontends if found.is_frontend else steps)[name] = found
    if len(steps) > 1 or len(frontends) > 1:
        raise InputError("--overheads", asked, "give one name for steps and at most one of an API server")
    if asked is not None and not steps and not frontends:
        raise InputError("--overheads", asked, f"give one of {', '.join(known)}")
    notes: tuple[str, ...] = ()
    if steps:
        ((name, of_steps),) = steps.items()
    else:
        name, of_steps, notes = _own(engine, options)
        if stages > 1 and of_steps.engine == engine and of_steps.async_scheduling is not None:
            of_steps, notes = _through(stages, of_steps)
    frontend_name, frontend = next(iter(frontends.items()), ("", NO_OVERHEADS))
    return HostTime(
        name=name, steps=of_steps, frontend_name=frontend_name, frontend=frontend, asked=bool(steps), notes=notes
    )


def in_use(chosen: HostTime, step_facts: Mapping[str, Any]) -> HostTime:
    """The host time that a step model really has: some bring their own.

    Args:
        chosen: what it was given.
        step_facts: what it says of itself.

    Raises:
        InputError: another one was asked for by name.
    """
    own = step_facts.get("overheads")
    if own == chosen.steps.source:
        return chosen
    name = step_facts.get("step_model", "this step model")
    if chosen.asked:
        remedy = f"the step model {name} has host time of its own; leave it out, or use --step-model roofline"
        raise InputError("--overheads", chosen.name, remedy)
    steps = Overheads(source=str(own or f"in the steps of {name}"))
    return dataclasses.replace(chosen, name=f"{name}'s own", steps=steps, notes=())


def _through(stages: int, own: Overheads) -> tuple[Overheads, tuple[str, ...]]:
    """An engine's own host time of one stage's step, and what to know of it."""
    if own.async_scheduling:
        how = "as of asynchronous scheduling, which plans one batch further ahead than is simulated"
    else:
        how = "for each sequence it counts once on the way through all of them"
        own = dataclasses.replace(own, per_sequence_s=own.per_sequence_s / stages)
    return own, (f"host time with pipeline stages: {how}",)


def _own(engine: str, options: Mapping[str, object]) -> tuple[str, Overheads, tuple[str, ...]]:
    """The file of an engine and its way of scheduling; the stand-in's and a note where there is none."""
    # Only vLLM V1 has the option; without a word its scheduling is asynchronous, as it has been since 0.14.
    late = options.get("async_scheduling", True)
    for name in list_overheads():
        found = load_overheads(name)
        if found.engine == engine and found.async_scheduling in (None, late):
            return name, found, ()
    note = f"the host time of {engine} around a step is not known: that of {STAND_IN} is used"
    return STAND_IN, load_overheads(STAND_IN), (note,)
