"""Posterior bands of a latent SDE over paths of the Lorenz attractor.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["bands_of_doubt"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#444444"


def bands_of_doubt(t: Tensor, paths: Tensor, truth: Tensor, noisy: Tensor, seen: Tensor) -> Figure:
    """Three series, one column each, and their three coordinates below each other.

    Args:
        t: Times, [M].
        paths: Posterior paths, [S, B, M, 3].
        truth: True paths, [B, M, 3].
        noisy: Values, [B, N, 3].
        seen: Which of them are seen, [B, N].
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    panels = figure.subplots(3, 3, sharex=True, sharey="row")
    low, high = paths[:, :3].quantile(torch.tensor([0.05, 0.95]), dim=0)
    n = noisy.shape[1]
    for b in range(3):
        for k, name in enumerate("xyz"):
            panel = panels[k][b]
            panel.axvspan(float(t[n - 1]), float(t[-1]), color="#EEEEEE", linewidth=0)
            panel.fill_between(t, low[b, :, k], high[b, :, k], color=_BLUE, alpha=0.25, linewidth=0,
                               label="90 % of the paths")  # fmt: skip
            panel.plot(t, paths[:3, b, :, k].T, color=_BLUE, linewidth=0.5)
            panel.plot(t, truth[b, :, k], "--", color=_GREY, linewidth=1, label="truth")
            panel.plot(t[:n][seen[b]], noisy[b, seen[b], k], "o", color=_ORANGE, markersize=3,
                       label="seen")  # fmt: skip
            panel.spines[["top", "right"]].set_visible(False)
            if b == 0:
                panel.set_ylabel(name)
            if k == 2:
                panel.set_xlabel("time (tenths of the system's)")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle("Stochastic Lorenz attractor: posterior paths; nothing is seen in the shade")
    return figure
