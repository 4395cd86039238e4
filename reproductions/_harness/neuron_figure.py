"""Rates of single firing sequences and the rate of all of them, with their spikes.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from _harness.neurons import LENGTH, MS
from ctflow.latent import LatentODE

__all__ = ["firing"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#999999"


@torch.no_grad()
def firing(one: LatentODE, each: LatentODE, held: tuple[Tensor, Tensor, Tensor]) -> Figure:
    """Four held-out sequences, each with its own rate and the one rate of all.

    Args:
        one: The model with one rate for all.
        each: The model with a path for each sequence.
        held: Counts [B, n, 1], times [B, n] and mask [B, n] of the sequences held out.
    """
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    t = torch.linspace(0.0, LENGTH, 501)
    places = [len(held[0]) * k // 4 for k in range(4)]
    x, times, mask = (part[places] for part in held)
    paths = [model.predict(x, times, mask, at=t)[..., 0] for model in (each, one)]
    for b, panel in enumerate(panels):
        panel.plot(MS * t - 250, 1000 / MS * paths[1][b], color=_GREY, label="one rate for all")
        panel.plot(MS * t - 250, 1000 / MS * paths[0][b], color=_BLUE, label="its own path")
        spikes = MS * times[b][mask[b]] - 250
        panel.plot(spikes, torch.zeros_like(spikes), "|", color=_ORANGE, markersize=14,
                   label="spikes")  # fmt: skip
        panel.set_xlabel("ms from the stimulus")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("spikes per second")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Firing sequences that were held out")
    return figure
