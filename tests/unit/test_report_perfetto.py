"""Trace files: what the Trace Event Format asks for, and that they say what the run says."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.cli import main
from plimsoll.core.columns import floats, ints
from plimsoll.core.run import Run
from plimsoll.core.workload import Workload
from plimsoll.engine import EngineConfig, simulate
from plimsoll.report.perfetto import EIGHTHS_PER_S, REQUESTS_PID, TraceRecorder, to_text
from tests.oracle.models import KinkedModel

CONFIG = EngineConfig(num_blocks=60, block_size=4, max_num_seqs=8, max_num_batched_tokens=64)
US_PER_S = 1e6
POOLS = {"prefill": 1, "decode": 2, "transfer_s_per_token": 1e-4}
CASES = {
    "one replica": (CONFIG, 1),
    "three replicas": (dataclasses.replace(CONFIG, replicas=3, router="least-loaded"), 1),
    "pipeline": (CONFIG, 2),
    "ranks": (dataclasses.replace(CONFIG, ranks=2), 1),
    "splitwise": (dataclasses.replace(CONFIG, policy="splitwise", replicas=3, options=POOLS), 1),
    "distserve": (dataclasses.replace(CONFIG, policy="distserve", replicas=3, options=POOLS), 1),
}


def workload(n: int = 80) -> Workload:
    rng = np.random.default_rng(2)
    arrival_s = np.cumsum(rng.exponential(0.02, n))
    return Workload(
        arrival_s=floats(arrival_s), prompt_tokens=ints(rng.integers(1, 120, n)),
        output_tokens=ints(rng.integers(1, 60, n)),
    )  # fmt: skip


def traced(case: str) -> tuple[Run, dict[str, Any]]:
    config, stages = CASES[case]
    model, recorder = KinkedModel(num_stages=stages), TraceRecorder()
    run = simulate(workload(), config, model, observer=recorder)
    assert run.equal(simulate(workload(), config, model)), "watching changes nothing"
    return run, json.loads(to_text(recorder.document(run, "a test")))


def check_format(document: dict[str, Any]) -> None:
    """The rules of the Trace Event Format for the phases in use, and what the viewers were seen to stumble over."""
    assert set(document) >= {"traceEvents", "displayTimeUnit"}
    last_us, open_spans = 0.0, Counter()  # type: ignore[var-annotated]
    ends: dict[tuple[int, int], float] = defaultdict(float)
    for event in document["traceEvents"]:
        assert {"ph", "ts", "pid", "tid", "name"} <= set(event)
        assert isinstance(event["name"], str)
        assert event["name"]
        assert event["name"].isascii()
        assert isinstance(event["pid"], int)
        assert event["pid"] > 0
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
        assert all(value * 8 == int(value * 8) for value in (event["ts"], event.get("dur", 0))), "whole eighths"
        if event["ph"] == "M":
            named, what = event["name"].split("_", 1)
            assert named in ("process", "thread")
            assert isinstance(event["args"][what], {"name": str, "sort_index": int}[what])
            continue
        assert event["ts"] >= last_us, "events are in order of time"
        last_us = event["ts"]
        track = (event["pid"], event["tid"])
        if event["ph"] == "X":
            assert event["dur"] > 0
            assert event["ts"] >= ends[track], f"slices of a track follow each other: {event}"
            ends[track] = event["ts"] + event["dur"]
        elif event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
        elif event["ph"] == "i":
            assert event["s"] == "t"
        elif event["ph"] in "be":
            key = (event["cat"], event["id2"]["local"], event["name"])
            open_spans[key] += 1 if event["ph"] == "b" else -1
            assert open_spans[key] in (0, 1), "a span ends after it began"
        else:
            raise AssertionError(f"phase {event['ph']} is not one of ours")
    assert not +open_spans, "every span ends"


@pytest.mark.parametrize("case", CASES)
def test_a_trace_keeps_the_rules_of_the_format(case: str) -> None:
    run, document = traced(case)
    check_format(document)
    names = {e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"}
    machines = {
        "ranks": {"replica 0, rank 0", "replica 0, rank 1"},
        "one replica": {"replica 0"},
        "pipeline": {"replica 0"},
    }
    assert names == {"requests"} | machines.get(case, {"replica 0", "replica 1", "replica 2"})
    assert len(run) == 80


@pytest.mark.parametrize("case", CASES)
def test_a_trace_accounts_for_every_step_token_and_request(case: str) -> None:
    run, document = traced(case)
    events = document["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    steps = sum(e["args"].get("steps", 1) for e in slices if "request" not in e["args"])
    unseen = run.num_steps - steps
    if case == "pipeline":
        assert 0 <= unseen <= run.preemptions.sum()  # batches of nobody, after somebody evicted themselves
    elif case != "ranks":  # a rank that runs along has step ends, but nothing to show
        assert unseen == 0
    chunks = [e for e in slices if "request" in e["args"]]
    computed = sum(e["args"]["tokens"] for e in chunks)
    if not run.preemptions.any():
        assert computed == run.prompt_tokens.sum()
    else:
        assert computed >= run.prompt_tokens.sum()
    preempted = Counter(e["args"]["request"] for e in events if e["ph"] == "i")
    missed = run.preemptions.sum() - preempted.total()
    assert missed == 0 if case != "pipeline" else 0 <= missed <= unseen
    assert all(preempted[k] <= run.preemptions[k] for k in range(len(run)))
    spans = {e["args"]["request"]: e for e in events if e["ph"] == "b" and e["name"] == "request"}
    ends = {int(e["id2"]["local"], 16): e["ts"] for e in events if e["ph"] == "e" and e["name"] == "request"}
    assert len(spans) == len(ends) == len(run)
    for request in range(len(run)):
        assert spans[request]["pid"] == REQUESTS_PID
        assert int(spans[request]["id2"]["local"], 16) == request
        assert spans[request]["ts"] == pytest.approx(run.arrival_s[request] * US_PER_S, abs=1 / 16)
        assert ends[request] == pytest.approx(run.finish_s[request] * US_PER_S, abs=1 / 16)


def test_phases_fill_a_request_from_arrival_to_last_token() -> None:
    run, document = traced("one replica")
    phases: dict[int, list[tuple[str, float, float]]] = defaultdict(list)
    begins: dict[str, float] = {}
    for event in document["traceEvents"]:
        if event["ph"] in "be" and event["name"] != "request":
            if event["ph"] == "b":
                begins[event["name"]] = event["ts"]
            else:
                phase, request = event["name"].rsplit(" ", 1)
                assert int(request) == int(event["id2"]["local"], 16)
                phases[int(request)].append((phase, begins.pop(event["name"]), event["ts"]))
    assert not begins
    waited = 0
    for request in range(len(run)):
        names = [name for name, _, _ in phases[request]]
        assert names in (["waits", "prefill", "decode"], ["prefill", "decode"], ["waits", "prefill"], ["prefill"])
        waited += names[0] == "waits"
        for (_, _, end_us), (_, begin_us, _) in itertools.pairwise(phases[request]):
            assert end_us == begin_us
        assert phases[request][0][1] == pytest.approx(run.arrival_s[request] * US_PER_S, abs=1 / 16)
        assert phases[request][-1][2] == pytest.approx(run.finish_s[request] * US_PER_S, abs=1 / 16)
        if "decode" in names:
            assert phases[request][-1][1] == pytest.approx(run.first_token_s[request] * US_PER_S, abs=1 / 16)
    assert waited > 10


def test_every_track_has_a_number_of_its_own_and_machines_come_first() -> None:
    _, document = traced("three replicas")
    meta = [e for e in document["traceEvents"] if e["ph"] == "M"]
    threads = {e["tid"]: e["args"]["name"] for e in meta if e["name"] == "thread_name"}
    assert len(threads) == 6
    processes = {e["pid"]: e["args"]["name"] for e in meta if e["name"] == "process_name"}
    assert not set(threads) & set(processes)
    order = sorted((e["args"]["sort_index"], processes[e["pid"]]) for e in meta if e["name"] == "process_sort_index")
    assert [name for _, name in order] == ["replica 0", "replica 1", "replica 2", "requests"]
    places = [(e["args"]["sort_index"], threads[e["tid"]]) for e in meta if e["name"] == "thread_sort_index"]
    assert [name for _, name in sorted(places)] == 3 * ["steps", "prefill chunks"]


def test_the_cases_reach_preemptions() -> None:
    run, document = traced("one replica")
    assert run.preemptions.sum() > 3
    assert any(e["ph"] == "i" for e in document["traceEvents"])


def test_counters_say_what_the_replica_holds() -> None:
    _, document = traced("one replica")
    counters = [e for e in document["traceEvents"] if e["ph"] == "C"]
    assert {e["name"] for e in counters} == {"waiting", "KV blocks", "decode batch"}
    for name, unit, most in (("KV blocks", "used", 60), ("decode batch", "requests", 8)):
        values = [e["args"][unit] for e in counters if e["name"] == name]
        assert values[-1] == 0, "nothing is held when everybody left"
        assert 0 <= min(values) <= max(values) <= most
        assert max(values) > most / 2
        assert all(a != b for a, b in itertools.pairwise(values)), "written where it changes"


def test_counters_fall_to_nothing_while_nobody_is_there() -> None:
    load = Workload(arrival_s=floats([0.0, 50.0]), prompt_tokens=ints([10, 10]), output_tokens=ints([20, 20]))
    recorder = TraceRecorder()
    run = simulate(load, EngineConfig(num_blocks=200), KinkedModel(), observer=recorder)
    assert run.finish_s[0] < 50
    batch = [
        (e["ts"], e["args"]["requests"]) for e in recorder.document(run)["traceEvents"] if e["name"] == "decode batch"
    ]
    idle = [value for ts, value in batch if ts <= 50 * US_PER_S][-1]
    assert idle == 0
    assert batch[-1] == (round(run.finish_s[1] * EIGHTHS_PER_S) / 8, 0)


def test_runs_of_decodes_are_merged() -> None:
    """A thousand steps of one answer are one slice, and a counter's value every 32 steps."""
    load = Workload(arrival_s=floats([0.0]), prompt_tokens=ints([10]), output_tokens=ints([1000]))
    recorder = TraceRecorder()
    run = simulate(load, EngineConfig(num_blocks=200), KinkedModel(), observer=recorder)
    document = recorder.document(run)
    assert run.num_steps == 1000
    (decode,) = [e for e in document["traceEvents"] if e["ph"] == "X" and e["name"].startswith("decode")]
    assert decode["args"] == {"decodes": 1, "steps": 999}
    assert len(document["traceEvents"]) < 60


def test_a_cut_run_closes_its_spans() -> None:
    recorder = TraceRecorder()
    run = simulate(workload(), CONFIG, KinkedModel(), duration_s=0.8, observer=recorder)
    document = recorder.document(run)
    check_format(document)
    status = Counter(e["args"]["status"] for e in document["traceEvents"] if e["ph"] == "b" and "status" in e["args"])
    assert status["unfinished"] > 0


def test_the_command_line_writes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made" / "trace.json"
    arguments = ["simulate", "--model", "Llama-3.1-8B", "--gpu", "H100-SXM", "--workload", "chat", "--rate", "4"]
    assert main([*arguments, "--num-requests", "30", "--json", "--trace-out", str(file)]) == 0
    with_trace = json.loads(capsys.readouterr().out)
    document = json.loads(file.read_text(encoding="utf-8"))
    check_format(document)
    assert document["otherData"]["requests"] == 30
    assert "Llama-3.1-8B" in document["otherData"]["title"]
    assert main([*arguments, "--num-requests", "30", "--json"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert {**with_trace, "wall_s": 0} == {**without, "wall_s": 0}
    assert main([*arguments, "--num-requests", "30", "--trace-out", str(tmp_path)]) == 2
    assert "--trace-out" in capsys.readouterr().err
