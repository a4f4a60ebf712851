"""The answer of `capacity` on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plimsoll.report.simulation import footing
from plimsoll.report.text import interval, number, seconds

if TYPE_CHECKING:
    from rich.console import Console

REASONS = {
    "ttft": "time to first token misses its target",
    "tpot": "time per output token misses its target",
    "itl": "inter-token latency misses its target",
    "e2e": "end-to-end latency misses its target",
    "stationarity": "the queue keeps growing",
    "none": "nothing that was tried fails",
}
SHORT = {"stationarity": "queue", "none": "–"}


def render(console: Console, document: dict[str, Any]) -> None:
    """Print a capacity search's document."""
    from rich.table import Table

    console.print(f"[bold]{verdict_line(document)}[/bold]", soft_wrap=True)
    if document["note"]:
        console.print(document["note"], soft_wrap=True)
    percentile = f"{document['targets']['percentile']:g}"
    names = [name for name in document["targets"] if name != "percentile"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = (
        "seed",
        f"holds at, {document['unit']}",
        "fails at",
        "by",
        *(f"p{percentile} {name.removesuffix('_s').upper()}" for name in names),
    )
    for title in titles:
        table.add_column(title, justify="right")
    for seed in document["by_seed"]:
        held = _probe(document, seed["seed"], seed["highest_pass"])
        figures = [seconds(held["figures"].get(name)) if held else "–" for name in names]
        limits = (
            number(seed["highest_pass"], 4),
            number(seed["lowest_fail"], 4),
            SHORT.get(seed["limited_by"], seed["limited_by"].upper()),
        )
        table.add_row(str(seed["seed"]), *limits, *figures)
    console.print(table)
    if document["splits"]:
        tried = ", ".join(f"{s['prefill']}:{s['decode']} {number(s['max_load'])}" for s in document["splits"])
        console.print(f"prefill:decode tried, with what each carries in {document['unit']}: {tried}", soft_wrap=True)
    for line in _asked(document):
        console.print(line, soft_wrap=True)
    for line in footing(document):
        console.print(f"[dim]{line}[/dim]", soft_wrap=True)
    console.print(f"[dim]{len(document['probes'])} probes in {seconds(document['wall_s'])}[/dim]")


def _asked(document: dict[str, Any]) -> list[str]:
    """What was searched for, with the defaults that nobody typed."""
    targets, workload = document["targets"], document["workload"]
    limits = ", ".join(
        f"{name.removesuffix('_s').upper()} {seconds(value)}" for name, value in targets.items() if name != "percentile"
    )
    seeds = [seed["seed"] for seed in document["by_seed"]]
    prompt, output = (number(workload[side]["mean_tokens"]) for side in ("prompt", "output"))
    means = f"prompt {prompt} mean, output {output} mean"
    return [
        f"targets: {limits} at p{targets['percentile']:g}",
        f"workload: {workload['name']}; {means}",
        f"{_probes(document)}; seeds {seeds[0]} to {seeds[-1]}",
        *_censored(document),
    ]


def _probes(document: dict[str, Any]) -> str:
    """How long a probe is, and what of it is not judged."""
    length, load = document["probe_length"], document["load"]
    until = "" if load["duration_s"] is None else f", cut at {seconds(load['duration_s'])}"
    if load["kind"] == "at_once":
        return f"every probe is one batch at time zero{until}, without warm-up"
    count = f"{length['min_requests']:,}" + ("" if length["fixed"] else " or more")
    what = f"probes of {count} requests" if load["duration_s"] is None else f"probes of {seconds(load['duration_s'])}"
    return f"{what}, the first {100 * length['warmup_frac']:.0f} % or more left out as warm-up"


def _censored(document: dict[str, Any]) -> list[str]:
    """With a horizon: how many requests of the highest passing probe could not be judged, by metric."""
    if document["load"]["duration_s"] is None:
        return []
    passing = [probe for probe in document["probes"] if probe["passed"]]
    if not passing:
        return ["requests whose deadline lies beyond the horizon are censored: neither a hit nor a miss"]
    held = max(passing, key=lambda probe: probe["load"])
    counts = ", ".join(f"{name.removesuffix('_s').upper()} {count:,}" for name, count in held["num_censored"].items())
    where = f"{counts} of {held['num_measured']:,} in the probe at {number(held['load'], 4)} {document['unit']}"
    return [f"requests whose deadline lies beyond the horizon are censored, neither a hit nor a miss: {where}"]


def _probe(document: dict[str, Any], seed: int, load: float) -> dict[str, Any] | None:
    """The longest passing probe of a seed at a load: what its highest load looked like."""
    found = [p for p in document["probes"] if p["seed"] == seed and p["load"] == load and p["passed"]]
    return max(found, key=lambda probe: probe["num_requests"], default=None)


def verdict_line(document: dict[str, Any]) -> str:
    """One line: how much, with its interval, and what fails above."""
    deployment = document["deployment"]
    pools = " + ".join(f"{count} {name}" for name, count in deployment.get("pools", {}).items() if count)
    every = [kind["deployment"] for kind in document.get("kinds", ())] or [deployment]
    gpus = " + ".join(f"{one['num_gpus']} × {one['gpu']}" for one in every)
    where = f"{deployment['model']} on {gpus}{f' ({pools})' if pools else ''}"
    if not document["max_load"]:
        return f"{where} carries no load within its targets: {REASONS[document['limited_by']]} at any load"
    sure = f", {100 * document['confidence']:.0f} % interval" if document["confidence"] else ", bracket"
    return (
        f"{where} carries {number(document['max_load'])} {document['unit']}{sure} "
        f"{interval(document['interval'])}; above that, {REASONS[document['limited_by']]}"
    )
