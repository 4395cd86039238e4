"""`ctflow report`: one page with every figure and table, ours beside the paper's."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from ctflow.cli.checkout import find_root, load_shared
from ctflow.cli.options import Root
from ctflow.cli.output import one_line_errors

__all__ = ["report", "write_page"]


def report(context: typer.Context, root: Root = None) -> None:
    """Write reproductions/results/report/index.html from the results that are there.

    Needs a source checkout of ctflow. The page stands alone: every picture is in it, there is no
    script, and nothing is loaded. `ctflow reproduce all` writes it too. Beside it stands quoted.md,
    the table that README.md quotes.

    For example:

        ctflow report
        ctflow report --root ~/ctflow
    """
    with one_line_errors(context):
        write_page(Console(), find_root(Path.cwd(), root))


def write_page(console: Console, root: Path) -> None:
    """Write the page of a checkout, and say where it is.

    Raises:
        CtflowError: If the checkout has no reports, or matplotlib is not installed.
    """
    shared = load_shared(root, "_harness.report", "makes no reports")
    path = shared.write_report(root / "reproductions" / "results")
    console.print(f"Written: {path.relative_to(root)}", highlight=False, soft_wrap=True)
