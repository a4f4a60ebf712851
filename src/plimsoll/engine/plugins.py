"""Finds a policy or a router by name: one file, one class, no registry.

The class of a file is the one named like it: ``vllm_v1.py`` holds ``VllmV1``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from plimsoll.core.errors import InputError, UnknownNameError


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
        return _class_in(_import_file(path, field), path.stem, name, field)
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
    except Exception as error:  # a user's file may fail in any way
        raise InputError(field, str(path), f"importing it failed: {type(error).__name__}: {error}") from error
    return module


def _class_in(module: ModuleType, stem: str, name: str, field: str) -> type:
    wanted = "".join(part.capitalize() for part in stem.replace("-", "_").split("_"))
    found = getattr(module, wanted, None)
    if not isinstance(found, type):
        raise InputError(field, name, f"the file must hold a class named {wanted}")
    return found


def construct(cls: type, name: str, config: object, options: Mapping[str, object]) -> object:
    """An instance of a plug-in class: `config` first, then its own options by keyword.

    Raises:
        InputError: an option that the plug-in does not have (lists those it has), or one of the wrong type.
    """
    parameters = inspect.signature(cls).parameters
    known = {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"option of {name}", key, f"its options are: {listed}")
        default = known[key].default
        if not isinstance(value, type(default)) and not (isinstance(default, float) and isinstance(value, int)):
            raise InputError(f"option {key} of {name}", value, f"give a value like {default!r}")
    return cls(config, **options)


def option_defaults(cls: type) -> dict[str, Any]:
    """A plug-in's own options by name, each with its default."""
    parameters = inspect.signature(cls).parameters
    return {key: p.default for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
