"""`plimsoll calibrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from plimsoll.cli import options as o
from plimsoll.cli.flags import COST, CUT, OUTPUT, SIZES, Group, takes

RESULTS: Group = MappingProxyType(
    {
        "results": Annotated[
            list[str] | None,
            typer.Argument(
                help="Files: measured.csv, vllm bench serve, GuideLLM, AIPerf; a snapshot of /metrics for KV blocks."
            ),
        ],
        "results_format": Annotated[
            str | None,
            o.option("--results-format", "aiperf, guidellm, measured_csv or vllm_bench. [recognised]", o.SEARCH),
        ],
        "fit": Annotated[
            str | None,
            o.option("--fit", "Of compute, bandwidth, per-step, per-request. [what the data carries]", o.SEARCH),
        ],
        "concurrency": Annotated[
            int | None,
            o.option("--concurrency", "Requests that the client kept in flight. [as the file says]", o.SEARCH),
        ],
    }
)
DEPLOYMENT: Group = MappingProxyType(
    {name: hint for name, hint in {**CUT, "engine": o.Engine, **COST}.items() if name != "calibration"}
)


@takes(RESULTS, DEPLOYMENT, SIZES, {"seed": o.Seed}, OUTPUT)
def command(arguments: dict[str, Any]) -> int:
    """What do measured runs say of this deployment, beside what its step model says?

    Replays the measured requests, fits a few physical factors on a part of them, and prints the errors of the rest
    before and after. --out DIR keeps calibration.json, which every verb takes as --calibration; factors that do not
    help are not kept.

    Example: plimsoll calibrate result.json --model Llama-3.1-8B --gpu RTX-4090 --out calibrated
    """
    from plimsoll.api.calibrating import calibrate
    from plimsoll.api.scenario import CalibrateScenario
    from plimsoll.calibration import to_text
    from plimsoll.cli.running import as_json, keep, progress, scenario_from, show
    from plimsoll.report.calibration import render

    asked = scenario_from(CalibrateScenario, arguments)
    with progress("calibrate") as update:
        answer = calibrate(asked, on_simulation=lambda count: update(count, None, "simulation"))
    document = answer.to_json_dict()
    files = {"result.json": as_json(document)}
    if answer.usable:
        files["calibration.json"] = to_text(answer.calibration)
    keep(asked, arguments, files)
    show(document, arguments["json_output"], render)
    if answer.usable:
        return 0
    if arguments["out"] is not None:
        say_not_kept(arguments["out"], answer.refusal)
    return 1


def say_not_kept(folder: str, reason: str | None) -> None:
    """One line on stderr; where an earlier run left a file of the name, that it is not this run's."""
    file = Path(folder) / "calibration.json"
    older = " (the one that lies there is an earlier run's)" if file.exists() else ""
    sys.stderr.write(f"calibrate: {file} is not written: {reason}{older}\n")
