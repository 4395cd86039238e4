"""Densities of flows beside their targets: the paper's figures 4 and 5.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from _harness.energies import WINDOW, confined

__all__ = ["matching_figure", "show_density"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; marks say the same again.
_MARKS = {"NF": ("#D55E00", "s", "--"), "CNF": ("#0072B2", "o", "-")}
_GREY = "#666666"


class Measured(Protocol):
    """What is drawn of a flow."""

    target: str
    size: int
    kind: str
    loss: float
    bound: float


def matching_figure(
    cells: Sequence[Measured], images: Mapping[tuple[str, str, int], Tensor], pixels: int
) -> Figure:
    """One row for each target: it, up to three flows of each kind, and the losses over size.

    Args:
        cells: Every flow.
        images: Densities [pixels, pixels] by target, kind and size.
        pixels: Side of a panel.
    """
    targets = list({cell.target: 0 for cell in cells})
    sizes = sorted({cell.size for cell in cells})
    shown = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    columns = 2 + 2 * len(shown)
    figure = Figure(figsize=(1.9 * columns + 1.5, 2.1 * len(targets) + 0.6), layout="constrained")
    widths = [1.0] * (columns - 1) + [1.9]
    grid = figure.subplots(len(targets), columns, squeeze=False, width_ratios=widths)
    for row, target in zip(grid, targets, strict=True):
        show_density(row[0], _target_image(target, pixels))
        row[0].set_ylabel(target)
        places = [(kind, size) for kind in _MARKS for size in shown]
        for axes, (kind, size) in zip(row[1:-1], places, strict=True):
            found = images.get((target, kind, size))
            if found is None:
                axes.set_axis_off()
                continue
            show_density(axes, found)
            axes.set_title(f"{kind}, {'K' if kind == 'NF' else 'M'} = {size}", fontsize=9)
        _draw_losses(row[-1], [cell for cell in cells if cell.target == target])
    grid[0][0].set_title("target", fontsize=9)
    grid[-1][-1].set_xlabel("layers K, or units M")
    return figure


def show_density(axes: Axes, image: Tensor) -> None:
    """A density as a picture without axes; rows from the top."""
    axes.imshow(image.numpy(), cmap="viridis", vmin=0.0, interpolation="bilinear")
    axes.set_xticks([])
    axes.set_yticks([])


def _target_image(target: str, pixels: int) -> Tensor:
    side = (torch.arange(pixels) + 0.5) / pixels * 2 * WINDOW - WINDOW
    rows, columns = torch.meshgrid(side.flip(0), side, indexing="ij")
    return torch.exp(-confined(target)(torch.stack([columns, rows], dim=-1)))


def _draw_losses(axes: Axes, cells: Sequence[Measured]) -> None:
    for kind, (colour, marker, dash) in _MARKS.items():
        own = [cell for cell in cells if cell.kind == kind]
        axes.plot(
            [cell.size for cell in own],
            [cell.loss for cell in own],
            marker + dash,
            color=colour,
            label=kind,
        )
    axes.axhline(cells[0].bound, color=_GREY, linewidth=1)
    axes.annotate(  # on the left, where small flows are far above it
        "-log Z", (0.02, cells[0].bound), (0, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", color=_GREY, fontsize=8,
    )  # fmt: skip
    sizes = sorted({cell.size for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylabel("loss (nats)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
