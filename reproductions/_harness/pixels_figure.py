"""Digits that models draw, and the bits they need for those of others.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["pixels_figure"]


class Measured(Protocol):
    """What is drawn of a model."""

    model: str
    bits: float
    error: float


def pixels_figure(rows: Sequence[Measured], drawn: Mapping[str, Tensor]) -> Figure:
    """One line of images for the data and each model, and bars of bits per dimension.

    Args:
        rows: Every model.
        drawn: Grey levels [n, 64] by name, "data" among them.
    """
    figure = Figure(figsize=(11, 0.75 * len(drawn) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(drawn), 2, width_ratios=(3, 1))
    for place, (name, images) in enumerate(drawn.items()):
        axes = figure.add_subplot(grid[place, 0])
        line = images.reshape(-1, 8, 8).permute(1, 0, 2).reshape(8, -1)
        axes.imshow(line.numpy(), cmap="gray_r", vmin=0, vmax=17)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes = figure.add_subplot(grid[:, 1])
    places = range(len(rows))
    error = [2 * row.error for row in rows]
    axes.barh(places, [row.bits for row in rows], xerr=error, color="#0072B2", height=0.6)
    for place, row in zip(places, rows, strict=True):
        axes.text(0.05, place, f"{row.bits:.3f}", va="center", color="white", fontsize=9)
    axes.set_yticks(places, [row.model for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("bits per dimension (test)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
