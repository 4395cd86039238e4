"""Times of a training step, one panel for each model.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["Timed", "bars", "speed_figure"]

_OURS, _THEIRS = "#0072B2", "#999999"  # Okabe and Ito's palette; labels say the same again


class Timed(Protocol):
    """A median and its quartiles."""

    milliseconds: float
    low: float
    high: float


class Measured(Timed, Protocol):
    """What is drawn of a contestant."""

    model: str
    who: str


def bars(axes: Axes, rows: Sequence[Timed], labels: Sequence[str], ours: Sequence[bool]) -> None:
    """A bar for each, from top to bottom, with its quartiles and its median in numbers.

    Args:
        axes: Where.
        rows: Everybody.
        labels: Their names.
        ours: Whether they are ctflow's, which are coloured.
    """
    for place, (row, own) in enumerate(zip(rows, ours, strict=True)):
        error = [[row.milliseconds - row.low], [row.high - row.milliseconds]]
        colour = _OURS if own else _THEIRS
        axes.barh(place, row.milliseconds, color=colour, xerr=error, height=0.65)
        axes.text(row.high, place, f"  {row.milliseconds:.3g} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(row.high for row in rows))
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def speed_figure(rows: Sequence[Measured], points: int) -> Figure:
    """Bars of medians with quartiles, the fastest on top.

    Args:
        rows: Everybody on every model.
        points: In a step.
    """
    models = list({row.model: 0 for row in rows})
    figure = Figure(figsize=(8.0, 0.5 + 0.38 * len(rows) + 0.6 * len(models)), layout="constrained")
    heights = [sum(row.model == model for row in rows) + 1 for model in models]
    panels = figure.subplots(len(models), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, model in zip(panels, models, strict=True):
        own = sorted((r for r in rows if r.model == model), key=lambda row: row.milliseconds)
        names = [row.who for row in own]
        bars(axes, own, names, [name.startswith("ctflow") for name in names])
        axes.set_title(f"{model} field", fontsize=10, loc="left")
    panels[-1].set_xlabel(f"milliseconds of a training step, {points} points, one thread")
    return figure
