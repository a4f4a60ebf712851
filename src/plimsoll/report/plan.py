"""The answer of `plan` on a terminal: the verdict, the plans, why these and not the others, the first command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plimsoll.report.text import band_basis, band_text, dollars, interval, number, seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REJECTIONS = {
    "engine": "not supported by the engine",
    "precision": "not in this precision",
    "divisibility": "that do not divide the model",
    "topology": "that do not fit the machines",
    "memory": "out of memory",
    "data": "without data for the step model",
    "price": "without a public price",
    "budget": "over the budget",
    "spare": "without room for the spares",
    "length": "that refuse requests as too long",
    "ttft": "too late with the first token",
    "tpot": "too slow per output token",
    "e2e": "too slow end to end",
    "rate": "unable to carry the load",
    "bound": "behind the others even at their best",
    "beaten": "simulated and beaten",
}
"""What became of the candidates that are in no list: ``312 candidates: 189 …``."""

TITLES = {"top_cost": "cheapest", "top_throughput": "highest throughput", "top_latency": "lowest latency"}


def render(console: Console, document: dict[str, Any]) -> None:
    """Print a plan's document."""
    console.print(f"[bold]{document['verdict']}[/bold]", soft_wrap=True)
    if document["plans"]:
        console.print()
        console.print(_table(document, document["plans"]))
        for plan in document["plans"]:
            console.print(f"{plan['rank']}. {plan['why']}", soft_wrap=True)
            console.print(f"   binds: {plan['binding_constraint']}; {plan['rental']}", soft_wrap=True)
    for name, title in TITLES.items():
        if any(not _same(plan, document["plans"]) for plan in document[name]):
            console.print(f"\n[bold]{title}[/bold]")
            console.print(_table(document, document[name]))
    _reasons(console, document)
    if document["starting_point_text"]:
        console.print(f"\n[bold]compared with what you have[/bold]\n{document['starting_point_text']}", soft_wrap=True)
    if document["plans"]:
        console.print("\n[bold]start plan 1 with[/bold]")
        console.print(document["plans"][0]["launch"]["vllm"], soft_wrap=True, markup=False)
    for line in _error_lines(document):
        console.print(f"[dim]{line}[/dim]", soft_wrap=True)
    for note in document["notes"]:
        console.print(f"[dim]note: {note}[/dim]", soft_wrap=True)
    console.print(
        f"[dim]{document['num_candidates']:,} candidates, {document['num_configs']:,} replica configurations, "
        f"{document['num_simulated']:,} simulated, in {seconds(document['wall_s'])}[/dim]"
    )


def _error_lines(document: dict[str, Any]) -> list[str]:
    """How far step times may be off, for every GPU that was proposed."""
    bands = {plan["gpu"]: plan["error_band"] for plan in document["plans"] if plan["error_band"]}
    if not bands:
        return []
    words = "; ".join(f"{gpu} {band_text(band)}" for gpu, band in bands.items())
    aside = next((band_basis(band) for band in bands.values() if band), "")
    return [f"measured step times lie around these (four runs in five{aside}): {words}"]


def _table(document: dict[str, Any], plans: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    name = f"p{document['targets']['percentile']:g}"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    several = len({plan["engine"] for plan in plans}) > 1
    titles = (
        "",
        "GPUs",
        "cut",
        *(["engine"] if several else []),
        "weights",
        "tokens/step",
        "$/h",
        "$/M in",
        "$/M out",
        "capacity",
        "95 % int.",
        "TTFT",
        "TPOT",
    )
    for title in titles:
        label = f"{name} {title}" if title in ("TTFT", "TPOT") else title
        table.add_column(
            label, justify="left" if title in ("GPUs", "cut", "engine", "weights") else "right", no_wrap=True
        )
    for plan in plans:
        capacity, key = plan["capacity_per_s"], name if name in plan["metrics"]["ttft_s"] else "p99"
        table.add_row(
            str(plan["rank"]),
            f"{plan['num_gpus']} {plan['gpu']}",
            _cut(plan),
            *([plan["engine"]] if several else []),
            plan["precision"],
            number(plan["settings"]["max_num_batched_tokens"]),
            dollars(plan["usd_per_hour"]),
            dollars(plan["usd_per_million_input_tokens"]),
            dollars(plan["usd_per_million_output_tokens"]),
            f"{number(capacity['value'])} {capacity['unit']}",
            interval(capacity["interval"]),
            seconds(plan["metrics"]["ttft_s"][key]),
            seconds(plan["metrics"]["tpot_s"][key]),
        )
    return table


def _cut(plan: dict[str, Any]) -> str:
    """``2 × TP4``: replicas and how one of them is cut; ``3P:1D × TP1`` for pools."""
    ways = [f"{name.upper()}{plan[name]}" for name in ("tp", "pp", "dp", "ep") if plan[name] > 1 or name == "tp"]
    pools = plan["pools"]
    machines = plan["replicas"] if pools is None else f"{pools['prefill']}P:{pools['decode']}D"
    return f"{machines} × {' '.join(ways)}"


def _reasons(console: Console, document: dict[str, Any]) -> None:
    if document["relaxations"]:
        console.print("\n[bold]what would have to give[/bold]")
        for relaxation in document["relaxations"]:
            console.print(f"- {relaxation['text']}", soft_wrap=True)
    if document["losers"]:
        console.print("\n[bold]nearest losers[/bold]")
        for loser in document["losers"]:
            first_reason = loser["reason"].split("; ")[0]  # the others are in --json
            console.print(f"- {loser['config']}: {first_reason}", soft_wrap=True)
    counts: dict[str, int] = {}
    for rejection in document["rejected"]:
        counts[rejection["kind"]] = counts.get(rejection["kind"], 0) + rejection["num_candidates"]
    if counts:
        most_first = sorted(counts.items(), key=lambda item: -item[1])
        words = ", ".join(f"{count:,} {REJECTIONS.get(kind, kind)}" for kind, count in most_first)
        console.print(f"\nout: {words} (each with its sentence in --json)", soft_wrap=True)


def _same(plan: dict[str, Any], shown: list[dict[str, Any]]) -> bool:
    keys = ("gpu", "arithmetic", "precision", "settings", "engine")
    return any(all(plan[key] == other[key] for key in keys) for other in shown)
