"""The command line, `ctflow`."""

from __future__ import annotations

from collections.abc import Sequence

from ctflow.cli.app import app

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave the process with its exit code.

    Args:
        arguments: What follows `ctflow` on the command line; None takes the process's own.
    """
    app(None if arguments is None else list(arguments), prog_name="ctflow")
