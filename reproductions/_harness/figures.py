"""Figures that several reproductions draw.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _harness.comparison import Row
from _harness.live import Epoch

__all__ = ["learning_and_agreement"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes say the same again.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_MARKS = {"direct": (_BLUE, "o"), "checkpointed": (_ORANGE, "s"), "adjoint": (_GREEN, "^")}


def learning_and_agreement(
    title: str, history: Sequence[Epoch], rows: Sequence[Row], band: float
) -> Figure:
    """Left, how the training went; right, gradient differences beside their band.

    Args:
        title: Title of the whole figure.
        history: The training, epoch by epoch.
        rows: The comparison, in the order in which it is drawn from above.
        band: Largest difference accepted.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([["loss", "agreement"], ["accuracy", "agreement"]])
    epochs = [epoch.epoch for epoch in history]
    axes["loss"].plot(
        epochs, [epoch.loss for epoch in history], color=_BLUE, marker="o", markersize=3
    )
    axes["loss"].set(ylabel="training loss (nats)", ylim=(0, None))
    percent = [100 * epoch.accuracy for epoch in history]
    axes["accuracy"].plot(epochs, percent, color=_ORANGE, marker="s", markersize=3)
    axes["accuracy"].set(xlabel="epoch", ylabel="test accuracy (%)")
    axes["accuracy"].sharex(axes["loss"])
    _draw_agreement(axes["agreement"], rows, band)
    for each in axes.values():
        each.grid(color="#DDDDDD")
        each.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_agreement(axes: Axes, rows: Sequence[Row], band: float) -> None:
    """One mark a row on a logarithmic axis; a difference of zero is drawn at the left end."""
    least = min([row.difference for row in rows if row.difference > 0] + [band]) / 10
    for place, row in enumerate(rows):
        colour, marker = _MARKS[row.gradient]
        at = max(row.difference, least)
        axes.plot(at, place, marker, color=colour, markersize=8)
        axes.annotate(
            f"{row.difference:.0e}", (at, place), (8, 0), textcoords="offset points", va="center"
        )
    axes.axvline(band, color=_GREY, linestyle="--")
    axes.annotate(
        "accepted", (band, 1.0), (-4, -4), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right", va="top", color=_GREY,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(least / 2, band * 5)
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.set_yticks(range(len(rows)), [f"{row.backend}\n{row.gradient}" for row in rows])
    axes.set_xlabel("gradient difference from the reference")
