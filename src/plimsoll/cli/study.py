"""`plimsoll study`."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from plimsoll.cli import options as o
from plimsoll.cli.flags import COST, CUT, LOAD, OUTPUT, SIZES, TARGETS, Group, takes

STUDY: Group = MappingProxyType(
    {
        "kind": Annotated[str, typer.Argument(help="engines: several engines on identical requests.")],
        "engines": Annotated[
            str | None,
            o.option(
                "--engines",
                "Engines and policies, each with its options after it: orca,vllm-v1,watermark=0.01. "
                "[orca,vllm-v0,sarathi-serve,vllm-v1]",
                o.SEARCH,
            ),
        ],
    }
)


@takes(STUDY, CUT, COST, SIZES, LOAD, TARGETS, OUTPUT)
def command(arguments: dict[str, Any]) -> int:
    """How do engines compare on the same requests, the same GPUs and the same cost of a step?

    Common random numbers: every engine gets the same lengths and arrivals, so that a difference is the engine's. With
    --out the folder holds the table as JSON, the plots as one HTML page, and every engine's requests.

    Example: plimsoll study engines --engines orca,vllm-v1 --model Llama-3.1-8B --gpu H100-SXM --workload chat --rate 4
    """
    from plimsoll.api.store import requests_csv
    from plimsoll.api.study import StudyScenario, check_kind, study_engines
    from plimsoll.cli.running import as_json, keep, progress, scenario_from, show
    from plimsoll.report.study import render, to_html

    check_kind(arguments.pop("kind"))
    asked = scenario_from(StudyScenario, arguments)
    with progress("study") as update:
        study = study_engines(asked, on_engine=update)
    document = study.to_json_dict()
    tables = {}
    if arguments["out"] is not None:
        tables = {
            f"requests-{k}-{name.split(',')[0]}.csv": requests_csv(result.run)
            for k, (name, result) in enumerate(study.results.items(), 1)
        }
        tables["engines.html"] = to_html(document)
    keep(asked, arguments, {**tables, "result.json": as_json(document)})
    show(document, arguments["json_output"], render)
    if arguments["out"] is not None and not arguments["json_output"]:
        typer.echo(f"charts: {Path(arguments['out']) / 'engines.html'}")
    return 0
