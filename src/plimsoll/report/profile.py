"""What `profile` prints, from its JSON document alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def render(console: Console, document: dict[str, Any]) -> None:
    """The folder and how to use it, then how far it can be trusted, then host times."""
    device, run, quality = document["device"], document["run"], document["quality"]
    console.print(f"[bold]{document['folder']}: {document['model']['id']} on {device['name']}, {run['dtype']}[/bold]")
    console.print(f"measured now: {document['num_measured']}; rows kept from before: {document['num_kept']}")
    console.print(
        f"steps between the grid's points are predicted within {quality['interpolation_error_median_frac']:.1%} "
        f"(median of {quality['num_checks']}, worst {quality['interpolation_error_max_frac']:.1%}); "
        f"repeated measurements spread by {quality['spread_median_frac']:.1%}"
    )
    host = document.get("host")
    if host:
        console.print(
            f"host time: {host['per_step_us']:.0f} us a step, {host['per_sequence_us']:.1f} us a sequence "
            f"({host['source']})"
        )
    else:
        console.print("host time: not measured (operators alone); the engine's catalogue entry is used")
    console.print(
        f"use it: plimsoll simulate --model {document['model']['id']} --gpu {document['gpu']} "
        f"--step-model profile:{document['folder']} …",
        soft_wrap=True,
    )
