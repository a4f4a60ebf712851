"""Finds a policy or a router by name: one file, one class, no registry.

The class of a file is the one named like it: ``vllm_v1.py`` holds ``VllmV1``. Whatever a user's file does wrong becomes
one line that names the file, the method and the line in it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from plimsoll.core.errors import InputError, PlimsollError, UnknownNameError
from plimsoll.engine.general.plan import GeneralPolicy
from plimsoll.engine.users_own import is_ours, look_at_policy, look_at_router, place_in, said

POLICIES = "plimsoll.engine.policies"
LARGEST = 2**62
"""What the engine calculates with: a larger whole number is no setting."""
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


def text_of(package: str, name: str) -> str:
    """What a plug-in's file says of itself, from the file: a compiled module does not keep it."""
    folder = importlib.import_module(package).__path__[0]
    source = Path(folder, f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source), clean=False) or ""


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
        place = place_in(str(path), error)
        raise InputError(field, str(path), f"importing it failed{place and f' {place}'}: {said(error)}") from error
    return module


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
        place = place_in(policy, error) or elsewhere
        raise InputError(field, policy, f"it failed {place}: {said(error)}") from error


def _with_method(cls: type, package: str, name: str, field: str) -> type:
    """A user's class, if it has the method of its kind; what its methods answer is looked at from then on."""
    signature = METHODS.get(package, "")
    method = getattr(cls, signature.partition("(")[0], None) if signature else None
    if signature and (not callable(method) or method is GeneralPolicy.plan):
        raise InputError(field, name, f"its class {cls.__name__} has no method {signature}")
    if signature and not is_ours(cls):
        (look_at_policy if package == POLICIES else look_at_router)(cls, name, field)
    return cls


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
    defaults = option_defaults(cls)
    with policy_named(name, elsewhere="while its class was made"):
        parameters = list(parameters_of(cls).items())
        if not any(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for _, p in parameters):
            raise InputError("--engine", name, f"{cls.__name__} takes no config; write def __init__(self, config)")
        needed = [
            key for key, p in parameters[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if needed:
            remedy = f"__init__() takes a config; make {', '.join(needed)} an option, with a default, after a *"
            raise InputError("--engine", name, remedy)
        return cls(config, **{key: _as_default(value, defaults.get(key)) for key, value in options.items()})


def _as_default(value: object, default: object) -> object:
    """An option that is a float as one, which a compiled class would make of it anyway."""
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def check_size(field: str, value: object) -> None:
    """Whether an option, if it is a whole number, can be calculated with.

    Raises:
        InputError: it is too large.
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(field, value, f"give a whole number of at most {LARGEST}")


def check_options(cls: type, name: str, options: Mapping[str, object]) -> None:
    """Whether a plug-in class has these options, with values of their kinds.

    Raises:
        InputError: the first that it has not (lists those it has), or whose value is of another type or too large.
    """
    known = option_defaults(cls)
    for key, value in options.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"option of {name}", key, f"its options are: {listed}")
        check_size(f"option {key} of {name}", value)
        default = known[key]
        plain_number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        true_for_number = isinstance(value, bool) and not isinstance(default, bool)
        if default is inspect.Parameter.empty or plain_number:
            continue
        if not isinstance(value, type(default)) or true_for_number:
            raise InputError(f"option {key} of {name}", value, f"give a value like {default!r}")


def option_defaults(cls: type) -> dict[str, Any]:
    """A plug-in's own options by name, each with its default."""
    return {key: p.default for key, p in parameters_of(cls).items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


@functools.lru_cache(maxsize=64)
def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """What a plug-in class is made with: by name, in order. Not to be changed: a cluster makes many of a class."""
    texts = () if inspect.isfunction(cls.__init__) else cls.__mro__[:-1]  # type: ignore[misc]  # of the class itself
    text = next(filter(None, (base.__text_signature__ for base in texts)), "")
    return _parameters_in(text) if text else dict(inspect.signature(cls).parameters)


def _parameters_in(text: str) -> dict[str, inspect.Parameter]:
    """Those of a compiled class, which has them as a text: `inspect` would take many times as long to read it.

    NOTE: where a float is among its options mypyc says that all parameters go by place, so defaults tell options.
    """
    (function,) = ast.parse(f"def __init__{text}: ...").body
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    placed = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(placed) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    parameters: dict[str, inspect.Parameter] = {}
    for at, (argument, default) in enumerate(zip([*placed, *given.kwonlyargs], defaults, strict=True)):
        by_name = default is not None or at >= len(placed)
        kind = inspect.Parameter.KEYWORD_ONLY if by_name else inspect.Parameter.POSITIONAL_OR_KEYWORD
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        parameters[argument.arg] = inspect.Parameter(argument.arg, kind, default=value)
    return parameters
