"""Figure 1: paths of particles through residual layers and through an ODE.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["residual_and_ode"]

_WIDTH = 7.0  # half of the window, as in the paper's figure


def residual_and_ode(
    field: Callable[[Tensor, Tensor], Tensor],
    depths: Sequence[float],
    paths: Sequence[Sequence[float]],
    evaluations: Sequence[Sequence[tuple[float, float]]],
    layers: Sequence[Sequence[float]],
) -> Figure:
    """Left the residual network, arrows at its layers alone; right the ODE, arrows everywhere.

    Args:
        field: The field, of depth and place.
        depths: Depth of each output of a path.
        paths: Places of each particle at these depths.
        evaluations: Depth and place of each evaluation, for each particle.
        layers: Places of each particle after each residual layer.
    """
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    n_layers = len(layers[0])
    _arrows(left, field, [float(i) for i in range(n_layers)])
    _arrows(right, field, [i / 4 for i in range(4 * (n_layers - 1) + 1)])
    for places in layers:
        left.plot(places, range(n_layers), color="black", linewidth=1)
        left.plot(places, range(n_layers), "o", color="black", markerfacecolor="white", ms=5)
    for path, circles in zip(paths, evaluations, strict=True):
        right.plot(path, depths, color="black", linewidth=1)
        right.plot([x for _, x in circles], [t for t, _ in circles], "o", color="black",
                   markerfacecolor="white", ms=5)  # fmt: skip
    left.set_title("residual network", fontsize=11)
    right.set_title("ODE network", fontsize=11)
    left.set_ylabel("depth")
    for axes in (left, right):
        axes.set_xlim(-_WIDTH, _WIDTH)
        axes.set_ylim(-0.2, n_layers - 0.8)
        axes.set_xlabel("input / hidden / output")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _arrows(axes: Axes, field: Callable[[Tensor, Tensor], Tensor], depths: Sequence[float]) -> None:
    """Direction of the field at some depths, coloured by its value."""
    x = torch.linspace(-_WIDTH, _WIDTH, 29, dtype=torch.float64)
    t = torch.tensor(depths, dtype=torch.float64)
    at, depth = torch.meshgrid(x, t, indexing="xy")
    slope = field(depth, at)
    length = (1 + slope.square()).sqrt()
    axes.quiver(
        at.numpy(), depth.numpy(), (slope / length).numpy(), (1 / length).numpy(),
        slope.clamp(-4, 4).numpy(), cmap="viridis", angles="xy", scale=36, width=0.003, alpha=0.7,
    )  # fmt: skip
