"""`python -m validation SUITE --data PATH… [--json]`: exit code 0 passed, 1 failed, 2 the input is wrong."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

import validation
from plimsoll.core.errors import PlimsollError


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
        result = {"suite": arguments.suite, **suite.run(arguments.data, **options)}
    except PlimsollError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result.pop("plots", None)  # for the page that `_report` writes
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{arguments.suite}: {'passed' if result['passed'] else 'FAILED'}: {result['summary']}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
