"""The answer of `plan --placement` on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plimsoll.report.text import dollars, interval, number, seconds, share

if TYPE_CHECKING:
    from rich.console import Console

GIB = 2**30


def render(console: Console, document: dict[str, Any]) -> None:
    """Print a placement's document: the verdict, each placement with its GPUs in order."""
    from rich.table import Table

    console.print(f"[bold]{document['verdict']}[/bold]", soft_wrap=True)
    for plan in document["plans"]:
        capacity = plan["capacity_per_s"]
        console.print(f"\n{plan['rank']}. {plan['arithmetic']} ({plan['precision']})", soft_wrap=True)
        console.print(
            f"   carries {number(capacity['value'])} {capacity['unit']} ({interval(capacity['interval'])}), "
            f"{dollars(plan['usd_per_hour'])} an hour, {dollars(plan['usd_per_million_tokens'])} per million tokens; "
            f"a mean request alone takes {seconds(plan['request_s'])}; the cache holds {plan['kv_tokens']:,} tokens",
            soft_wrap=True,
        )
        table = Table(box=None, padding=(0, 2, 0, 3))
        for title in ("GPU", "layers", "weights GiB", "cache GiB", "memory", "of a request"):
            table.add_column(title, justify="left" if title == "GPU" else "right")
        for stage in plan["stages"]:
            last = stage["first_layer"] + stage["num_layers"] - 1
            table.add_row(
                stage["gpu"],
                f"{stage['first_layer']}–{last}",
                number(stage["weight_bytes"] / GIB),
                number(stage["kv_bytes"] / GIB),
                share(stage["memory_frac"]),
                seconds(stage["request_s"]),
            )
        console.print(table)
    for note in document["notes"]:
        console.print(f"[dim]note: {note}[/dim]", soft_wrap=True)
    console.print(f"[dim]in {seconds(document['wall_s'])}[/dim]")
