"""The only door to `aiconfigurator-core`: its measured tables for one GPU, engine and version. Nothing is downloaded.

Written against aiconfigurator-core 0.12: `sdk.perf_database.get_database`, and the compiled engine's evaluation of
lists of operators (1 to 2 µs an operator, 40 µs for the attention of a batch). The package is imported on first use.

Opening the tables of a GPU costs 0.1 s and their first use 0.3 s, in compiled code that holds the interpreter's lock.
What else the package does on the way is left out where it cannot change an answer (`_c_yaml`, `_lane_order`), and the
tables are opened when the first question comes that no earlier process has asked (`silicon_kept`).

An operator is asked once for every number of rows: its seconds are a multiple of those of one layer, so that pipeline
stages, token budgets and operators of equal shape share them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.core.errors import MissingExtraError, OutOfRangeError
from plimsoll.perf.silicon_kept import Question, open_kept

PACKAGE = "aiconfigurator_core"
BACKEND = "vllm"
QUIET = ("aiconfigurator_core", "aiconfigurator")


def systems_folder() -> Path | None:
    """Where the package keeps its tables; None where it is not installed. Imports nothing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "systems"


def _plain(text: str) -> str:
    return "".join(ch for ch in text.lower() if ch.isalnum())


def find_system(gpu: Accelerator) -> str | None:
    """The package's name of `gpu`, where it has vLLM tables of its matrix products; else None."""
    folder = systems_folder()
    if folder is None or not (folder / "data").is_dir():
        return None
    names = {_plain(name) for name in (gpu.id, gpu.name, *gpu.aliases)}
    for path in sorted((folder / "data").iterdir()):
        if _plain(path.name) in names and (path / "gemm" / BACKEND).is_dir():
            return path.name
    return None


def newest_version(system: str) -> str:
    """The newest released vLLM whose matrix products were measured on `system`, empty where there is none.

    Read from the folder names: the package's own search parses a second's worth of YAML.
    """
    folder = systems_folder()
    if folder is None:
        return ""
    names = [path.name for path in (folder / "data" / system / "gemm" / BACKEND).glob("*.*.*")]
    released = [name for name in names if all(part.isdigit() for part in name.split("."))]
    return max(released, key=lambda name: tuple(int(part) for part in name.split(".")), default="")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The package logs every table it loads from elsewhere; which version answers is in `describe` instead."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _c_yaml() -> Iterator[None]:
    """The package reads the description of every GPU with PyYAML's slow loader; libyaml's gives the same objects."""
    import yaml

    slow = yaml.SafeLoader
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", slow)  # type: ignore[misc]
    try:
        yield
    finally:
        yaml.SafeLoader = slow  # type: ignore[misc]


class Compiled(NamedTuple):
    """Operators as `SiliconTables.evaluate` takes them.

    Attributes:
        text: the distinct ones, each once and for one layer.
        terms: of every operator in the order given, its place in `text` and how often it runs in a step.
    """

    text: str
    terms: tuple[tuple[int, float], ...]


