"""`ctflow data`: which data sets the reproductions find here."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from ctflow.cli.checkout import find_root, load_shared
from ctflow.cli.options import Root
from ctflow.cli.output import one_line_errors

__all__ = ["data"]


def data(
    context: typer.Context,
    root: Root = None,
) -> None:
    """Show which images the reproductions find, in the order they take them, and how to get more.

    Needs a source checkout of ctflow. Data are kept in CTFLOW_CACHE_DIR, or the user's cache.

    For example:

        ctflow data
        CTFLOW_MNIST_DIR=~/mnist ctflow data
    """
    with one_line_errors(context):
        images = load_shared(find_root(Path.cwd(), root), "_harness.images", "knows no data sets")
        console = Console()
        lines = [f"cache folder: {images.cache_folder()}"]
        for source in images.SOURCES.values():
            here = source.present()
            lines.append(f"{'here   ' if here else 'missing'}  {source.name}: {source.what}")
            lines += [] if here else [f"         to get it: {source.how}"]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
