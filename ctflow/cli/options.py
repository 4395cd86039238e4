"""Options that the commands of a source checkout share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow.errors import CtflowError

__all__ = ["Check", "Preset", "Root", "settings"]


class Preset(StrEnum):
    """How much work to do."""

    SMOKE = "smoke"
    QUICK = "quick"
    FULL = "full"
    PAPER = "paper"


Root = Annotated[
    Path | None,
    typer.Option(help="Source checkout; otherwise found from the working directory upwards."),
]
Check = Annotated[
    bool, typer.Option("--check", help="Exit with code 1 if a number misses its band.")
]


def settings(script: Any, name: str, preset: Preset, changes: Mapping[str, object]) -> Any:  # noqa: ANN401
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
