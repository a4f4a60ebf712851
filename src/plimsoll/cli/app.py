"""The verbs, one file each."""

from __future__ import annotations

from typing import Annotated

import typer

from plimsoll import _ENGINE
from plimsoll._version import __version__
from plimsoll.cli import calibrate, capacity, catalog, plan, profile, simulate, study

app = typer.Typer(
    name="plimsoll",
    help="What to deploy for LLM serving, how much load it carries within its latency targets, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"plimsoll {__version__} ({_ENGINE})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


app.command("plan")(plan.command)
app.command("simulate")(simulate.command)
app.command("capacity")(capacity.command)
app.command("calibrate")(calibrate.command)
app.command("profile")(profile.command)
app.command("study")(study.command)
app.command("catalog")(catalog.command)
