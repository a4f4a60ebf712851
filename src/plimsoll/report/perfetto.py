"""A run as a trace that the Perfetto UI (ui.perfetto.dev) and chrome://tracing open.

The format is the JSON object form of the Trace Event Format (Google's document "Trace Event Format"), times in µs:

    process per replica     track `steps`: every mixed step with its chunks, every run of decode steps
                            track `prefill chunks`: one slice per chunk, named by its request
                            counters: decode batch, waiting, KV blocks
                            instants: preemptions, on the track of the steps
    process `requests`      one asynchronous span per request, from arrival to last token; inside it waits, prefill,
                            decode, with its number

`TraceRecorder` is an observer for `engine.simulate`; `document` makes the trace. Runs of decode steps are merged, as
long as the batch stays the same, and counters are written where they change, so that a file stays small.

What the viewers need, as seen by opening traces in Perfetto 52 and in the trace viewer of Chromium 150:

- Times are whole eighths of a microsecond (`_us`). Perfetto cuts a decimal fraction to nanoseconds, of start and length
  apart, and drops a slice that then begins before its neighbour's end; an eighth is exact in binary and in decimal.
- No process 0, which is the idle process of a kernel there: its name is not shown.
- An `id2` that is local to a process, else spans are filed under "Global Legacy Events".
- All requests' spans have one name, so that they share one track, and rows are used again; else each gets a track.
- Thread numbers differ between processes, and processes and threads carry an index to be sorted by.
- Names are plain ASCII: Perfetto shows an escaped character as its escape.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plimsoll.core.run import Run, Status

if TYPE_CHECKING:
    from plimsoll.engine.policy import StepPlan
    from plimsoll.engine.replicas.replica import Replica

EIGHTHS_PER_S = 8e6
FIRST_PID = 1000
REQUESTS_PID = FIRST_PID
COUNT_EVERY = 32
"""Steps of a decode run between two values of a counter."""
COUNTED = {"waiting": "requests", "KV blocks": "used", "decode batch": "requests"}
"""Counters and their units; viewers show both as one name."""
Event = dict[str, Any]


@dataclasses.dataclass
class _Lane:
    """A stream of steps, and what of it is not written yet: the step under way, and a run of decodes that may go on.

    `tid` is the track of its steps, the next number that of their chunks.
    """

    pid: int
    tid: int
    title: str
    begin_s: float = math.nan
    chunks: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    num_decode: int = 0
    run_begin_s: float = math.nan
    run_end_s: float = math.nan
    run_decodes: int = 0
    run_steps: int = 0


class TraceRecorder:
    """Watches every step and keeps what a trace needs of it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lanes: dict[int, _Lane] = {}
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}  # of the replicas; ranks that step together share one
        self._counters: dict[tuple[int, str], int] = {}
        self._watched: list[object] = []  # so that no other object gets the identity of one that is known here

    # -- the observer of the engine --------------------------------------------------------------------------------

    def scheduled(self, replica: Replica, plan: StepPlan, begin_s: float) -> None:
        """A step begins."""
        lane = self._lane(replica)
        lane.begin_s, lane.num_decode = begin_s, replica.lane.num
        lane.chunks = [(chunk[0], chunk[1]) for chunk in plan.chunks]
        for request in replica.preempted:
            ts = _us(begin_s)
            self._events.append(
                {"ph": "i", "s": "t", "pid": lane.pid, "tid": lane.tid, "name": f"preempt {request}", "ts": ts,
                 "cat": "preemption", "args": {"request": request}}
            )  # fmt: skip
        if lane.chunks or lane.run_decodes != lane.num_decode or not lane.run_steps % COUNT_EVERY:
            self._count(replica, lane.pid, begin_s)

    def stepped(self, replica: Replica, finished: list[int], end_s: float) -> None:
        """It is over."""
        lane = self._lane(replica)
        if math.isnan(lane.begin_s):
            return
        if finished and not (replica.seated or replica.waiting):
            self._count(replica, lane.pid, end_s)  # nobody may come for a while
        goes_on = lane.run_steps and lane.run_decodes == lane.num_decode and lane.run_end_s == lane.begin_s
        if not lane.chunks and goes_on:
            lane.run_end_s, lane.run_steps = end_s, lane.run_steps + 1
        else:
            self._close(lane)
            if lane.chunks:
                self._mixed(lane, end_s)
            else:
                lane.run_begin_s, lane.run_end_s = lane.begin_s, end_s
                lane.run_decodes, lane.run_steps = lane.num_decode, 1
        lane.begin_s = math.nan

    def _mixed(self, lane: _Lane, end_s: float) -> None:
        """A step with chunks: one slice, and under it the chunks, each as wide as its share of the tokens."""
        tokens = sum(count for _, count in lane.chunks)
        arguments = {"prefill tokens": tokens, "chunks": len(lane.chunks), "decodes": lane.num_decode}
        name = "mixed step" if lane.num_decode else "prefill step"
        self._slice(lane, 0, name, (lane.begin_s, end_s), arguments)
        done = 0
        for request, count in lane.chunks:
            ends = [lane.begin_s + (end_s - lane.begin_s) * part / tokens for part in (done, done + count)]
            self._slice(lane, 1, f"request {request}", (ends[0], ends[1]), {"request": request, "tokens": count})
            done += count

    def _close(self, lane: _Lane) -> None:
        """Write the run of decodes, if there is one."""
        if lane.run_steps:
            name = f"decode of {lane.run_decodes}" if lane.run_decodes else "empty step"
            arguments = {"decodes": lane.run_decodes, "steps": lane.run_steps}
            self._slice(lane, 0, name, (lane.run_begin_s, lane.run_end_s), arguments)
        lane.run_steps = 0

    def _lane(self, replica: Replica) -> _Lane:
        """The track of the replica's current stream of steps; several where batches overlap (pipeline stages)."""
        known = self._lanes.get(id(replica.lane))
        if known is not None:
            return known
        self._watched += [replica, replica.lane]
        if id(replica) not in self._pids:
            self._pids[id(replica)] = pid = REQUESTS_PID + 1 + len(self._pids)
            self._numbers[pid] = replica.number
        pid = self._pids[id(replica)]
        count = sum(lane.pid == pid for lane in self._lanes.values())
        title = f" (batch {count})" if count else ""
        lane = self._lanes[id(replica.lane)] = _Lane(pid, 1 + 2 * len(self._lanes), title)
        return lane

    # -- events ----------------------------------------------------------------------------------------------------

    def _slice(self, lane: _Lane, track: int, name: str, times_s: tuple[float, float], arguments: Event) -> None:
        begin_us, end_us = (_us(time_s) for time_s in times_s)
        self._events.append(
            {"ph": "X", "pid": lane.pid, "tid": lane.tid + track, "name": name, "ts": begin_us,
             "dur": end_us - begin_us, "cat": "step", "args": arguments}
        )  # fmt: skip

    def _count(self, replica: Replica, pid: int, time_s: float) -> None:
        """What a replica holds, as far as it is something else than before."""
        used = replica.num_blocks - replica.free_blocks
        values = {"waiting": len(replica.waiting), "KV blocks": used, "decode batch": replica.lane.num}
        for name, value in values.items():
            if self._counters.get((pid, name)) != value:
                self._counters[pid, name] = value
                self._events.append(
                    {"ph": "C", "pid": pid, "tid": 0, "name": name, "ts": _us(time_s), "args": {COUNTED[name]: value}}
                )

    # -- the document ----------------------------------------------------------------------------------------------

    def document(self, run: Run, title: str = "") -> dict[str, Any]:
        """The whole trace, events in order of time."""
        for lane in self._lanes.values():
            self._close(lane)
        events = [*self._events, *_request_spans(run)]
        events.sort(key=lambda event: event["ts"])  # stable: of one request, what begins comes before what ends
        return {
            "traceEvents": [*self._names(), *events],
            "displayTimeUnit": "ms",
            "otherData": {"title": title, "requests": len(run), "producer": "plimsoll"},
        }

    def _names(self) -> Iterator[Event]:
        """Who is who, in the order in which to show them: machines, then requests."""
        for place, (pid, number) in enumerate(self._numbers.items()):
            together = [other for other, its_number in self._numbers.items() if its_number == number]
            rank = f", rank {together.index(pid)}" if len(together) > 1 else ""
            yield from _named("process", (pid, 0), place, f"replica {number}{rank}")
        yield from _named("process", (REQUESTS_PID, 0), len(self._numbers), "requests")
        for place, lane in enumerate(self._lanes.values()):
            yield from _named("thread", (lane.pid, lane.tid), 2 * place, f"steps{lane.title}")
            yield from _named("thread", (lane.pid, lane.tid + 1), 2 * place + 1, f"prefill chunks{lane.title}")


