"""Finds a policy or a router by name: one file, one class, no registry.

The class of a file is the one named like it: ``vllm_v1.py`` holds ``VllmV1``. Whatever a user's file does wrong becomes
one line that names the file, the method and the line in it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from plimsoll.core.errors import InputError, PlimsollError, UnknownNameError
from plimsoll.engine.general.plan import GeneralPlan, GeneralPolicy
from plimsoll.engine.policy import StepPlan

POLICIES = "plimsoll.engine.policies"
METHODS = {POLICIES: "plan(view)", "plimsoll.engine.routers": "choose(fleet, request, now_s)"}
"""What a class of each kind must have, whoever wrote it."""


def list_plugins(package: str) -> tuple[str, ...]:
    """Names of all plug-ins in a package, as users write them (``vllm-v1``)."""
    folders = tuple(importlib.import_module(package).__path__)
    return _listed(folders, tuple(os.stat(folder).st_mtime_ns for folder in folders))


@functools.lru_cache(maxsize=64)
def _listed(folders: tuple[str, ...], changed_ns: tuple[int, ...]) -> tuple[str, ...]:
    """What lies in the folders, read again when one of them changed: a search asks some thousand times."""
    del changed_ns
    return tuple(sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules(folders)))


def load_plugin(package: str, name: str, field: str) -> type:
    """The class that `name` means: a file of `package`, or any Python file given by its path.

    Raises:
        UnknownNameError: no such file; lists the closest names.
        InputError: the file cannot be imported or holds no class of its name; names the file and why.
    """
    if name.endswith(".py"):
        path = Path(name)
        found = _class_in(_import_file(path, field), path.stem, name, field)
        return _with_method(found, package, name, field)
    known = list_plugins(package)
    if name not in known:
        raise UnknownNameError(field, name, known, "or give the path of a .py file")
    stem = name.replace("-", "_")
    return _class_in(importlib.import_module(f"{package}.{stem}"), stem, name, field)


def _import_file(path: Path, field: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"plimsoll_user_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(field, str(path), "no such file; give the path of a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may fail in any way, and end in any way
        place = _place(str(path), error)
        raise InputError(field, str(path), f"importing it failed{place and f' {place}'}: {_said(error)}") from error
    return module


def _said(error: BaseException) -> str:
    """An error in words; some have none of their own."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(path: str, error: BaseException) -> str:
    """``in plan(), line 6``: the last frame of a traceback that lies in a file; empty if none does."""
    file = Path(path).resolve()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == file]
    if not frames:
        return ""
    name = frames[-1].name
    return f"in line {frames[-1].lineno}" if name == "<module>" else f"in {name}(), line {frames[-1].lineno}"


@contextlib.contextmanager
def policy_named(
    policy: str, field: str = "--engine", elsewhere: str = "in a step that plan() asked for"
) -> Iterator[None]:
    """Turn whatever a user's policy file does wrong into one line that names the file, the method and its line.

    Args:
        policy: as the user named it.
        field: into which they typed it.
        elsewhere: where it failed, if no line of the file is to blame.

    Raises:
        InputError: it failed, or planned what cannot be. Errors of built-in policies are bugs of ours and pass through.
    """
    if not policy.endswith(".py"):
        yield
        return
    try:
        yield
    except PlimsollError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(policy, error) or elsewhere
        raise InputError(field, policy, f"it failed {place}: {_said(error)}") from error


def _with_method(cls: type, package: str, name: str, field: str) -> type:
    """A user's class, if it has the method of its kind; a policy's plans are looked at from then on."""
    signature = METHODS.get(package, "")
    method = getattr(cls, signature.partition("(")[0], None) if signature else None
    if signature and (not callable(method) or method is GeneralPolicy.plan):
        raise InputError(field, name, f"its class {cls.__name__} has no method {signature}")
    if package == POLICIES and inspect.isfunction(method):
        cls.plan = _looked_at(method, name, field)  # type: ignore[attr-defined]  # a class of this import alone
    return cls


def _looked_at(plan: Callable[..., Any], name: str, field: str) -> Callable[..., Any]:
    """`plan`, with a refusal of what is no plan: the engine would fail on it later, in a place that tells nothing."""
    where = f"plan(), line {plan.__code__.co_firstlineno},"

    @functools.wraps(plan)
    def looked_at(self: object, view: Any) -> Any:
        answer = plan(self, view)
        if not isinstance(answer, (GeneralPlan, StepPlan)):
            kind = "GeneralPlan" if isinstance(self, GeneralPolicy) else "StepPlan"
            raise InputError(field, name, f"{where} returned {answer!r:.60}; return a {kind}")
        wrong = _wrong_in(answer, view)
        if wrong:
            raise InputError(field, name, f"{where} {wrong}")
        return answer

    return looked_at


