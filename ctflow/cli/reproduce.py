"""`ctflow reproduce`: run one of the reproductions of a source checkout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow.cli.checkout import find_root, load_script
from ctflow.cli.options import Check, Preset, Root, settings
from ctflow.cli.output import one_line_errors

__all__ = ["reproduce"]


def reproduce(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which reproduction, for example digits.")],
    preset: Annotated[
        Preset,
        typer.Option(
            help="smoke: seconds, no claim; quick: about two minutes; full: up to half an hour;"
            " paper: the paper's own setting, hours, on a GPU."
        ),
    ] = Preset.QUICK,
    backend: Annotated[
        str | None, typer.Option(help="Backend that trains; otherwise the script's own choice.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of data split and training.")
    ] = None,
    root: Root = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Stop after about so long; the same command goes on from there."
        ),
    ] = None,
    check: Check = False,
) -> None:
    """Run a reproduction: our numbers beside the accepted bands, results as JSON and PNG.

    Needs a source checkout of ctflow. Results go to reproductions/results/NAME/.

    For example:

        ctflow reproduce digits
        ctflow reproduce digits --preset smoke
        ctflow reproduce digits --backend torchdiffeq --seed 1 --check
        ctflow reproduce table_1 --preset full --minutes 10
    """
    with one_line_errors(context):
        script: Any = load_script(find_root(Path.cwd(), root), name)
        given = {"backend": backend, "seed": seed, "minutes": minutes}
        changes = {key: value for key, value in given.items() if value is not None}
        record = script.main(replace(settings(script, name, preset, changes), **changes))
    if check and not all(band["passed"] for band in record["bands"]):
        raise typer.Exit(1)