class SiliconTables:
    """Measured operators of one GPU under one engine version.

    Attributes:
        system: the package's name of the GPU.
        version: of the engine that was measured.
        package_version: the installed one of aiconfigurator-core.
    """

    def __init__(self, system: str, version: str) -> None:
        with _quiet(), _c_yaml():
            from aiconfigurator_core.sdk import common, engine, operations

        self._engine, self.operations, self.common = engine, operations, common
        self.system, self.version = system, version or newest_version(system)
        self.package_version = _package_version()
        self._lanes: dict[str, list[str]] = {}
        self._answers: dict[str, dict[Question, list[float]]] = {}
        package = Path(engine.__file__).parent.parent
        self._kept = open_kept(package, self.package_version, system, self.version)
        if not self._kept:
            _ = self._handle  # what is wrong with it shows now

    @functools.cached_property
    def _database(self) -> Any:
        """The package's tables of this GPU.

        Raises:
            OutOfRangeError: it has none.
        """
        with _quiet(), _c_yaml():
            from aiconfigurator_core.sdk import perf_database

            found = perf_database.get_database(self.system, BACKEND, self.version) if self.version else None
        if found is None:
            raise OutOfRangeError(f"aiconfigurator-core has no {BACKEND} {self.version} tables of {self.system}")
        return found

    @functools.cached_property
    def _handle(self) -> Any:
        """The compiled engine over them."""
        database = self._database
        with _quiet(), _c_yaml():
            return self._engine._probe_handle_for(database, "SILICON")

    def compile(self, *ops: Any) -> Compiled:
        """Operators of the package in the form that `evaluate` takes."""
        places: dict[str, int] = {}
        terms = []
        for spec in json.loads(self._engine.build_ops_json(list(ops))):
            ((kind, fields),) = spec.items()
            alike = json.dumps([kind, {**fields, "name": "", "scale_factor": 1.0}])
            terms.append((places.setdefault(alike, len(places)), float(fields["scale_factor"])))
        distinct = []
        for alike, place in places.items():
            kind, fields = json.loads(alike)
            distinct.append({kind: {**fields, "name": str(place)}})
        return Compiled(json.dumps(distinct), tuple(terms))

    def choose_kernels(self, prefill: Any, decode: Any) -> None:
        """Let attention operators take the kernels that the measured engine version would."""
        prefill._lane_order = self._lane_order("context_attention")
        decode._lane_order = self._lane_order("generation_attention")

    def _lane_order(self, table: str) -> list[str]:
        """The package's own order of kernels for one of its two attention tables.

        It ranks kernels by their rows in all tables and by those of the requested version alone, for which it loads the
        tables a second time. Where there are no others, the second ranking is the first.
        """
        if table in self._lanes:
            return self._lanes[table]
        kept = self._kept.order(table)
        if kept is None:
            from aiconfigurator_core.sdk import engine_table_view
            from aiconfigurator_core.sdk.operations import attention

            database, attribute = self._database, f"_{table}_data"
            with _quiet(), _c_yaml():
                if self._is_unmixed(f"{table}_perf.parquet"):
                    database._source_reports_materialized = True  # only warns of other tables, and that is silenced
                    density = engine_table_view.fetch_attention_lane_density(database, attribute)
                    database._attention_lane_density_cache[1][attribute, False] = density
                kept = list(attention.resolved_lane_order_for_op(database, attribute))
            self._kept.add_order(table, kept)
        self._lanes[table] = kept
        return kept

    def _is_unmixed(self, filename: str) -> bool:
        """Whether a table has rows of the requested engine and version only."""
        from aiconfigurator_core.sdk import common
        from aiconfigurator_core.sdk.operations import base

        database = self._database
        folder = str(Path(database.systems_root) / database.system_spec["data_dir"])
        named = common.PerfDataFilename(filename)
        path = base.resolve_op_data_path(folder, BACKEND, self.version, filename)
        database._build_op_sources(named, path, folder)
        return [record["channel"] for record in database.data_provenance[filename]] == ["primary"]

    def evaluate(
        self, compiled: Compiled, *, context: bool = True, work: tuple[int, int, int], rows: int | None = None
    ) -> float:
        """Seconds of all operators of `compiled` together.

        Args:
            compiled: from `compile`.
            context: whether attention runs over prompts.
            work: sequences, tokens of each (new ones of a prompt; cached ones of a decode), cached tokens of a prompt.
            rows: tokens of the step for everything that is not attention.

        Raises:
            OutOfRangeError: the tables lack what one of the operators needs.
        """
        known = self._answers.get(compiled.text)
        if known is None:
            known = self._answers[compiled.text] = self._kept.answers(compiled.text)
        question = (context, work, rows)
        each_ms = known.get(question)
        if each_ms is None:
            each_ms = known[question] = self._ask(compiled.text, *question)
            self._kept.add(compiled.text, question, each_ms)
        total_ms = 0.0
        for place, times in compiled.terms:
            total_ms += each_ms[place] * times
        return total_ms / 1e3

    def _ask(self, text: str, context: bool, work: tuple[int, int, int], rows: int | None) -> list[float]:
        """Milliseconds of each operator of `text`."""
        sequences, tokens, cached = work
        handle = self._handle
        try:
            answers = handle.evaluate_ops_json(
                text,
                is_context=context,
                batch_size=sequences,
                s=tokens,
                prefix=cached,
                imbalance_correction_scale=1.0,
                x=rows,
            )
        except Exception as error:  # the package raises its own classes, and ValueError from compiled code
            reason = " ".join(str(error).split())
            raise OutOfRangeError(reason.split(" at /")[0][:200]) from error
        by_name = {name: float(latency_ms) for name, latency_ms, _, _ in answers}
        return [by_name[str(place)] for place in range(len(by_name))]


@functools.cache
def _package_version() -> str:
    """Installed version of aiconfigurator-core."""
    from importlib import metadata

    return metadata.version("aiconfigurator-core")


@functools.lru_cache(maxsize=8)
def load_tables(system: str, version: str = "") -> SiliconTables:
    """The tables of `system` (0.3 to 1 s on first use).

    Raises:
        MissingExtraError: aiconfigurator-core is not installed, or not loadable on this machine.
        OutOfRangeError: it has no such version.
    """
    try:
        return SiliconTables(system, version)
    except ImportError as error:
        raise MissingExtraError("the silicon step model", "silicon") from error
