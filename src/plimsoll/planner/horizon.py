"""Probes that end at a horizon: what may be said of requests that came too late to be answered by then.

A run that is cut at ``H`` knows everything up to ``H`` and nothing after it. Each target gives a request a deadline:

    TTFT    arrival + target
    E2E     arrival + target
    TPOT    first token + target × (tokens − 1)

A request whose deadline lies within the horizon is *judged*: it kept it, or it broke it, and if it broke it and is
still not through at ``H`` it counts as infinitely late. A request whose deadline lies beyond is *censored* for that
target, whether or not it was quick: to keep the quick ones alone would flatter (a request that has broken a target is
never censored, since its deadline has passed). One that has no first token yet has no TPOT deadline: its TTFT tells,
or the queue, which is watched as in any other run. Rejected and failed requests are judged, as infinitely late.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plimsoll.core.columns import Floats, Ints
from plimsoll.core.errors import InputError
from plimsoll.core.run import Run, Status
from plimsoll.core.workload import Workload
from plimsoll.metrics import Targets
from plimsoll.metrics.percentiles import percentile

JUDGED = ("ttft_s", "tpot_s", "e2e_s")
"""Targets with a deadline for each request."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HorizonRun(Run):
    """A run that was cut.

    Attributes:
        asked_tokens: ``int64[n]``: output tokens that each request was to get; `output_tokens` are those it got.
        horizon_s: the cut.
    """

    asked_tokens: Ints
    horizon_s: float


class Judged(NamedTuple):
    """One target of a cut run.

    Attributes:
        value_s: its percentile over the judged requests; None where no request was judged.
        num_judged: requests whose deadline lies within the horizon.
        num_censored: requests whose deadline lies beyond.
    """

    value_s: float | None
    num_judged: int
    num_censored: int


def cut_at(run: Run, workload: Workload, horizon_s: float) -> HorizonRun:
    """`run` of `workload`, which was cut at `horizon_s`, with what its requests were to generate.

    Rows of a run are its workload's first rows; of a closed loop those behind the last one that was sent are requests
    that would have been refused later, and are no part of it.
    """
    sent = np.flatnonzero(run.status != Status.REJECTED)
    rows = len(run) if run.concurrency is None or not len(sent) else int(sent[-1]) + 1
    columns = {
        field.name: getattr(run, field.name)[:rows] if isinstance(getattr(run, field.name), np.ndarray) else value
        for field in dataclasses.fields(run)
        for value in (getattr(run, field.name),)
    }
    return HorizonRun(**columns, asked_tokens=workload.output_tokens[:rows], horizon_s=horizon_s)


def judge_target(run: HorizonRun, targets: Targets, name: str) -> Judged:
    """The judged percentile of one target, over the requests whose deadline lies within the horizon.

    Args:
        run: cut, warm-up left out or not.
        targets: which and at what percentile.
        name: a key of `JUDGED`.

    Raises:
        InputError: a target without a deadline for each request (ITL).
    """
    if name not in JUDGED:
        raise InputError(f"target {name}", targets.named()[name], "leave it out: it has no deadline to cut a run by")
    values, due_s = _values_and_deadlines(run, name, targets.named()[name])
    counted = ~np.isnan(values)  # answers of one token have no TPOT
    due = due_s <= run.horizon_s
    judged = counted & due
    return Judged(
        value_s=percentile(values[judged], targets.percentile),
        num_judged=int(judged.sum()),
        num_censored=int((counted & ~due).sum()),
    )


def _values_and_deadlines(run: HorizonRun, name: str, target_s: float) -> tuple[Floats, Floats]:
    """Each request's latency (infinite where it is not over) and deadline, both ``float64[n]``."""
    if name == "tpot_s":
        return _tpot(run, target_s)
    end_s = run.first_token_s if name == "ttft_s" else run.finish_s
    values = end_s - run.arrival_s
    return _with_refused(run, np.where(np.isnan(values), np.inf, values), run.arrival_s + target_s)


def _tpot(run: HorizonRun, target_s: float) -> tuple[Floats, Floats]:
    gaps = np.where(run.finished, run.output_tokens, run.asked_tokens) - 1
    values = np.where(run.finished, (run.finish_s - run.first_token_s) / np.maximum(gaps, 1), np.inf)
    due_s = run.first_token_s + target_s * gaps
    values, due_s = _with_refused(run, values, np.where(np.isnan(due_s), np.inf, due_s))
    return np.where(gaps > 0, values, np.nan), due_s


def _with_refused(run: HorizonRun, values: Floats, due_s: Floats) -> tuple[Floats, Floats]:
    """Those that were refused are infinitely late, at once."""
    refused: npt.NDArray[np.bool_] = (run.status == Status.REJECTED) | (run.status == Status.FAILED)
    return np.where(refused, np.inf, values), np.where(refused, run.arrival_s, due_s)
