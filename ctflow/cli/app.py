"""The command line's commands, and the options they share."""

from __future__ import annotations

from typing import Annotated

import typer

from ctflow import __version__
from ctflow.cli.bench import bench
from ctflow.cli.certify import certify
from ctflow.cli.check import check
from ctflow.cli.compare import compare
from ctflow.cli.data import data
from ctflow.cli.info import info
from ctflow.cli.report import report
from ctflow.cli.reproduce import reproduce
from ctflow.cli.run import Program, run

__all__ = ["app"]

app = typer.Typer(
    name="ctflow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(reproduce)
app.command()(report)
app.command()(bench)
app.command()(data)
app.command()(info)
app.command()(check)
app.command()(compare)
app.command()(certify)
app.command(cls=Program)(run)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ctflow {__version__}")
        raise typer.Exit


@app.callback()
def ctflow(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback acts before a command is looked for
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show errors with their traceback.")
    ] = False,
) -> None:
    """Neural differential equations in PyTorch.

    Begin with `ctflow info`, or in a source checkout with `ctflow reproduce digits`.
    """
    context.obj = debug
