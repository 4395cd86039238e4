"""Options that the commands of a source checkout share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ctflow.errors import CtflowError

__all__ = ["Check", "Preset", "Root", "configured"]


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
# Honoured without a setting: every script computes on the CPU, a run that keeps no state begins
# anew whatever is asked, and one that uses a single process uses no more than were allowed.
_HARMLESS = {"device": ("cpu",), "resume": (True, False)}


def configured(script: Any, name: str, preset: str, changes: Mapping[str, object]) -> Any:  # noqa: ANN401
    """The settings of a preset, with what was given on the command line.

    Raises:
        CtflowError: If the script has no such preset, or not one of the settings.
    """
    if preset not in script.PRESETS:
        raise CtflowError(
            f"{name} has no preset {preset!r}; there are: {', '.join(script.PRESETS)}. "
            "Take one of these."
        )
    config = script.PRESETS[preset]
    known = {field.name for field in fields(config)}
    unknown = [
        f"--{key.replace('_', '-')}"
        for key, value in changes.items()
        if key not in known and key != "workers" and value not in _HARMLESS.get(key, ())
    ]
    if unknown:
        raise CtflowError(f"{name} takes no {' and '.join(unknown)}. Leave it out.")
    given = {key: value for key, value in changes.items() if key in known}
    chosen = replace(config, **given)
    if {"backend", "results"} <= known and chosen.backend != config.backend:
        # Beside the results of the script's own backend, not over them.
        chosen = replace(chosen, results=chosen.results / chosen.backend)
    return chosen
