"""The answer of `calibrate` on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plimsoll.calibration import flag_name
from plimsoll.report.simulation import footing
from plimsoll.report.text import seconds

if TYPE_CHECKING:
    from rich.console import Console

MEANINGS = {
    "compute": "time that prompts add to a step, measured over modelled",
    "bandwidth": "time of the decodes of a step, measured over modelled",
    "kv_blocks": "KV blocks, the server's over the memory model's",
    "per_step_s": "host time of a step, beyond the step model's",
    "per_request_s": "before the scheduler sees a request",
}


def verdict_line(document: dict[str, Any]) -> str:
    """One line: what the factors do to the error of what they had not seen."""
    before, after = document["error_before"], document["error_after"]
    held = document["held_back"]
    if not document["factors"]:
        return f"No factor: the data carries none; median error on {held}: {before:.1%}"
    if document["usable"]:
        verdict, bound = "Calibrated", ""
    elif document["improved"]:
        verdict, bound = "Do not use it: still too far off", f" (usable: up to {document['usable_error']:.0%})"
    else:
        verdict, bound = "Do not use it: the factors do not carry over", ""
    return f"{verdict}: median error on {held}, which were held back: {before:.1%} before, {after:.1%} after{bound}"


def render(console: Console, document: dict[str, Any]) -> None:
    """Print a calibration's document."""
    from rich.table import Table

    console.print(f"[bold]{verdict_line(document)}[/bold]", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title, side in (("factor", "left"), ("value", "right"), ("±", "right"), ("", "left")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    for name, value in document["factors"].items():
        deviation = document["deviations"].get(name)
        table.add_row(flag_name(name), *_shown(name, value, deviation), MEANINGS[name])
    for name, reason in document["not_carried"].items():
        table.add_row(flag_name(name), "–", "", f"[dim]{reason}[/dim]")
    console.print(table)
    console.print(_errors(document))
    for line in footing(document):
        console.print(f"[dim]{line}[/dim]", soft_wrap=True)
    console.print(f"[dim]fitted on {document['fitted_on']} in {seconds(document['wall_s'])}[/dim]")


def _shown(name: str, value: float, deviation: float | None) -> tuple[str, str]:
    if name.endswith("_s"):
        return seconds(value), "" if deviation is None else seconds(deviation)
    return f"× {value:.3f}", "" if deviation is None else f"{deviation:.1%}"


def _errors(document: dict[str, Any]) -> Any:
    """Signed errors of every figure held back, before and after."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("held back")
    for title in ("before", "after"):
        table.add_column(f"error {title}", justify="right")
    loads = {run["name"]: _load(run) for run in document["runs"]}
    for run, figures in document["before"].items():
        if len(loads) > 1:
            table.add_row(f"[bold]{escape(run)}[/bold]", "", "")
            table.add_row(f"[dim]{loads[run]}[/dim]", "", "")
        for name, before in figures.items():
            after = document["after"][run].get(name)
            metric, _, statistic = name.partition(" ")
            table.add_row(f"{metric.upper()} {statistic}", f"{before:+.1%}", "–" if after is None else f"{after:+.1%}")
    return table


def _load(run: dict[str, Any]) -> str:
    """How the requests of a run were sent, as it was understood."""
    if run["concurrency"] is not None:
        load = f"{run['concurrency']} at a time"
    else:
        load = f"{run['rate_per_s']:.3g}/s" if run["rate_per_s"] else "all at once"
    judged = "" if run["num_judged"] == run["num_requests"] else f", {run['num_judged']} of them judged"
    return f"{run['num_requests']} requests, {load}{judged}"
