"""A measured run: who was sent when, how long each request was, and when its first and last token came."""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plimsoll.core.columns import Columns, Floats, Ints, floats, ints
from plimsoll.core.errors import InputError
from plimsoll.core.workload import Workload

LONGEST_FILE_BYTES = 2 << 30
MOST_TOKENS = 10**9
CACHED_FRAC = 0.02
"""More prompt tokens than this share from the server's prefix cache are said: their contents are in no result file."""
LIGHTER_REPLAY_FRAC = 0.1
"""Where more than this share of the requests was cut off, the replay is said to be lighter than what was measured."""

Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One answered request as a reader found it.

    Attributes:
        sent_s: when it was sent, on any clock.
        prompt_tokens, output_tokens: as the server counted them where the file has that.
        ttft_s, e2e_s: from sending to the first and to the last token.
        cached_tokens: of the prompt, those that the server says it had in its prefix cache.
        is_counted: False where the client's own summary leaves it out (warm-up, cool-down): it is replayed, not judged.
    """

    sent_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float
    cached_tokens: int = 0
    is_counted: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What a file says of the server that was measured.

    Attributes:
        file: that says so.
        model, gpu: names as they stand there; None where it names none.
        is_alias: the model's name is what clients called it, which a server may choose freely.
    """

    file: str
    model: str | None = None
    gpu: str | None = None
    is_alias: bool = False


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
        is_counted: ``bool[n]``: requests that are fitted and judged; the others are replayed only. None: all of them.
        num_kv_blocks, kv_block_tokens: blocks that the server printed, and tokens in each; None where unknown.
        notes: sentences for the user: what of the file was left out.
        origin: the model and GPU that the file names; None where it names none.
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
    is_counted: Bools | None = None
    num_kv_blocks: int | None = None
    kv_block_tokens: int | None = None
    notes: tuple[str, ...] = ()
    origin: Origin | None = None
    block_tokens: int | None = None
    block_ids: Ints | None = None
    block_offsets: Ints | None = None

    def __post_init__(self) -> None:
        if not len(self.sent_s):
            raise InputError(
                self.name, "no answered request", "a calibration needs requests with a first and last token"
            )
        self._check_times()
        if int(min(self.prompt_tokens.min(), self.output_tokens.min())) < 1:
            raise InputError(self.name, "a request without tokens", "prompts and answers have at least one token")
        if float(self.e2e_s.max()) > 7 * 86400:
            raise InputError(self.name, float(self.e2e_s.max()), "no request takes a week: are these milliseconds?")
        self._freeze()

    def _check_times(self) -> None:
        is_fine = np.isfinite(self.ttft_s) & (self.ttft_s > 0) & np.isfinite(self.e2e_s) & (self.e2e_s >= self.ttft_s)
        if not bool(is_fine.all()):
            k = int(np.argmin(is_fine))
            found = f"first token after {self.ttft_s[k]:g} s, last after {self.e2e_s[k]:g} s"
            remedy = "these are no times: first tokens come after sending, last ones after first"
            raise InputError(f"{self.name} request {k} by time of sending", found, remedy)

    def __len__(self) -> int:
        return len(self.sent_s)

    @property
    def counted(self) -> Bools:
        """``bool[n]``: which requests are fitted and judged."""
        return np.ones(len(self), dtype=np.bool_) if self.is_counted is None else self.is_counted

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
            raise InputError("--results-format", name, f"formats: {', '.join(list_readers())}")
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


def read_json(path: Path, remedy: str = "") -> Any:
    """The JSON document in a file; raises InputError, with the `remedy`, where it is none."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"it is not JSON ({error})"
        raise InputError(str(path), "the file", f"{reason}; {remedy}" if remedy else reason) from error


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
    if (most := max((*prompt_tokens, *output_tokens), default=0)) > MOST_TOKENS:
        raise InputError(name, most, "no request has so many tokens")
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


def from_answers(
    name: str, answers: Sequence[Answer], *, concurrency: int | None = None, notes: tuple[str, ...] = ()
) -> MeasuredRun:
    """A run from answers of any order; raises InputError where there are none."""
    ordered = sorted(answers, key=lambda answer: answer.sent_s)
    run = from_columns(
        name,
        [answer.sent_s for answer in ordered],
        [answer.prompt_tokens for answer in ordered],
        [answer.output_tokens for answer in ordered],
        [answer.ttft_s for answer in ordered],
        [answer.e2e_s for answer in ordered],
        concurrency,
    )
    cached_frac = sum(answer.cached_tokens for answer in ordered) / int(run.prompt_tokens.sum())
    if cached_frac > CACHED_FRAC:
        found = f"{name}: the server had {cached_frac:.0%} of the prompts in its prefix cache, the replay computes all"
        notes = (*notes, f"{found}: measure with other prompts (another seed), or without prefix caching")
    counted = np.array([answer.is_counted for answer in ordered], dtype=np.bool_)
    return dataclasses.replace(run, is_counted=None if bool(counted.all()) else counted, notes=notes)


def left_out_notes(name: str, num_answered: int, num_failed: int, num_cut: int) -> tuple[str, ...]:
    """What of a run has no last token: requests that failed, and those that somebody cut off while they ran."""
    num_sent = num_answered + num_failed + num_cut
    notes = []
    if num_failed:
        notes.append(f"{name}: {num_failed} of {num_sent} requests failed or had no output; they are not replayed")
    if num_cut:
        lighter = num_cut > LIGHTER_REPLAY_FRAC * num_sent
        so = ": the server had more to do than the replay, measure without cutting requests off" if lighter else ""
        notes.append(f"{name}: {num_cut} of {num_sent} requests were cancelled before their end and not replayed{so}")
    return tuple(notes)
