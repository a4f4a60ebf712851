"""What the measured tables answered, kept on disk, so that the next process need not open the tables at all.

A table's answer depends on the package's files and on the question, and on nothing else: kept answers are the same
floats, bit for bit. Files are named after a digest of the package (its version; path, size and time of every table file
and of its compiled code), so another installation has files of its own.

    <cache>/silicon/h100_sxm-0.24.0-<digest>.txt        <cache>: PLIMSOLL_CACHE, else XDG_CACHE_HOME/plimsoll
    crc32 key [[context, sequences, tokens, cached, rows, [milliseconds of each operator]], …]

Files are only ever appended to, whole lines in one write, so writers need no lock: what two of them find is there
twice. A line that does not match its checksum (a torn write, a full disk) is passed over, and asked again. A file above
`MAX_BYTES` is begun anew. Where nothing can be written (or ``PLIMSOLL_CACHE=off``) nothing is kept, silently: a cache
is no result.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "PLIMSOLL_CACHE"
OFF = ("off", "0", "no", "none")
FORMAT = 1
MAX_BYTES = 32 * 2**20
FORGET_AFTER_S = 30 * 86400
"""Files of other installations that nobody added to for so long are removed when a new one is begun."""
PER_LINE = 200
FLUSH_AT = 4096
"""Answers that a long-lived process gathers at most before it writes."""

Lines = dict[str, list[bytes]]
Question = tuple[bool, tuple[int, int, int], int | None]


def cache_folder() -> Path | None:
    """Where answers are kept; None where the environment says ``off`` or there is no home."""
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        return None if named.lower() in OFF else Path(named) / "silicon"
    base = os.environ.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():  # the XDG rules: a relative one is ignored
        return Path(base) / "plimsoll" / "silicon"
    try:
        return Path.home() / ".cache" / "plimsoll" / "silicon"
    except RuntimeError:
        return None


@functools.lru_cache(maxsize=4)
def package_digest(package: Path, version: str) -> str:
    """Of the installed package: its version, and path, size and time of its tables and of its compiled code."""
    seen = hashlib.sha256(f"{FORMAT} {version}".encode())
    for name, size, time_ns in sorted(_files(package / "systems")):
        seen.update(f"{name} {size} {time_ns}\n".encode())
    for path in sorted(package.glob("*.so")):
        status = path.stat()
        seen.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return seen.hexdigest()[:16]


def _files(folder: Path | str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path)
            else:
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns


class KeptAnswers:
    """The answers of one GPU's tables.

    Args:
        path: the file; None keeps nothing.
        handed: lines by key that another process of this search has found (`hand_over`).
    """

    def __init__(self, path: Path | None, handed: Lines | None = None) -> None:
        self._path = path
        self._lines: Lines = {}
        self.learn(handed or {})
        self._fresh: dict[str, list[Any]] = {}
        self._num_fresh = 0
        self._owner = os.getpid()
        if path is not None:
            self._read(path)

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self._lines)

    def _read(self, path: Path) -> None:
        """Sort the lines by their key; they are parsed when somebody asks for theirs."""
        try:
            if path.stat().st_size > MAX_BYTES:
                path.unlink()
                return
            content = path.read_bytes()
        except OSError:
            return
        for line in content.split(b"\n"):
            checksum, _, rest = line.partition(b" ")
            key, _, text = rest.partition(b" ")
            if text and checksum == b"%08x" % zlib.crc32(rest):
                self._lines.setdefault(key.decode("ascii", "replace"), []).append(text)

    def _parsed(self, key: str) -> Iterator[Any]:
        for line in self._lines.get(key, ()):
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def learn(self, handed: Lines) -> None:
        """Know what another process has found; not to be written, the other one does."""
        for key, lines in handed.items():
            self._lines.setdefault(key, []).extend(lines)

    def answers(self, text: str) -> dict[Question, list[float]]:
        """What is known of the operators `text`: milliseconds of each, by question."""
        known: dict[Question, list[float]] = {}
        size = len(json.loads(text)) if self._lines else 0
        for entries in self._parsed(_key(text)):
            for context, sequences, tokens, cached, rows, each_ms in entries:
                if len(each_ms) == size and all(math.isfinite(one) for one in each_ms):
                    known[bool(context), (sequences, tokens, cached), rows] = each_ms
        return known

    def order(self, table: str) -> list[str] | None:
        """The order of kernels of an attention table, where it is known."""
        found = list(self._parsed(f"order:{table}"))
        return found[-1] if found else None

    def add(self, text: str, question: Question, each_ms: list[float]) -> None:
        """Take in an answer; it is on disk after the next `flush`."""
        context, work, rows = question
        self._gather(_key(text), (context, *work, rows, each_ms))

    def add_order(self, table: str, order: list[str]) -> None:
        """Take in an order of kernels."""
        self._gather(f"order:{table}", order)

    def _gather(self, key: str, entry: Any) -> None:
        if self._path is None and not _handing:
            return
        if self._owner != os.getpid():  # a forked worker: what it was born with is its parent's to write
            self._owner, self._fresh, self._num_fresh = os.getpid(), {}, 0
        self._fresh.setdefault(key, []).append(entry)
        self._num_fresh += 1
        if self._num_fresh >= FLUSH_AT and not _handing:
            self.flush()

    def fresh_lines(self) -> Lines:
        """What this process has learnt since the last `flush`."""
        found: Lines = {}
        if self._owner != os.getpid():
            return found
        for key, entry in self._pieces():
            found.setdefault(key, []).append(_text(entry))
        return found

    def flush(self) -> None:
        """Append what is new. Errors of the file system end the keeping, nothing else."""
        if self._path is None or not self._fresh or self._owner != os.getpid():
            return
        content = b"\n" + b"".join(_line(key, entry) for key, entry in self._pieces())  # past whatever was torn
        self._fresh, self._num_fresh = {}, 0
        try:
            if not self._path.exists():
                _make_room(self._path.parent)
            with self._path.open("ab", buffering=0) as file:
                file.write(content)
        except OSError:
            self._path = None

    def _pieces(self) -> Iterator[tuple[str, Any]]:
        for key, entries in self._fresh.items():
            if key.startswith("order:"):
                yield key, entries[-1]
                continue
            for start in range(0, len(entries), PER_LINE):
                yield key, entries[start : start + PER_LINE]


@functools.lru_cache(maxsize=4096)
def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _text(entry: Any) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode()


def _line(key: str, entry: Any) -> bytes:
    rest = b"%b %b" % (key.encode(), _text(entry))
    return b"%08x %b\n" % (zlib.crc32(rest), rest)


def _make_room(folder: Path) -> None:
    """Make the folder, and remove the files that nobody added to for long."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob("*.txt"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > FORGET_AFTER_S:
                path.unlink()


