"""What the commands print on, and how they say what went wrong."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console

from ctflow.errors import CtflowError

__all__ = ["STOPPED", "one_line_errors"]

STOPPED = 130  # exit code: as shells say that Ctrl-C ended something


@contextmanager
def one_line_errors(context: typer.Context) -> Generator[None]:
    """Turn an error into one line on standard error and exit code 2; Ctrl-C into exit code 130.

    An error that is none of ctflow's own is named with its kind. With `ctflow --debug` all keep
    their traceback.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _say("stopped. The same command with --resume goes on where that can be done.")
        raise typer.Exit(STOPPED) from None
    except Exception as error:
        if context.obj:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, CtflowError):
            text = f"{type(error).__name__}: {text} (`ctflow --debug ...` shows where)"
        _say(f"error: {text}")
        raise typer.Exit(2) from None


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
