"""Compile the engine while the package is installed: the same source, several times as fast, or left as it is.

    python hatch_build.py        compile in this checkout, unless nothing has changed

mypyc turns the modules below into C extensions that lie beside their source. Without a C compiler, or where compiling
fails, the package is installed all the same and the engine is interpreted: same results, to the last bit. Installing
with ``PLIMSOLL_COMPILED=off`` leaves it interpreted. What is loaded says `plimsoll --version`.

In a checkout `plimsoll._compiled` prefers source that has been edited since: so its times are written down beside it.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "src"
RECORD = Path("plimsoll/_compiled.json")
COMPILED = (
    "plimsoll/engine/requests.py",
    "plimsoll/engine/policy.py",
    "plimsoll/engine/policies/*.py",
    "plimsoll/engine/fleets/*.py",
    "plimsoll/engine/replicas/*.py",
    "plimsoll/engine/general/*.py",
    "plimsoll/engine/prefix/*.py",
    "plimsoll/engine/arrivals.py",
    "plimsoll/engine/pools/*.py",
    "plimsoll/engine/clusters/*.py",
    "plimsoll/engine/routers/*.py",
    "plimsoll/engine/andes_ranking.py",
    "plimsoll/engine/sglang_budget.py",
    "plimsoll/engine/sglang_rules.py",
)
"""What is compiled, of ``src``; not `__init__` files."""
INTERPRETED: dict[str, str] = {}
"""What is not, although it is among them, and why."""
INTERPRETED_STILL = "the engine stays interpreted, which is slower: compiling it failed"
CHECKS = ("--ignore-missing-imports", "--follow-imports=silent", "--no-site-packages", "--cache-dir=/dev/null")
FLAGS = ("-ffp-contract=off",)
"""A multiplication and an addition stay two roundings, as in Python."""


class EngineHook(BuildHookInterface):  # type: ignore[misc, type-arg, unused-ignore]
    """Compiles before a wheel is put together, or an editable one."""

    _folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile in a folder of its own for a wheel, in place for an editable install."""
        if version == "editable":
            compile_in_place(SOURCE)
            return
        self._folder = Path(tempfile.mkdtemp(prefix="plimsoll-"))
        built = try_to_compile(SOURCE, folder := self._folder)
        if built:
            (folder / RECORD).write_text(json.dumps({"suffix": suffix(), "sources": {}}), encoding="utf-8")
            build_data["force_include"].update({str(folder / path): str(path) for path in (*built, RECORD)})
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel has them now."""
        del version, build_data, artifact_path
        if self._folder is not None:
            shutil.rmtree(self._folder)


def modules(source: Path) -> list[Path]:
    """The modules to compile, relative to `source`."""
    found = {path.relative_to(source) for pattern in COMPILED for path in source.glob(pattern)}
    return sorted(path for path in found if path.name != "__init__.py" and path.as_posix() not in INTERPRETED)


def compile_in_place(source: Path) -> bool:
    """Put the extensions beside the modules, unless they are there; returns whether they are."""
    record, now = source / RECORD, {"suffix": suffix(), "sources": times_of(source)}
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) == now:
        return True
    try:
        record.unlink(missing_ok=True)  # from here on the source counts, until all are there
        remove_extensions(source)
        with tempfile.TemporaryDirectory(prefix="plimsoll-") as folder:
            built = try_to_compile(source, Path(folder))
            for path in built:
                shutil.move(Path(folder) / path, source / path)
        if built:
            record.write_text(json.dumps(now, indent=1), encoding="utf-8")
    except OSError as error:
        print(f"{INTERPRETED_STILL} ({error})", file=sys.stderr)
        return False
    return bool(built)


def remove_extensions(source: Path) -> None:
    """Remove every extension, of whatever Python."""
    for old in [*source.glob("plimsoll__mypyc.*"), *(source / "plimsoll").rglob("*" + suffix())]:
        old.unlink()


def times_of(source: Path) -> dict[str, list[int]]:
    """When each module was written last, and its size."""
    stats = {path.as_posix(): (source / path).stat() for path in modules(source)}
    return {path: [stat.st_mtime_ns, stat.st_size] for path, stat in stats.items()}


def suffix() -> str:
    """What the name of an extension ends in, for this Python on this machine."""
    return importlib.machinery.EXTENSION_SUFFIXES[0]


def try_to_compile(source: Path, folder: Path) -> list[Path]:
    """Compile into `folder`; returns the extensions there, none where that was not possible, with the reason printed.

    NOTE: mypyc and the C compiler end the process, or raise what they like.
    """
    if os.environ.get("PLIMSOLL_COMPILED") == "off":
        return []
    try:
        with working_in(source), contextlib.redirect_stdout(io.StringIO()):  # every command of the C compiler
            _compile([path.as_posix() for path in modules(source)], folder)
    except (Exception, SystemExit) as error:
        print(f"{INTERPRETED_STILL} ({error})", file=sys.stderr)
        return []
    return [path.relative_to(folder) for path in sorted(folder.rglob("*" + suffix()))]


def _compile(paths: list[str], folder: Path) -> None:
    from mypyc.build import mypycify  # type: ignore[import-untyped, unused-ignore]
    from setuptools import Distribution  # type: ignore[import-untyped, unused-ignore]
    from setuptools._distutils.unixccompiler import UnixCCompiler  # type: ignore[import-untyped, unused-ignore]

    with tempfile.TemporaryDirectory(prefix="plimsoll-c-") as temporary:
        extensions = mypycify(
            [*CHECKS, *paths],
            opt_level="3",
            debug_level="0",
            multi_file=True,
            group_name="plimsoll",
            target_dir=temporary,
        )
        for extension in extensions:
            extension.extra_compile_args.extend(FLAGS if os.name == "posix" else ())
        build = Distribution({"name": "plimsoll", "ext_modules": extensions}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(folder), temporary
        build.ensure_finalized()
        with side_by_side(UnixCCompiler):
            build.run()


@contextlib.contextmanager
def side_by_side(compiler: Any) -> Iterator[None]:
    """Let a compiler work on as many files as there are processors."""
    one_by_one = compiler.compile

    def compile_all(self: Any, sources: list[str], *args: Any, **options: Any) -> list[str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(one_by_one, self, [source], *args, **options) for source in sources]
            return [made for job in jobs for made in job.result()]

    compiler.compile = compile_all
    try:
        yield
    finally:
        compiler.compile = one_by_one


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Be in `folder`: mypyc names modules by where they lie from here."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    print("compiled" if compile_in_place(SOURCE) else "interpreted")