_open: dict[tuple[str, str], KeptAnswers] = {}
_handed: dict[tuple[str, str], Lines] = {}
_handing: list[bool] = []


def open_kept(package: Path, package_version: str, system: str, version: str) -> KeptAnswers:
    """The kept answers of one GPU under one engine version; written when the process ends at the latest."""
    if not _open:
        atexit.register(flush_all)
    kept = KeptAnswers(_file(package, package_version, f"{system}-{version}"), _handed.get((system, version)))
    _open[system, version] = kept
    return kept


def _file(package: Path, package_version: str, name: str) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    named = "".join(ch if ch.isalnum() or ch in "._-" else "_" for ch in name)
    try:
        return folder / f"{named}-{package_digest(package, package_version)}.txt"
    except OSError:
        return None


def flush_all() -> None:
    """Write what every open table has learnt: at the end of a process, or of a worker's task."""
    for one in _open.values():
        one.flush()


def hand_over_from_here() -> None:
    """In a process that another one waits for: gather what the tables answer, whether it is kept or not."""
    _handing.append(True)


def hand_over() -> dict[tuple[str, str], Lines]:
    """What the tables of this process have answered since `hand_over_from_here`, for `take_over` in the other one."""
    return {name: kept.fresh_lines() for name, kept in _open.items()}


def take_over(found: dict[tuple[str, str], Lines]) -> None:
    """Know what another process has asked, of tables that this one has opened and of others."""
    for name, lines in found.items():
        if name in _open:
            _open[name].learn(lines)
    _handed.update(found)
