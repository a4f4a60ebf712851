"""`python -m validation SUITE --data PATH… [--json]`: exit code 0 passed, 1 failed, 2 the input is wrong."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import validation
from plimsoll.core.errors import InputError, PlimsollError

FILES = {"schedules": ("*.jsonl.gz", "*.jsonl"), "inferencex": ("*.csv",), "ml-energy": ("llm_text.csv",)}
"""Suites that read single files, and which files of a folder those are; the other suites read folders."""


def main() -> int:
    """Run one suite and print its result."""
    suites = sorted(info.name for info in pkgutil.iter_modules(validation.__path__) if not info.name.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m validation", description=validation.__doc__)
    parser.add_argument("suite", choices=[name.replace("_", "-") for name in suites])
    parser.add_argument("--data", nargs="+", default=[], type=Path, help="files or folders in the suite's format")
    parser.add_argument("--limit", type=int, help="at most this many rows, evenly spread, where the suite has rows")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    suite = importlib.import_module(f"validation.{arguments.suite.replace('-', '_')}")
    if not arguments.data and not getattr(suite, "DEFAULT_DATA", False):
        parser.error(f"suite {arguments.suite} needs --data PATH")
    options: dict[str, Any] = {} if arguments.limit is None else {"limit": arguments.limit}
    if options and "limit" not in inspect.signature(suite.run).parameters:
        parser.error(f"suite {arguments.suite} has no --limit")
    try:
        paths = files_of(arguments.suite, arguments.data)
        getattr(suite, "check", lambda _: None)(paths)
        result = {"suite": arguments.suite, **suite.run(paths, **options)}
    except PlimsollError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result.pop("plots", None)  # for the page that `_report` writes
    verdict = "passed" if result["passed"] else "FAILED"
    _say(json.dumps(result, indent=2) if arguments.json else f"{arguments.suite}: {verdict}: {result['summary']}")
    return 0 if result["passed"] else 1


def files_of(suite: str, paths: Sequence[Path]) -> list[Path]:
    """The paths with folders replaced by the suite's files in them, where it reads files.

    Raises:
        InputError: a folder that holds none.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if suite in FILES and path.is_dir():
            inside = sorted(file for pattern in FILES[suite] for file in path.glob(pattern) if file.is_file())
        if not inside:
            raise InputError("--data", str(path), f"this folder holds no {' or '.join(FILES[suite])}")
        found += inside
    return found


def _say(text: str) -> None:
    """Print; a reader that has gone (``| head``) is no error, and Python must not say so at exit."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
