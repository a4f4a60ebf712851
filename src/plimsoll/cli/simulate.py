"""`plimsoll simulate`."""

from __future__ import annotations

from typing import Any

from plimsoll.cli import options as o
from plimsoll.cli.flags import DEPLOYMENT, LOAD, OUTPUT, TARGETS, takes


@takes(DEPLOYMENT, LOAD, TARGETS, OUTPUT, {"trace_out": o.TraceOut})
def command(arguments: dict[str, Any]) -> int:
    """What would every request see on this deployment under this load?

    Example: plimsoll simulate --model Llama-3.1-8B --gpu H100-SXM --workload chat --rate 4
    """
    from plimsoll.api.scenario import SimulateScenario
    from plimsoll.api.simulation import simulate
    from plimsoll.api.store import requests_csv
    from plimsoll.cli.running import as_json, keep, scenario_from, show, write_file
    from plimsoll.report.simulation import render, verdict_line

    asked = scenario_from(SimulateScenario, arguments)
    recorder = None
    if arguments["trace_out"] is not None:
        from plimsoll.report.perfetto import TraceRecorder, to_text

        recorder = TraceRecorder()
    result = simulate(asked, observer=recorder)
    document = result.to_json_dict()
    if recorder is not None:
        trace = to_text(recorder.document(result.run, verdict_line(document)))
        write_file("--trace-out", arguments["trace_out"], trace)
    table = {"requests.csv": requests_csv(result.run)} if arguments["out"] is not None else {}
    keep(asked, arguments, {**table, "result.json": as_json(document)})
    show(document, arguments["json_output"], render)
    return 0 if result.verdict is None or result.verdict.passed else 1
