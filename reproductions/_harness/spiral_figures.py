"""Figures 8, 9 and 10 of the paper: spirals, what is made of them, and the latent space.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from _harness.spiral_scores import forecast, traversal
from _harness.spiral_training import Trained, data_of
from _harness.spirals import N_SEEN, Spirals
from ctflow.latent import LatentODE

__all__ = ["figure_8", "figure_9", "figure_10"]

_GREEN, _BLUE, _RED = "#009E73", "#0072B2", "#D55E00"
_LENGTH = 280  # samples drawn, as in the paper


def figure_8(rnn: Trained, latent: Trained) -> Figure:
    """An RNN and a latent ODE on the same spirals, and the latent paths by direction.

    Args:
        rnn: A recurrent model.
        latent: A latent ODE at the same number of points.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _, test = data_of(latent.job)
    with torch.no_grad():
        for panel, trained in ((left, rnn), (middle, latent)):
            _draw(panel, trained, test, 0)
    left.set_title(f"(a) {rnn.job.model}, {rnn.job.points} points")
    middle.set_title(f"(b) latent ODE, {latent.job.points} points")
    middle.legend(frameon=False, fontsize=8, loc="upper right")
    _draw_latent(right, latent, test)
    right.set_title("(c) latent paths, by direction")
    return figure


def figure_9(latent: Trained) -> Figure:
    """Decoded paths while one latent variable moves; purple is the start, red the end."""
    paths = traversal(latent)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(2, len(paths) // 2).flatten()
    span = float(paths.abs().max()) * 1.05
    for panel, path in zip(panels, paths, strict=True):
        segments = torch.stack([path[:-1], path[1:]], dim=1)
        lines = LineCollection(
            list(segments.numpy()),
            cmap=colormaps["rainbow"],
            array=torch.linspace(0, 1, len(segments)).numpy(),
        )
        panel.add_collection(lines)
        panel.set(xlim=(-span, span), ylim=(-span, span), aspect="equal", xticks=[], yticks=[])
    figure.suptitle("Decoded paths while one variable of z(t0) goes from one end to the other")
    return figure


def figure_10(columns: Sequence[Trained]) -> Figure:
    """Both directions by number of points.

    Args:
        columns: A latent ODE for each number of points.
    """
    figure = Figure(figsize=(3.6 * len(columns), 7), layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False)
    with torch.no_grad():
        for j, trained in enumerate(columns):
            _, test = data_of(trained.job)
            for i in range(2):  # neighbours in the data have opposite directions
                _draw(panels[i, j], trained, test, i)
            panels[0, j].set_title(f"{trained.job.points}/100 points")
    panels[0, 0].legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def _draw(panel: Axes, trained: Trained, test: Spirals, which: int) -> None:
    """Truth, observations, prediction where points were seen, and extrapolation."""
    truth, seen = test.truth[which], test.seen[which]
    points = test.noisy[which, :N_SEEN][seen]
    within = _within(trained, test, which)
    beyond = torch.cat([within[-1:], _beyond(trained, test, which)])
    panel.plot(*truth.T, color=_GREEN, linewidth=1, label="truth")
    panel.plot(*points.T, ".", color=_GREEN, markersize=4, label="seen")
    panel.plot(*within.T, color=_BLUE, linewidth=1.2, label="prediction")
    panel.plot(*beyond.T, color=_RED, linewidth=1.2, linestyle="--", label="extrapolation")
    panel.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=[], yticks=[])


def _within(trained: Trained, test: Spirals, which: int) -> Tensor:
    """A latent ODE's path through the seen revolution; an RNN's predictions of the next point."""
    one = test.part(which, which + 1)
    x, t, mask = one.observed
    model = trained.model
    if isinstance(model, LatentODE):
        return model.predict(x, t, mask, at=t)[0]
    places = one.seen[0].nonzero()[:, 0].tolist()
    steps = [
        model.predict(x[:, : i + 1], t[: i + 1], mask[:, : i + 1], at=t[j : j + 1])[0]
        for i, j in pairwise(places)
    ]
    return torch.cat(steps)


def _beyond(trained: Trained, test: Spirals, which: int) -> Tensor:
    return forecast(trained, test.t[N_SEEN:_LENGTH])[which]


def _draw_latent(panel: Axes, latent: Trained, test: Spirals) -> None:
    """The paths in the two variables that vary most."""
    model = latent.model
    if not isinstance(model, LatentODE):
        return
    x, t, mask = test.observed
    with torch.no_grad():
        means = model.posterior(x, t, mask).mean
        z = model.trajectory(means, t)
    _, _, axes = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    seen = z @ axes[:2].T
    starts = means @ axes[:2].T
    for sign, colour, name in ((1, _BLUE, "counter-clockwise"), (-1, _RED, "clockwise")):
        rows = test.direction == sign
        for path in seen[rows]:
            panel.plot(*path.T, color=colour, linewidth=0.4, alpha=0.4)
        panel.plot(*starts[rows].T, ".", color=colour, markersize=3, label=name)
    panel.set(xlabel="first principal direction of z(t0)", ylabel="second")
    panel.legend(frameon=False, fontsize=8)
