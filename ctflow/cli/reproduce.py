"""`ctflow reproduce`: run one of the reproductions of a source checkout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow.cli.checkout import find_root, load_script
from ctflow.cli.output import one_line_errors
from ctflow.errors import CtflowError

__all__ = ["Preset", "reproduce"]


class Preset(StrEnum):
    """How much work to do."""

    SMOKE = "smoke"
    QUICK = "quick"
    FULL = "full"
    PAPER = "paper"


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
    root: Annotated[
        Path | None,
        typer.Option(help="Source checkout; otherwise found from the working directory upwards."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Stop after about so long; the same command goes on from there."
        ),
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
        ctflow reproduce table_1 --preset full --minutes 10
    """
    with one_line_errors(context):
        script: Any = load_script(find_root(Path.cwd(), root), name)
        given = {"backend": backend, "seed": seed, "minutes": minutes}
        changes = {key: value for key, value in given.items() if value is not None}
        record = script.main(replace(_config(script, name, preset, changes), **changes))
    if check and not all(band["passed"] for band in record["bands"]):
        raise typer.Exit(1)


def _config(script: Any, name: str, preset: Preset, changes: Mapping[str, object]) -> Any:  # noqa: ANN401
    """The settings of a preset.

    Raises:
        CtflowError: If the script has no such preset, or not one of the settings.
    """
    if preset.value not in script.PRESETS:
        raise CtflowError(
            f"{name} has no preset {preset.value!r}; there are: {', '.join(script.PRESETS)}. "
            "Take one of these."
        )
    config = script.PRESETS[preset.value]
    known = {field.name for field in fields(config)}
    unknown = [f"--{key}" for key in changes if key not in known]
    if unknown:
        raise CtflowError(f"{name} takes no {' and '.join(unknown)}. Leave it out.")
    return config
