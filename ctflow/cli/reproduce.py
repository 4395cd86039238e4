"""`ctflow reproduce`: run one of the reproductions of a source checkout."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow.cli.checkout import find_root, load_script
from ctflow.cli.output import one_line_errors

__all__ = ["Preset", "reproduce"]


class Preset(StrEnum):
    """How much work to do."""

    SMOKE = "smoke"
    QUICK = "quick"
    FULL = "full"


def reproduce(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which reproduction, for example digits.")],
    preset: Annotated[
        Preset,
        typer.Option(
            help="smoke: seconds, no claim; quick: about two minutes; full: up to half an hour."
        ),
    ] = Preset.QUICK,
    backend: Annotated[
        str | None, typer.Option(help="Backend that trains; otherwise the script's own choice.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of data split and training.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Source checkout; otherwise found from the working directory upwards."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with code 1 if a number misses its band.")
    ] = False,
) -> None:
    """Run a reproduction: our numbers beside the accepted bands, results as JSON and PNG.

    Needs a source checkout of ctflow. Results go to reproductions/results/NAME/.

    For example:

        ctflow reproduce digits
        ctflow reproduce digits --preset smoke
        ctflow reproduce digits --backend torchdiffeq --seed 1 --check
    """
    with one_line_errors(context):
        script: Any = load_script(find_root(Path.cwd(), root), name)
        given = {"backend": backend, "seed": seed}
        changes = {key: value for key, value in given.items() if value is not None}
        record = script.main(replace(script.PRESETS[preset.value], **changes))
    if check and not all(band["passed"] for band in record["bands"]):
        raise typer.Exit(1)
