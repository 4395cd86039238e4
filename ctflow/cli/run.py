"""`ctflow run`: a program written for another library, on ctflow's solvers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from ctflow.cli.output import one_line_errors
from ctflow.cli.script import run_module, run_script
from ctflow.compat.swap import replace_library
from ctflow.errors import InvalidProblem

__all__ = ["Program", "run"]


class Library(StrEnum):
    """Whose interface ctflow has."""

    TORCHDIFFEQ = "torchdiffeq"


class Program(TyperCommand):
    """A command whose options end where the program begins: what follows is the program's own."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # pyright: ignore
        """Put a `--` in front of what belongs to the program."""
        return super().parse_args(ctx, _split(args))


def _split(args: list[str]) -> list[str]:
    """The same words with `--` behind the script, or behind `-m` and its module."""
    i = 0
    while i < len(args):
        word = args[i]
        if word == "--":
            return args
        if word == "-m":
            return [*args[: i + 2], "--", *args[i + 2 :]]
        if word.startswith("-m") and not word.startswith("--"):
            return [*args[:i], "-m", word[2:], "--", *args[i + 1 :]]
        if not word.startswith("-"):
            return [*args[:i], "--", *args[i:]]
        i += 2 if word == "--replace" else 1
    return args


def run(
    context: typer.Context,
    program: Annotated[
        list[str] | None, typer.Argument(help="The script and its arguments.")
    ] = None,
    replace: Annotated[
        Library | None, typer.Option(help="Library whose import is answered by ctflow.")
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", help="Run this module, as `python -m` does.")
    ] = None,
) -> None:
    """Run a Python program with the import of a library answered by ctflow.

    The program needs no change. Options of this command come before it; everything behind it is
    its own. Exit code and traceback are the program's. What ctflow cannot honour raises by name.

    For example:

        ctflow run --replace torchdiffeq train.py --epochs 3
        ctflow run --replace torchdiffeq -m pytest tests
    """
    with one_line_errors(context):
        words = program or []
        if module is None and not words:
            raise InvalidProblem(
                "`script` must be given, got none. Write `ctflow run --replace torchdiffeq "
                "script.py`."
            )
        if replace is None:
            raise InvalidProblem(
                "`--replace` must name a library, got none. Without one, `python` runs the program."
            )
        replace_library(replace.value)
        if module is None and not Path(words[0]).is_file():
            raise InvalidProblem(f"`script` must be a file, got {words[0]!r}. Check the path.")
    if module is None:
        run_script(words[0], words[1:])
    else:
        run_module(module, words)
