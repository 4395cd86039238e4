"""`ctflow data`: which data sets the reproductions find here."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ctflow.cli.checkout import find_root
from ctflow.cli.output import one_line_errors
from ctflow.errors import CtflowError

__all__ = ["data"]


def data(
    context: typer.Context,
    root: Annotated[
        Path | None,
        typer.Option(help="Source checkout; otherwise found from the working directory upwards."),
    ] = None,
) -> None:
    """Show which images the reproductions find, in the order they take them, and how to get more.

    Needs a source checkout of ctflow. Data are kept in CTFLOW_CACHE_DIR, or the user's cache.
    """
    with one_line_errors(context):
        images: Any = _load(find_root(Path.cwd(), root))
        console = Console()
        lines = [f"cache folder: {images.cache_folder()}"]
        for source in images.SOURCES.values():
            here = source.present()
            lines.append(f"{'here   ' if here else 'missing'}  {source.name}: {source.what}")
            lines += [] if here else [f"         to get it: {source.how}"]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _load(root: Path) -> Any:  # noqa: ANN401 - a module of the checkout
    """The module that knows the sets.

    Raises:
        CtflowError: If the checkout has none.
    """
    folder = root / "reproductions"
    if not (folder / "_harness" / "images.py").is_file():
        raise CtflowError(
            f"{str(folder)!r} knows no data sets. Use a complete source checkout of ctflow."
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return import_module("_harness.images")
