"""`ctflow reproduce`: run reproductions of a source checkout, one here or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ctflow.cli.checkout import find_root
from ctflow.cli.many import reproduce_many
from ctflow.cli.options import Check, Preset, Root
from ctflow.cli.outcome import run_script
from ctflow.cli.output import STOPPED, one_line_errors
from ctflow.cli.registry import ALL, listing, named
from ctflow.cli.report import write_page
from ctflow.cli.summary import print_list
from ctflow.errors import CtflowError

__all__ = ["reproduce"]


def reproduce(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which: names or aliases (digits, table1, figure4), or all."),
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="smoke: seconds, no claim; quick: minutes; full: up to an hour or so;"
            " paper: the paper's own setting, hours, on a GPU."
        ),
    ] = Preset.QUICK,
    backend: Annotated[
        str | None, typer.Option(help="Backend that trains; otherwise the script's own choice.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of data split and training.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, or cuda where a script has it.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; otherwise 1.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Stop after about so long; the same command goes on from there."
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Go on where the same command stopped, and, of several runs, only with those that"
            " are not done; or begin anew. Otherwise as each script has it.",
        ),
    ] = None,
    check: Check = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show what there is and how long it takes, and exit.")
    ] = False,
    root: Root = None,
) -> None:
    """Run reproductions: our numbers beside the paper's and the accepted bands; JSON and PNG.

    Needs a source checkout of ctflow. Results go to reproductions/results/NAME/, those of another
    backend than the script's own to a folder of that name in it. One name runs here; several run as
    processes of their own, each with a log in reproductions/results/.runs/, and end in a summary,
    `all` also in a page (`ctflow report`). What this machine lacks the packages or data for is
    skipped, with the reason; one that fails does not stop the others.

    Exit code 0: done; 1: with --check, a number misses its band; 2: a run failed, or what was
    asked cannot be done; 130: stopped by Ctrl-C.

    For example:

        ctflow reproduce --list
        ctflow reproduce digits
        ctflow reproduce digits --preset smoke
        ctflow reproduce digits --backend torchdiffeq --seed 1 --check
        ctflow reproduce table1 figure4 --workers 2
        ctflow reproduce all --workers 2 --check
        ctflow reproduce all --workers 2 --resume
        ctflow reproduce table_1 --preset full --minutes 10
    """
    with one_line_errors(context):
        checkout = find_root(Path.cwd(), root)
        if show_list:
            print_list(Console(), listing(checkout))
            return
        if not names:
            raise CtflowError(
                "name a reproduction, or `all`. `ctflow reproduce --list` says what there is."
            )
        given = {"backend": backend, "seed": seed, "device": device, "minutes": minutes}
        given |= {"resume": resume}
        changes: dict[str, object] = {k: v for k, v in given.items() if v is not None}
        chosen = named(checkout, names)
        if len(chosen) > 1:
            code = reproduce_many(
                Console(), checkout, chosen, preset.value, changes, workers or 1, check=check
            )
            if ALL in names and preset is not Preset.SMOKE and code != STOPPED:
                write_page(Console(), checkout)
            raise typer.Exit(code)
        changes |= {} if workers is None else {"workers": workers}
        bands = run_script(checkout, chosen[0].name, preset.value, changes)
    if check and not all(band["passed"] for band in bands):
        raise typer.Exit(1)
