"""`plimsoll capacity`."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from plimsoll.cli import options as o
from plimsoll.cli.flags import DEPLOYMENT, LOAD, OUTPUT, TARGETS, Group, takes

SEARCH: Group = MappingProxyType(
    {
        "at_once": Annotated[
            bool | None, o.option("--at-once", "Everything at time zero: search how many requests.", o.LOAD)
        ],
        "num_requests": Annotated[
            int | None, o.option("--num-requests", "Of every probe. [600, or more where many are in flight]", o.SEARCH)
        ],
        "duration_s": Annotated[
            float | None,
            o.option("--duration-s", "Horizon of every probe: later deadlines are censored. [drained]", o.SEARCH),
        ],
        "split": Annotated[
            str | None,
            o.option("--split", "Prefill and decode machines, such as 3:1; auto splits the --replicas best.", o.SEARCH),
        ],
        "num_seeds": Annotated[int | None, o.option("--num-seeds", "Searches that make the interval. [5]", o.SEARCH)],
    }
)


@takes(DEPLOYMENT, LOAD, TARGETS, SEARCH, OUTPUT)
def command(arguments: dict[str, Any]) -> int:
    """How much load does it carry before it breaks its targets?

    The highest rate whose runs meet every target at the percentile: bracketing, bisection, several seeds. A queue that
    keeps growing is a failure however short the run. With --users the answer is users, with --concurrency requests in
    flight, with --at-once how many requests may come together; a number that is given is where the search starts.

    Example: plimsoll capacity --model Llama-3.1-8B --gpu H100-SXM --workload chat --ttft-ms 1000 --tpot-ms 50
    """
    from plimsoll.api.capacity import capacity
    from plimsoll.api.scenario import CapacityScenario
    from plimsoll.cli.running import as_json, keep, progress, scenario_from, show
    from plimsoll.report.capacity import render

    asked = scenario_from(CapacityScenario, arguments)
    with progress("capacity") as update:
        answer = capacity(asked, on_probe=lambda count, load: update(count, None, f"probe at {load:.3g}"))
    document = answer.to_json_dict()
    keep(asked, arguments, {"result.json": as_json(document)})
    show(document, arguments["json_output"], render)
    return 0 if answer.result.max_load > 0 else 1
