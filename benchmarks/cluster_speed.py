"""Speed of clusters: what routers, pools and ranks cost beside one replica with as many requests.

    python benchmarks/cluster_speed.py [--trace FILE] [--requests 10000] [--repeats 7] [--only least-loaded,distserve …]
                                       [--asynchronous]

Llama-2-7B on A100-SXM-80GB, token budget 512, 128 seats, Poisson arrivals, lengths as in ``engine_speed.py``. One
replica at 2 and 6 requests/s, then eight replicas at eight times the rate behind every router: the ratio is the
processor time of eight to that of one, for the same number of requests. Then prefill and decode pools of one and one at
the plain rate and of four and four at eight times it, and four data-parallel ranks in lockstep beside one pool of their
size. Workloads and step models are made before the clock starts.

With ``--asynchronous`` the one replica and those behind routers schedule a step before the results of the last are in.

All rows of a rate take turns, so that a busy machine slows them alike; each figure is the best of the repetitions.

Wanted: 1.5 times one replica behind any router; of pools 30,000 requests/s at 2 req/s and 80,000 at 6. Why some stay
behind is printed with them: what a cluster does per request is counted in one more run, calls of what costs most. That
is done by a process of its own, ``--count RATE,LABEL``, in which the engine is interpreted: nothing can be put in place
of compiled methods.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine_speed import NUM_BLOCKS, TRACE, config, draw, roofline
from plimsoll import _ENGINE
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.engine.fleets.course import Course
from plimsoll.engine.fleets.late_course import LateCourse
from plimsoll.engine.fleets.late_outlook import LateOutlook
from plimsoll.engine.fleets.outlook import Outlook
from plimsoll.engine.plugins import list_plugins
from plimsoll.engine.pools.bridge import Bridge
from plimsoll.engine.pools.disaggregated import Machine
from plimsoll.engine.replicas.lane import Lane
from plimsoll.engine.replicas.late import LateReplica
from plimsoll.engine.replicas.replica import Replica

LINK = {"transfer_s_per_token": 2e-5, "transfer_latency_s": 8e-3}
ALONE = "one replica"
COUNTED: list[tuple[type, str, str]] = [
    (Replica, "advance", "times a replica is turned to"),
    (LateReplica, "advance", "times a replica is turned to"),
    (Outlook, "turn", "times a replica is turned to"),
    (LateOutlook, "turn", "times a replica is turned to"),
    (Course, "turn", "times a replica is turned to"),
    (LateCourse, "turn", "times a replica is turned to"),
    (Lane, "decode", "stretches of decode steps"),
    (Bridge, "_take", "transfers"),
    (Machine, "begin_mixed", "prompt steps"),
    (Machine, "cut", "stretches cut short"),
]
WHY = {
    "least-pending-tokens": "what is left on every replica changes in each step: it is foretold where all decode, but "
    "a prompt takes two more turns, and the closest of eight have to be told apart at every arrival",
    "late, tokens": "as without lateness, and an arrival cuts a stretch of decodes in two, as one more step of it was "
    "planned before",
    "least-loaded": "each end of a request has to be noticed before the next arrival is routed, so steps are run in "
    "pieces: some thirty more lines of Python per request than behind a router that does not look",
    "power-of-two": "as least-loaded, of two replicas",
    "prefix-aware": "without content ids it is least-loaded",
    "distserve": "far too much load: memory is full, so each prompt waits at the bridge and one in six decodes is "
    "swapped out",
    "splitwise": "far too much load: prompts queue with their memory set aside, so steps are small and many",
}
LATE = {"least-pending-tokens": "late, tokens"}
Row = tuple[str, str, EngineConfig, Workload]


def rows_of(trace: str | None, requests: int, rate: float, only: list[str], asynchronous: bool) -> list[Row]:
    """(label, what it is an example of, engine, workload) of everything that is measured at a rate of one replica."""
    one = config(128)
    if asynchronous:
        one = dataclasses.replace(one, options={"async_scheduling": True})
    alone, eightfold = draw(trace, requests, rate), draw(trace, requests, 8 * rate)
    rows: list[Row] = [
        (f"8 replicas, {router}", router, dataclasses.replace(one, replicas=8, router=router), eightfold)
        for router in list_plugins("plimsoll.engine.routers")
    ]
    for policy in () if asynchronous else list_plugins("plimsoll.engine.clusters"):
        for each, workload in ((1, alone), (4, eightfold)):
            pools = {"prefill": each, "decode": each, **LINK}
            engine = dataclasses.replace(one, policy=policy, replicas=2 * each, options=pools)
            rows.append((f"{policy}, {each} + {each}", policy, engine, workload))
    pooled = dataclasses.replace(one, num_blocks=4 * NUM_BLOCKS, max_num_seqs=512, max_num_batched_tokens=2048)
    rows.append(("2 replicas of one pool for 4 ranks", "ranks", dataclasses.replace(pooled, replicas=2), eightfold))
    ranks = dataclasses.replace(one, replicas=2, ranks=4)
    rows.append(("2 replicas of 4 ranks in lockstep", "ranks", ranks, eightfold))
    return [(ALONE, ALONE, one, alone), *(row for row in rows if not only or row[1] in only)]


def best_of(rows: list[Row], repeats: int) -> dict[str, tuple[float, int]]:
    """By label the processor time of the quickest run, and its steps; the rows take turns."""
    best: dict[str, tuple[float, int]] = {}
    for _ in range(repeats):
        for label, _, engine, workload in rows:
            model = roofline()
            begin_s = time.process_time()
            steps = simulate(workload, engine, model).num_steps
            best[label] = min(best.get(label, (float("inf"), 0)), (time.process_time() - begin_s, steps))
    return best


@contextmanager
def counting(calls: Counter[str]) -> Iterator[None]:
    """Count the calls of what costs most."""
    originals: list[tuple[type, str, Callable[..., Any]]] = []

    def counted(original: Callable[..., Any], words: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            calls[words] += 1
            return original(*given)

        return call

    for owner, name, words in COUNTED:
        original = getattr(owner, name)
        originals.append((owner, name, original))
        setattr(owner, name, counted(original, words))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def explain(row: Row) -> None:
    """Why a row stays behind, with what it does for a request."""
    _, kind, engine, workload = row
    calls: Counter[str] = Counter()
    with counting(calls):
        simulate(workload, engine, roofline())
    kinds = dict.fromkeys(words for _, _, words in COUNTED if calls[words])
    if engine.options.get("async_scheduling"):
        kind = LATE.get(kind, kind)
    listed = ", ".join(f"{calls[words] / len(workload):.1f} {words}" for words in kinds)
    print(f"      a request takes {listed}: {WHY.get(kind, '?')}")


def explain_apart(label: str, rate: float) -> None:
    """The same of the row of that label, by a process whose engine is interpreted."""
    command = [sys.executable, __file__, *sys.argv[1:], "--count", f"{rate:g},{label}"]
    subprocess.run(command, env={**os.environ, "PLIMSOLL_COMPILED": "off"}, check=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="a file whose lengths are drawn")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="routers and engines, separated by commas; all by default")
    parser.add_argument("--asynchronous", action="store_true", help="the engines take their results one step late")
    parser.add_argument("--count", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.count:
        print(_ENGINE)
    found = Path(os.environ.get("PLIMSOLL_DATA", "../shared/data")) / TRACE
    trace = options.trace or (str(found) if found.exists() else None)
    only = [name for name in options.only.split(",") if name]
    if options.count:
        rate_text, _, counted = options.count.partition(",")
        rows = rows_of(trace, options.requests, float(rate_text), only, options.asynchronous)
        explain(next(row for row in rows if row[0] == counted))
        return
    for rate, wanted in ((2.0, 30_000), (6.0, 80_000)):
        rows = rows_of(trace, options.requests, rate, only, options.asynchronous)
        best = best_of(rows, options.repeats)
        alone_s, steps = best[ALONE]
        print(f"one replica at {rate:g} req/s: {options.requests / alone_s:,.0f} requests/s, {steps:,} steps")
        for row in rows[1:]:
            label, kind = row[:2]
            seconds, steps = best[label]
            speed, ratio = options.requests / seconds, seconds / alone_s
            print(f"  {label:36}{speed:10,.0f} requests/s{steps:10,} steps   {ratio:5.2f} × one replica", flush=True)
            pools = kind in list_plugins("plimsoll.engine.clusters")
            if kind != "ranks" and (speed < wanted if pools else ratio > 1.5):
                explain_apart(label, rate)


if __name__ == "__main__":
    main()
