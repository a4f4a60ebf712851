"""A measured run: who was sent when, how long each request was, and when its first and last token came."""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plimsoll.core.columns import Columns, Floats, Ints, floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.workload import Workload

LONGEST_FILE_BYTES = 2 << 30


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredRun(Columns):
    """What a client or a server saw of `n` requests, sorted by the time at which they were sent.

    Attributes:
        name: for reports: the file, and the part of it.
        sent_s: ``float64[n]``, from zero.
        prompt_tokens, output_tokens: ``int64[n]``; requests without output are left out by the readers.
        ttft_s: ``float64[n]``: from sending to the first token.
        e2e_s: ``float64[n]``: from sending to the last token.
        concurrency: the client's cap of requests in flight; None where it sent by the clock.
        num_kv_blocks: blocks that the server printed, None where unknown.
        block_tokens, block_ids, block_offsets: contents of the prompts as chained block ids, where recorded
            (see `core.workload.Workload`).
    """

    name: str
    sent_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    e2e_s: Floats
    concurrency: int | None = None
    num_kv_blocks: int | None = None
    block_tokens: int | None = None
    block_ids: Ints | None = None
    block_offsets: Ints | None = None

    def __post_init__(self) -> None:
        if not len(self.sent_s):
            raise InputError(
                self.name, "no answered request", "a calibration needs requests with a first and last token"
            )
        if not bool(np.all(np.isfinite(self.ttft_s)) and np.all(self.ttft_s > 0) and np.all(self.e2e_s >= self.ttft_s)):
            raise InputError(
                self.name, "a time that is no time", "first tokens come after sending, last ones after first"
            )
        if float(self.e2e_s.max()) > 7 * 86400:
            raise InputError(self.name, float(self.e2e_s.max()), "no request takes a week: are these milliseconds?")
        self._freeze()

    def __len__(self) -> int:
        return len(self.sent_s)

    @property
    def tpot_s(self) -> Floats:
        """``float64[n]``: seconds per token after the first; NaN for answers of one token."""
        with np.errstate(invalid="ignore", divide="ignore"):
            gaps = (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)
        return np.where(self.output_tokens > 1, gaps, np.nan)

    def workload(self) -> Workload:
        """The same requests for an engine: by the clock, or by users who send when they are answered."""
        closed = self.concurrency is not None
        return Workload(
            arrival_s=floats(np.zeros(len(self))) if closed else self.sent_s,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            concurrency=self.concurrency,
            block_tokens=self.block_tokens,
            prompt_block_ids=self.block_ids,
            prompt_block_offsets=self.block_offsets,
            description=f"replay of {self.name}",
        )


class Reader(Protocol):
    """One file of ``readers``: a format of result files."""

    FORMAT: str

    def recognises(self, path: Path, head: str) -> bool:
        """Whether the file at `path`, which begins with `head`, is of this format."""
        ...

    def read(self, path: Path) -> list[MeasuredRun]:
        """All runs of the file; raises InputError."""
        ...


def list_readers() -> tuple[str, ...]:
    """The formats there are: the files of ``readers``."""
    folder = resources.files("plimsoll.calibration") / "readers"
    names = (entry.name for entry in folder.iterdir() if entry.name.endswith(".py"))
    return tuple(sorted(name.removesuffix(".py") for name in names if not name.startswith("_")))


def read_measured(path: Path, file_format: str | None = None) -> list[MeasuredRun]:
    """The runs of a result file, whose format is recognised by its content.

    Raises:
        InputError: a file that cannot be read, is of no known format, or holds nothing that can be used.
    """
    head = read_text(path, 4096)
    for name in [file_format] if file_format else list_readers():
        if name not in list_readers():
            raise InputError("--format", name, f"formats: {', '.join(list_readers())}")
        reader: Any = importlib.import_module(f"plimsoll.calibration.readers.{name}")
        if file_format or reader.recognises(path, head):
            runs: list[MeasuredRun] = reader.read(path)
            return runs
    raise InputError(str(path), head[:40], f"give a result file of: {', '.join(list_readers())}")


def read_text(path: Path, limit: int | None = None) -> str:
    """The text of a file, gzip or not; the first `limit` characters of it where given.

    Raises:
        InputError: it is missing, huge, no text, or broken.
    """
    try:
        if path.stat().st_size > LONGEST_FILE_BYTES:
            raise InputError(str(path), path.stat().st_size, "files of more than 2 GiB are not read")
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            text: str = file.read() if limit is None else file.read(limit)
            return text
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(str(path), "the file", f"it cannot be read ({reason})") from error


def read_json(path: Path) -> Any:
    """The JSON document in a file; raises InputError where it is none."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(str(path), "the file", f"it is not JSON ({error})") from error


def from_columns(
    name: str,
    sent_s: list[float],
    prompt_tokens: list[int],
    output_tokens: list[int],
    ttft_s: list[float],
    e2e_s: list[float],
    concurrency: int | None = None,
) -> MeasuredRun:
    """A run from lists of any order, sorted by sending and moved to zero; raises InputError for unequal lengths."""
    lengths = {len(column) for column in (sent_s, prompt_tokens, output_tokens, ttft_s, e2e_s)}
    if len(lengths) != 1:
        raise InputError(name, sorted(lengths), "its columns have different lengths; is the file cut?")
    sent = np.asarray(sent_s, dtype=np.float64)
    order = np.argsort(sent, kind="stable")
    start_s = float(sent.min()) if len(sent) else 0.0
    return MeasuredRun(
        name=name,
        sent_s=floats(sent[order] - start_s),
        prompt_tokens=ints(np.asarray(prompt_tokens, dtype=np.int64)[order]),
        output_tokens=ints(np.asarray(output_tokens, dtype=np.int64)[order]),
        ttft_s=floats(np.asarray(ttft_s, dtype=np.float64)[order]),
        e2e_s=floats(np.asarray(e2e_s, dtype=np.float64)[order]),
        concurrency=concurrency,
    )
