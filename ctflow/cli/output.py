"""What the commands print on, and how they say what went wrong."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console

from ctflow.errors import CtflowError

__all__ = ["one_line_errors"]


@contextmanager
def one_line_errors(context: typer.Context) -> Generator[None]:
    """Turn a ctflow error into one line on standard error and exit code 2.

    With `ctflow --debug` it keeps its traceback.
    """
    try:
        yield
    except CtflowError as error:
        if context.obj:
            raise
        message = " ".join(str(error).split())
        Console(stderr=True).print(
            f"error: {message}", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from None
