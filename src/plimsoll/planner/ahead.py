"""The measured tables of some GPU types, opened in a second process while this one screens the others.

Opening tables takes a third of a second a GPU type, in code that holds the interpreter's lock, so only a process can
share the work. It screens its types itself, asks what the race will ask of them, and hands over what the tables
answered (`perf.silicon_kept`): the very floats, so the answer is the same with one process. Tables that somebody needs
for more than that are opened when they do. The second process takes the types with the slower memory, which are
simulated less often.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from plimsoll.catalog.accelerators import Accelerator
from plimsoll.core.errors import PlimsollError
from plimsoll.perf import silicon_kept
from plimsoll.perf.compositions import parse_step_model
from plimsoll.perf.silicon import silicon_available
from plimsoll.planner.context import Context
from plimsoll.planner.prune import Screened, screen
from plimsoll.planner.space import ReplicaConfig
from plimsoll.planner.workers import num_cores

LONGEST_S = 30.0
"""After which this process opens the tables itself."""
BATCH_MARGIN = 1.5
SHARES = tuple(0.05 * k for k in range(1, 24))


class Ahead:
    """A context manager around a screening; without a second process where it does not pay.

    Args:
        context: of the search.
        configs: that will be screened.
        num_workers: 1 starts no process.
    """

    def __init__(self, context: Context, configs: Sequence[ReplicaConfig], num_workers: int | None) -> None:
        self._context, self._configs = context, configs
        allowed = num_workers != 1 and num_cores() > 1 and sys.platform == "linux"
        self._theirs = slower_half(context, configs) if allowed else frozenset[str]()
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Ahead:
        if not self._theirs:
            return self
        multi = multiprocessing.get_context("fork")
        self._pipe, theirs = multi.Pipe(duplex=False)
        mine = [config for config in self._configs if config.accelerator.id in self._theirs]
        self._process = multi.Process(target=_look_ahead, args=(theirs, self._context, mine), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as in `workers`
            self._process.start()
        theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self._pipe.close()

    def order(self) -> Iterator[int]:
        """Places of the configurations: this process's own types first, then, when they are known, the others."""
        for place, config in enumerate(self._configs):
            if config.accelerator.id not in self._theirs:
                yield place
        if self._process is not None:
            self._take_over()
        for place, config in enumerate(self._configs):
            if config.accelerator.id in self._theirs:
                yield place

    def _take_over(self) -> None:
        """Wait for what the second process found; where it failed this one asks its own tables."""
        with contextlib.suppress(EOFError, OSError):
            if self._pipe.poll(LONGEST_S):
                silicon_kept.take_over(self._pipe.recv())


def slower_half(context: Context, configs: Sequence[ReplicaConfig]) -> frozenset[str]:
    """Of the GPU types whose tables will be opened, the half with the slower memory."""
    if parse_step_model(context.request.step_model)[0].partition(",")[0].strip() != "silicon":
        return frozenset()
    types: dict[str, Accelerator] = {config.accelerator.id: config.accelerator for config in configs}
    measured = [gpu for gpu in types.values() if silicon_available(gpu)]
    measured.sort(key=lambda gpu: (-gpu.memory_bandwidth_bytes_per_s, gpu.id))
    return frozenset(gpu.id for gpu in measured[math.ceil(len(measured) / 2) :])


def _look_ahead(pipe: Any, context: Context, configs: Sequence[ReplicaConfig]) -> None:
    """In the second process: screen, ask what follows, hand over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    silicon_kept.hand_over_from_here()
    screened, _ = screen(context, configs)
    for one in screened:
        with contextlib.suppress(PlimsollError):
            ask_ahead(one, context.max_model_len)
    pipe.send(silicon_kept.hand_over())
    silicon_kept.flush_all()
    pipe.close()


def ask_ahead(one: Screened, longest_tokens: int) -> None:
    """Ask the step model what a race may want to know: every batch up to somewhat more than the largest within the
    targets, whatever comes at shares of its capacity, and the attention of small batches at any length.
    """
    estimator, estimate = one.estimator, one.estimate
    largest = min(estimator.largest_batch()[0], BATCH_MARGIN * max(estimate.batch, 1.0))
    for batch in range(1, math.ceil(largest) + 1):
        estimator.prefill_s(batch, packed=False)
        estimator.prefill_s(batch, packed=True)
        if batch & (batch - 1) == 0:  # the tables' own batch sizes
            estimator.model.decode_line(batch, batch * longest_tokens)
    for share in SHARES:
        estimator.e2e_s(share * estimate.bound_per_s)
