"""The one style of all pictures: colours that colour-blind readers tell apart, and a second sign.

The palette is that of Okabe and Ito (2008), "Color Universal Design", without its yellow, which is
faint on white. Dashes and marks say again what colours say.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple

from ctflow.errors import MissingDependency

with suppress(ImportError):  # optional: `new_figure` says so where something is to be drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GREY", "Look", "axes_or_new", "finish", "legend_wanted", "look", "new_figure"]

GREY = "#666666"
_FAINT = "#DDDDDD"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D", "v", "P")


class Look(NamedTuple):
    """How one of several things is drawn.

    Attributes:
        colour: Of its line and marks.
        dashes: Of its line.
        mark: Of its points.
    """

    colour: str
    dashes: str
    mark: str


def look(i: int) -> Look:
    """That of the i-th thing: 84 differ, and neighbours in everything."""
    return Look(_COLOURS[i % 7], _DASHES[i % 4], _MARKS[i % 6])


def new_figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.0), share: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its axes, row by row.

    Args:
        rows: Of axes.
        columns: Of axes.
        size: Inches.
        share: Whether the axes of a column have one range of x.

    Raises:
        MissingDependency: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependency(
            "plotting needs matplotlib, which is not installed. "
            "Run: python -m pip install 'ctflow[plots]'"
        )
    from matplotlib import pyplot  # takes half a second, and chooses how to show

    sharex = "col" if share else False
    figure, grid = pyplot.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=sharex
    )
    return figure, [list(row) for row in grid]


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes that were given, or those of a new figure."""
    return new_figure()[1][0][0] if ax is None else ax


def finish(ax: Axes, x: str, y: str, title: str = "", legend: bool = False) -> Axes:
    """Labels, a faint grid, and no frame where nothing is measured."""
    ax.set(xlabel=x, ylabel=y)
    if title:
        ax.set_title(title, fontsize="medium")
    ax.grid(color=_FAINT, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(frameon=False, fontsize="small")
    return ax


def legend_wanted(names: Sequence[str]) -> bool:
    """Whether a legend helps: there is more than one thing, and not a crowd."""
    return 1 < len(names) <= 12
