"""`ctflow data`: which data sets the reproductions find here."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from ctflow.cli.checkout import find_root, load_shared
from ctflow.cli.options import Root
from ctflow.cli.output import one_line_errors

__all__ = ["data"]


def data(context: typer.Context, root: Root = None) -> None:
    """Show which data the reproductions find, images in the order they take them; how to get more.

    Needs a source checkout of ctflow. Data are kept in CTFLOW_CACHE_DIR, or the user's cache.

    For example:

        ctflow data
        CTFLOW_MNIST_DIR=~/mnist ctflow data
    """
    with one_line_errors(context):
        checkout = find_root(Path.cwd(), root)
        images = load_shared(checkout, "_harness.images", "knows no data sets")
        sets = load_shared(checkout, "_harness.data_sets", "knows no data sets")
        console = Console()
        lines = [f"cache folder: {images.cache_folder()}"]
        for each in sets.data_sets():
            lines.append(f"{'here   ' if each.present else 'missing'}  {each.name}: {each.what}")
            lines += [] if each.present else [f"         to get it: {each.how}"]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
