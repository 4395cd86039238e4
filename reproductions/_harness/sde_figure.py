"""Posterior bands of a latent SDE beside the exact ones.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["bands_of_doubt"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"


def bands_of_doubt(
    at: Tensor, paths: Tensor, exact: Sequence[tuple[Tensor, Tensor]], t: Tensor, x: Tensor
) -> Figure:
    """One panel for each series: mean and 90 % band, learned and exact, and what was seen.

    Args:
        at: Times, [M].
        paths: Posterior paths, [S, B, M].
        exact: Mean and standard deviation [M] of each series.
        t: When it was seen, [B, N].
        x: What was seen, [B, N].
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(exact), sharey=True)
    low, high = paths.quantile(torch.tensor([0.05, 0.95]), dim=0)
    for b, (panel, (mean, spread)) in enumerate(zip(panels, exact, strict=True)):
        panel.fill_between(at, low[b], high[b], color=_BLUE, alpha=0.25, linewidth=0,
                           label="latent SDE, 90 %")  # fmt: skip
        panel.plot(at, paths[:, b].mean(0), color=_BLUE)
        panel.plot(at, paths[:3, b].T, color=_BLUE, linewidth=0.5, alpha=0.7)
        panel.plot(at, mean, "--", color=_GREY, label="exact, 90 %")
        for sign in (-1.645, 1.645):
            panel.plot(at, mean + sign * spread, ":", color=_GREY)
        panel.plot(t[b], x[b], "o", color=_ORANGE, markersize=4, label="seen")
        panel.set_xlabel("time")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Posterior of an Ornstein-Uhlenbeck process; forecast after the last point")
    return figure
