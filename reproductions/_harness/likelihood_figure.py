"""Densities and samples on the way from base to data: the paper's figure 5.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from _harness.density_figure import show_density

__all__ = ["likelihood_figure"]

_INK = "#0072B2"  # Okabe and Ito's palette
_ROWS = (("CNF", "density"), ("CNF", "samples"), ("NF", "density"), ("NF", "samples"))


class Stage(Protocol):
    """A flow at one fraction of its transformation."""

    @property
    def log_prob(self) -> Callable[[Tensor], Tensor]:
        """Log-density of points [n, 2]."""
        ...

    @property
    def samples(self) -> Tensor:
        """Samples [n, 2]."""
        ...


def likelihood_figure(
    stages: Mapping[tuple[str, str], Sequence[Stage]],
    data: Mapping[str, Tensor],
    fractions: Sequence[float],
    pixels: int,
) -> Figure:
    """Four rows for each shape, one column for each fraction and one for the data.

    Args:
        stages: By shape and kind, one for each fraction.
        data: Points of each shape, [n, 2].
        fractions: Of the transformation.
        pixels: Side of a panel.
    """
    columns = len(fractions) + 1
    figure = Figure(figsize=(1.5 * columns, 1.55 * 4 * len(data)), layout="constrained")
    grid = figure.subplots(4 * len(data), columns, squeeze=False)
    for block, (shape, points) in enumerate(data.items()):
        window = _window(points)
        for row, (kind, what) in zip(grid[4 * block : 4 * block + 4], _ROWS, strict=True):
            row[0].set_ylabel(f"{shape}\n{kind}, {what}", fontsize=8)
            for axes, stage in zip(row, stages[shape, kind], strict=False):
                if what == "density":
                    show_density(axes, _image(stage.log_prob, window, pixels))
                else:
                    _show_points(axes, stage.samples, window)
            _show_points(row[-1], points, window)
    for axes, fraction in zip(grid[0], fractions, strict=False):
        axes.set_title(f"{fraction:.0%}", fontsize=9)
    grid[0][-1].set_title("data", fontsize=9)
    return figure


def _window(points: Tensor) -> tuple[float, float, float]:
    """Centre and half side of a square around the data and most of the base."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    centre = (low + high) / 2
    return float(centre[0]), float(centre[1]), max(2.0, 0.6 * float((high - low).max()))


@torch.no_grad()
def _image(
    log_prob: Callable[[Tensor], Tensor], window: tuple[float, float, float], pixels: int
) -> Tensor:
    x, y, half = window
    side = ((torch.arange(pixels) + 0.5) / pixels * 2 - 1) * half
    rows, columns = torch.meshgrid(y + side.flip(0), x + side, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    return log_prob(points).exp().reshape(pixels, pixels)


def _show_points(axes: Axes, points: Tensor, window: tuple[float, float, float]) -> None:
    x, y, half = window
    axes.plot(points[:, 0], points[:, 1], ",", color=_INK)
    axes.set_xlim(x - half, x + half)
    axes.set_ylim(y - half, y + half)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