def _us(time_s: float) -> float:
    """Microseconds, to the next eighth."""
    return round(time_s * EIGHTHS_PER_S) / 8


def _named(kind: str, numbers: tuple[int, int], place: int, name: str) -> Iterator[Event]:
    """Name and place of the process or thread with these numbers."""
    for what, value in (("name", name), ("sort_index", place)):
        yield {"ph": "M", "pid": numbers[0], "tid": numbers[1], "name": f"{kind}_{what}", "ts": 0.0,
               "args": {what: value}}  # fmt: skip


def _request_spans(run: Run) -> Iterator[Event]:
    """An asynchronous span for each request that was served, and its phases inside; those cut short end there."""
    for request in range(len(run)):
        if run.status[request] == Status.REJECTED:
            continue
        arrival_s, scheduled_s, first_s, finish_s = (
            float(column[request]) for column in (run.arrival_s, run.scheduled_s, run.first_token_s, run.finish_s)
        )
        end_s = finish_s if math.isfinite(finish_s) else max(run.end_s, arrival_s)
        arguments = {
            "request": request,
            "prompt tokens": int(run.prompt_tokens[request]),
            "output tokens": int(run.output_tokens[request]),
            "preemptions": int(run.preemptions[request]),
            "status": Status(int(run.status[request])).name.lower(),
        }
        yield _span("b", request, "request", arrival_s, arguments)
        for phase, begin_s, until_s in _phases((arrival_s, scheduled_s, first_s, end_s)):
            yield _span("b", request, f"{phase} {request}", begin_s, {})
            yield _span("e", request, f"{phase} {request}", until_s, {})
        yield _span("e", request, "request", end_s, {})


def _phases(times_s: tuple[float, float, float, float]) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of what a request went through, from its arrival, first step, first token and end."""
    *begins_s, end_s = times_s
    for place, phase in enumerate(("waits", "prefill", "decode")):
        begin_s, until_s = begins_s[place], times_s[place + 1]
        if not (math.isfinite(until_s) and until_s <= end_s):
            until_s = end_s
        if math.isfinite(begin_s) and begin_s < until_s:
            yield phase, begin_s, until_s


def _span(phase: str, request: int, name: str, time_s: float, arguments: Event) -> Event:
    return {"ph": phase, "cat": "request", "id2": {"local": hex(request)}, "pid": REQUESTS_PID, "tid": 0, "name": name,
            "ts": _us(time_s), "args": arguments}  # fmt: skip


def to_text(document: dict[str, Any]) -> str:
    """One event a line, so that a trace can be searched and compared."""
    head = {key: value for key, value in document.items() if key != "traceEvents"}
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in document["traceEvents"])
    return json.dumps(head, allow_nan=False)[:-1] + ',\n"traceEvents": [\n' + lines + "\n]}\n"