def _wrong_in(plan: StepPlan, view: Any) -> str:
    """What the engine could not carry out of a plan, in words; empty if nothing."""
    holds, chunks = plan.holds, plan.chunks
    if type(holds) is not int or holds < 1:
        return f"planned holds={holds!r:.40}; write a whole number (int) of steps, at least 1, or UNLIMITED"
    if not isinstance(chunks, (list, tuple)) or not all(isinstance(c, (list, tuple)) and len(c) == 2 for c in chunks):
        return f"planned the chunks {chunks!r:.60}; write a list of pairs (request, tokens)"
    known, planned = len(view.requests), dict.fromkeys((request for request, _ in chunks), 0)
    for request, tokens in chunks:
        if type(request) is not int or not 0 <= request < known:
            return f"planned request {request!r:.40}; there are those from 0 to {known - 1}"
        if type(tokens) is not int or tokens < 1:
            shown = f"{tokens!r:.40} tokens of request {request}"
            return f"planned {shown}; plan at least 1" if type(tokens) is int else f"planned {shown}; write an int"
        planned[request] += tokens
        left = _left_of(request, plan, view)
        if planned[request] > left:
            return f"planned {planned[request]} tokens of request {request}; {left} are left of its prompt"
    if chunks and holds > 1:
        if len(chunks) > 1:
            return f"planned {len(chunks)} chunks with holds={holds}; with several chunks a plan holds for 1 step"
        most = (left - 1) // tokens
        if holds > max(most, 1):
            shown = f"{tokens} tokens of request {request} with holds={holds}"
            return f"planned {shown}, of which none may end the prompt; write holds={max(most, 1)} at most"
    for name in ("fill", "then_fill", "spare", "pad_prompt", "pass_tokens"):
        value = getattr(plan, name, 0)  # some are of a GeneralPlan only
        if type(value) is not int or value < 0:
            return f"planned {name}={value!r:.40}; write a whole number (int), at least 0"
    until_s = getattr(plan, "until_s", 0.0)
    if until_s != until_s:
        return "planned until_s=nan; write a time in seconds"
    return ""


def _left_of(request: int, plan: StepPlan, view: Any) -> int:
    """Tokens of a request that a plan may have computed."""
    target: int = view.requests.target[request]
    if request in view.prefilling:
        return target - int(view.prefilling[request])
    if request in view.waiting:
        return target
    # Who gives way in this very plan computes its own tokens again too: how many is known when it has given way.
    return int(view.requests.final[request]) if request in plan.preempt else 0


def _class_in(module: ModuleType, stem: str, name: str, field: str) -> type:
    wanted = "".join(part.capitalize() for part in stem.replace("-", "_").split("_"))
    found = getattr(module, wanted, None)
    if not isinstance(found, type):
        raise InputError(field, name, f"the file must hold a class named {wanted}")
    return found


def runs_in_stages(policy: str) -> bool:
    """Whether a scheduling policy is simulated with pipeline stages.

    Raises:
        UnknownNameError, InputError: there is no such policy, or a user's file that cannot be read.
    """
    return bool(getattr(load_plugin(POLICIES, policy, "--engine"), "pipelined", True))


def construct(cls: type, name: str, config: object, options: Mapping[str, object]) -> object:
    """An instance of a plug-in class: `config` first, then its own options by keyword.

    Raises:
        InputError: an option that the plug-in does not have (lists those it has), or one of the wrong type; a user's
            class that cannot be made.
    """
    check_options(cls, name, options)
    with policy_named(name, elsewhere="while its class was made"):
        parameters = list(inspect.signature(cls).parameters.items())
        if not any(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for _, p in parameters):
            raise InputError("--engine", name, f"{cls.__name__} takes no config; write def __init__(self, config)")
        needed = [
            key for key, p in parameters[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if needed:
            remedy = f"__init__() takes a config; make {', '.join(needed)} an option, with a default, after a *"
            raise InputError("--engine", name, remedy)
        return cls(config, **options)


def check_options(cls: type, name: str, options: Mapping[str, object]) -> None:
    """Whether a plug-in class has these options, with values of their kinds.

    Raises:
        InputError: the first that it has not (lists those it has), or whose value is of another type.
    """
    known = option_defaults(cls)
    for key, value in options.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"option of {name}", key, f"its options are: {listed}")
        default = known[key]
        plain_number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        true_for_number = isinstance(value, bool) and not isinstance(default, bool)
        if default is inspect.Parameter.empty or plain_number:
            continue
        if not isinstance(value, type(default)) or true_for_number:
            raise InputError(f"option {key} of {name}", value, f"give a value like {default!r}")


def option_defaults(cls: type) -> dict[str, Any]:
    """A plug-in's own options by name, each with its default."""
    parameters = inspect.signature(cls).parameters
    return {key: p.default for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
