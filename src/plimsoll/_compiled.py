"""Whether the engine runs compiled: C extensions beside their source, made by ``hatch_build.py`` at installation.

They are used unless ``PLIMSOLL_COMPILED=off`` says otherwise, or, in a checkout, a source file has changed since: then
all of the source is. Results are the same to the last bit.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

RECORD = Path(__file__).with_name("_compiled.json")
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
NOT_COMPILED = "no extensions were made when it was installed; in a checkout `make compile` makes them"


class SourceOnly:
    """Finds this package's modules as source, whatever else lies beside it. A finder for `sys.meta_path`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The source of a module of this package; None for any other.

        Raises:
            ModuleNotFoundError: an extension is left of it, and no source.
        """
        if path is None or not fullname.startswith("plimsoll."):
            return None
        kind = (SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES)
        for entry in path:
            spec = FileFinder(entry, kind).find_spec(fullname, target)
            if spec is not None:
                return spec
            if Path(entry, fullname.rpartition(".")[2] + SUFFIX).exists():
                raise ModuleNotFoundError(f"of {fullname} there is an extension, but no source", name=fullname)
        return None


def choose() -> str:
    """Decide once, before the engine is imported; returns what ``plimsoll --version`` says of it."""
    why = _why_interpreted()
    if not why:
        return "engine compiled"
    sys.meta_path.insert(0, SourceOnly())  # no subclass: importing `importlib.abc` takes as long as all of this
    return f"engine interpreted: {why}"


def _why_interpreted() -> str:
    if os.environ.get("PLIMSOLL_COMPILED") == "off":
        return "PLIMSOLL_COMPILED=off"
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return NOT_COMPILED
    if record["suffix"] != SUFFIX:
        return "it was compiled for another Python"
    if not RECORD.parent.with_name(f"plimsoll__mypyc{SUFFIX}").exists():
        return NOT_COMPILED
    for name, written in record["sources"].items():
        try:
            stat = (RECORD.parent.parent / name).stat()
        except FileNotFoundError:
            stat = None
        if stat is None or [stat.st_mtime_ns, stat.st_size] != written:
            return f"{name} has changed since it was compiled; `make compile` compiles it again"
    return ""
