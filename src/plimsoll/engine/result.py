"""Turns what the lanes recorded into a `core.run.Run`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from plimsoll.core.columns import Floats, Ints
from plimsoll.core.run import Run, Status, StepLog, TokenTimeline
from plimsoll.core.workload import Workload
from plimsoll.engine.replicas.replica import Replica
from plimsoll.engine.requests import NEVER, Requests


def build_run(
    workload: Workload, requests: Requests, replicas: Sequence[Replica], arrival_s: Floats, cut_s: float | None
) -> Run:
    """Columns of what every request saw.

    With `cut_s`, tokens after it do not exist, and requests that were not sent before it are no part of the run.
    """
    lanes = [lane for replica in replicas for lane in replica.lanes]
    ends = [np.frombuffer(lane.ends, dtype=np.float64) if len(lane.ends) else np.empty(0) for lane in lanes]
    if cut_s is not None:
        ends = [column[: np.searchsorted(column, cut_s, side="right")] for column in ends]
    offsets = np.concatenate([[0], np.cumsum([len(column) for column in ends])]).astype(np.int64)
    step_end_s = np.concatenate(ends) if ends else np.empty(0)
    columns = _Slices(requests, offsets, step_end_s, [len(lane.ends) for lane in lanes])
    sent = _sent(arrival_s, cut_s)
    timeline = TokenTimeline(
        step_end_s=step_end_s,
        lane_offsets=offsets,
        slice_request=(np.cumsum(sent) - 1)[columns.request],
        slice_begin=columns.begin,
        slice_end=columns.end,
    )
    finish_s = columns.finish_s(step_end_s)
    status = np.where(np.isnan(finish_s), Status.UNFINISHED, Status.FINISHED).astype(np.int8)
    status[requests.rejected] = Status.REJECTED
    scheduled_s = np.array(requests.scheduled_s, dtype=np.float64)
    last_s = max((replica.now_s for replica in replicas), default=0.0)
    return Run(
        arrival_s=arrival_s[sent],
        scheduled_s=scheduled_s[sent],
        first_token_s=columns.first_token_s(step_end_s)[sent],
        finish_s=finish_s[sent],
        prompt_tokens=workload.prompt_tokens[sent],
        output_tokens=columns.tokens[sent],
        cached_tokens=_column(requests.cached)[sent],
        preemptions=_column(requests.preemptions)[sent],
        replica=_column(requests.replica)[sent],
        status=status[sent],
        timeline=timeline,
        step_log=_step_log(replicas),
        load_kind=workload.load_kind,
        concurrency=workload.concurrency,
        num_steps=len(step_end_s),
        end_s=last_s if cut_s is None else min(cut_s, last_s),
    )


def _column(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _sent(arrival_s: Floats, cut_s: float | None) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which requests were sent at all."""
    sent = np.isfinite(arrival_s)
    if cut_s is not None:
        sent &= np.nan_to_num(arrival_s, nan=np.inf) < cut_s
    return sent


class _Slices:
    """Token slices in absolute step numbers, sorted by request and time, and what follows from them."""

    def __init__(self, requests: Requests, offsets: Ints, step_end_s: Floats, lane_steps: list[int]) -> None:
        lane, begin, last = _column(requests.lane), _column(requests.slice_begin), _column(requests.last_step)
        owner = np.flatnonzero(begin != NEVER)
        end = np.where(last != NEVER, last + 1, np.array(lane_steps, dtype=np.int64)[lane])
        final = np.stack([owner, lane[owner], begin[owner], end[owner]], axis=1)
        slices = requests.early_slices
        early = np.fromiter(chain.from_iterable(slices), np.int64, 4 * len(slices)).reshape(-1, 4)
        rows = np.concatenate([early, final])
        low, limit = offsets[rows[:, 1]], offsets[rows[:, 1] + 1]
        begin, end = rows[:, 2] + low, np.minimum(rows[:, 3] + low, limit)
        kept = np.flatnonzero(begin < end)  # a cut may leave nothing
        # By time, not by step number: after a preemption in a pipeline a request may come back in another lane.
        order = kept[np.lexsort((step_end_s[begin[kept]], rows[kept, 0]))]
        self.request, self.begin, self.end = rows[order, 0], begin[order], end[order]
        self.num_requests = len(last)
        self.tokens = np.bincount(self.request, weights=self.end - self.begin, minlength=len(last)).astype(np.int64)
        self.last_step = np.where(last != NEVER, last + offsets[lane], NEVER)
        self.last_limit = offsets[lane + 1]

    def first_token_s(self, step_end_s: Floats) -> Floats:
        """When each request got its first token, NaN where it did not."""
        times = np.full(self.num_requests, np.nan)
        owners, first = np.unique(self.request, return_index=True)
        times[owners] = step_end_s[self.begin[first]]
        return times

    def finish_s(self, step_end_s: Floats) -> Floats:
        """When each request got its last token, NaN where it did not, or after the cut."""
        known = (self.last_step != NEVER) & (self.last_step < self.last_limit)
        times = np.full(self.num_requests, np.nan)
        times[known] = step_end_s[self.last_step[known]]
        return times


def _step_log(replicas: Sequence[Replica]) -> StepLog | None:
    logs = [replica.log for replica in replicas]
    kept = [log for log in logs if log is not None]
    if not kept:
        return None
    return StepLog(
        time_s=np.concatenate([np.array(log[0], dtype=np.float64) for log in kept]),
        replica=np.repeat(np.arange(len(kept)), [len(log[0]) for log in kept]),
        num_running=np.concatenate([_column(log[1]) for log in kept]),
        num_waiting=np.concatenate([_column(log[2]) for log in kept]),
        used_blocks=np.concatenate([_column(log[3]) for log in kept]),
        total_blocks=replicas[0].num_blocks,
    )
