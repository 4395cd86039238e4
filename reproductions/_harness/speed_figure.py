"""Times of a training step, one panel for each model.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

__all__ = ["speed_figure"]

_OURS, _THEIRS = "#0072B2", "#999999"  # Okabe and Ito's palette; labels say the same again


class Measured(Protocol):
    """What is drawn of a contestant."""

    model: str
    who: str
    milliseconds: float
    low: float
    high: float


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
        for place, row in enumerate(own):
            colour = _OURS if row.who.startswith("ctflow") else _THEIRS
            error = [[row.milliseconds - row.low], [row.high - row.milliseconds]]
            axes.barh(place, row.milliseconds, color=colour, xerr=error, height=0.65)
            axes.text(row.high, place, f"  {row.milliseconds:.1f} ms", va="center", fontsize=9)
        axes.set_yticks(range(len(own)), [row.who for row in own])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(row.high for row in own))
        axes.set_title(f"{model} field", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"milliseconds of a training step, {points} points, one thread")
    return figure
