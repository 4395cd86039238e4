"""Densities on toy data, and what each likelihood cost.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from _harness.density_figure import show_density

__all__ = ["toy_figure"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; marks say the same again.
_LOOKS = (
    ("#0072B2", "o"),
    ("#009E73", "^"),
    ("#D55E00", "s"),
    ("#CC79A7", "D"),
    ("#666666", "P"),
)
_HALF = 4.5  # of the window


class Measured(Protocol):
    """What is drawn of a model on a set."""

    data: str
    model: str
    nll: float
    entropy: float | None
    seconds: float


def toy_figure(
    rows: Sequence[Measured],
    fits: Mapping[tuple[str, str], Callable[[Tensor], Tensor]],
    points: Mapping[str, Tensor],
    pixels: int,
) -> Figure:
    """One row for each set: its points, each model's density, and likelihood over training time.

    Args:
        rows: Every model on every set.
        fits: Log-densities by set and model.
        points: Points of each set, [n, 2].
        pixels: Side of a panel.
    """
    models = list({row.model: 0 for row in rows})
    columns = len(models) + 2
    figure = Figure(figsize=(1.9 * columns + 1.5, 2.1 * len(points) + 0.5), layout="constrained")
    widths = [1.0] * (columns - 1) + [1.7]
    grid = figure.subplots(len(points), columns, squeeze=False, width_ratios=widths)
    for row, (data, drawn) in zip(grid, points.items(), strict=True):
        row[0].set_ylabel(data)
        _show_points(row[0], drawn)
        for axes, model in zip(row[1:-1], models, strict=True):
            show_density(axes, _image(fits[data, model], pixels))
        _draw_costs(row[-1], [each for each in rows if each.data == data])
    for axes, name in zip(grid[0], ["data", *models], strict=False):
        axes.set_title(name, fontsize=9)
    grid[-1][-1].set_xlabel("training time (s)")
    grid[0][-1].legend(frameon=False, fontsize=7)
    return figure


@torch.no_grad()
def _image(log_prob: Callable[[Tensor], Tensor], pixels: int) -> Tensor:
    side = ((torch.arange(pixels) + 0.5) / pixels * 2 - 1) * _HALF
    rows, columns = torch.meshgrid(side.flip(0), side, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    return log_prob(points).exp().reshape(pixels, pixels)


def _show_points(axes: Axes, points: Tensor) -> None:
    axes.plot(points[:, 0], points[:, 1], ",", color="#0072B2")
    axes.set_xlim(-_HALF, _HALF)
    axes.set_ylim(-_HALF, _HALF)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_costs(axes: Axes, rows: Sequence[Measured]) -> None:
    for row, (colour, marker) in zip(rows, _LOOKS, strict=False):
        axes.plot(max(row.seconds, 0.1), row.nll, marker, color=colour, label=row.model)
    if rows[0].entropy is not None:
        axes.axhline(rows[0].entropy, color="#666666", linewidth=1)
        axes.annotate(
            "entropy", (0.02, rows[0].entropy), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", color="#666666", fontsize=8,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("NLL (nats)")
    axes.spines[["top", "right"]].set_visible(False)
