"""Evaluations on one core or two. The answer is the same; processes are started only where they pay.

Where the system can fork, a worker starts as a copy of this process after screening: it has every table that screening
has filled, and no import to repeat. Elsewhere (Windows, macOS) joblib starts fresh processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from plimsoll.perf.silicon_kept import flush_all
from plimsoll.planner.evaluate import Evaluator, Task

PAYS_FROM = {"fork": 3, "fresh": 12}
"""Configurations to simulate from which worker processes pay for their start."""

T = TypeVar("T")
_evaluators: dict[str, Evaluator] = {}


def _run_forked(token: str, task: Task[T]) -> T:
    """One task in a forked process, with the evaluator that it was born with."""
    return _kept(_evaluators[token].run(task))


def _run_fresh(token: str, evaluator: Evaluator, task: Task[T]) -> T:
    """One task in a fresh process, which keeps its first evaluator (and its step models) between tasks."""
    return _kept(_evaluators.setdefault(token, evaluator).run(task))


def _kept(result: T) -> T:
    """A worker is ended from outside: what its tables answered is written after each task."""
    flush_all()
    return result


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; the parent says so once and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Workers:
    """Runs tasks and returns their results in order; a context manager, because processes have to end.

    Args:
        evaluator: whose tasks.
        num_tasks: about how many there will be.
        num_workers: processes; 1 never starts any; None starts two where the machine has two cores and there are
            `PAYS_FROM` tasks or more.
    """

    def __init__(self, evaluator: Evaluator, num_tasks: int, num_workers: int | None = None) -> None:
        self.evaluator = evaluator
        self.forks = sys.platform == "linux"
        if num_workers is None:
            pays = num_tasks >= PAYS_FROM["fork" if self.forks else "fresh"]
            num_workers = min(num_cores(), 2) if pays else 1
        self.num_workers = num_workers
        self._pool: Any = None
        self._token = uuid.uuid4().hex

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _evaluators.pop(self._token, None)
        if self._pool is None:
            return
        if self.forks:
            self._pool.terminate()
            self._pool.join()
        else:
            self._pool.__exit__(kind, value, trace)

    def run(self, tasks: Sequence[Task[T]]) -> list[T]:
        """All tasks, results in their order."""
        # The cache stays in this process.
        sent = [k for k, task in enumerate(tasks) if not self.evaluator.is_cached(task)]
        if self.num_workers < 2 or len(sent) < 2:
            return [self.evaluator.run(task) for task in tasks]
        # The longest first, so that nobody begins a long one when the others are done; the results keep their order.
        sent.sort(key=lambda k: -self.evaluator.expected_work(tasks[k]))
        results = dict(zip(sent, self._send([tasks[k] for k in sent]), strict=True))
        return [results[k] if k in results else self.evaluator.run(tasks[k]) for k in range(len(tasks))]

    def _send(self, tasks: Sequence[Task[T]]) -> list[T]:
        if self._pool is None:
            self._start()
        found: list[T]
        if self.forks:
            found = self._pool.starmap(_run_forked, [(self._token, task) for task in tasks], chunksize=1)
        else:
            import joblib

            call = joblib.delayed(_run_fresh)
            found = self._pool(call(self._token, self.evaluator, task) for task in tasks)
        for task, result in zip(tasks, found, strict=True):
            self.evaluator.remember(task, result)
        return found

    def _start(self) -> None:
        if not self.forks:
            import joblib

            self._pool = joblib.Parallel(n_jobs=self.num_workers, backend="loky", batch_size=1)
            self._pool.__enter__()
            return
        _evaluators[self._token] = self.evaluator
        with warnings.catch_warnings():
            # Python 3.12 warns of threads here: those of numpy's BLAS, which knows forks, and of a progress bar.
            warnings.simplefilter("ignore", DeprecationWarning)
            context = multiprocessing.get_context("fork")
            self._pool = context.Pool(self.num_workers, _ignore_interrupts)


def num_cores() -> int:
    """That this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1
