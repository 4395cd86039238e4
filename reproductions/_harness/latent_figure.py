"""Figure 6 of the paper: from observations to a latent path, and back to data beyond them.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from _harness.spiral_training import Trained, data_of
from _harness.spirals import N_SEEN
from ctflow.latent import LatentODE

__all__ = ["from_data_to_forecast"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's palette
_GREY = "#666666"


@torch.no_grad()
def from_data_to_forecast(trained: Trained) -> Figure:
    """Three rows on one axis of time: what was seen, the latent path, the decoded path.

    Args:
        trained: A latent ODE; its first test spiral is drawn.
    """
    model = trained.model
    if not isinstance(model, LatentODE):
        raise TypeError("figure 6 is that of a latent ODE")
    _, test = data_of(trained.job)
    one = test.part(0, 1)
    x, t, mask = one.observed
    torch.manual_seed(0)
    q = model.posterior(x, t, mask)
    at = test.t[: 2 * N_SEEN]
    paths = model.trajectory(q.sample((12,)), at)[:, 0]
    decoded = model.likelihood.mean(model.decoder(paths))
    seen, end = one.seen[0], float(t[-1])

    figure = Figure(figsize=(9, 7), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True)
    for panel in (above, middle, below):
        panel.axvline(end, color=_GREY, linestyle=":", linewidth=1)
        panel.spines[["top", "right"]].set_visible(False)
    for k in range(2):
        name = "first coordinate" if k == 0 else "second coordinate"
        above.plot(t[seen], x[0, seen, k], "os"[k], color=_COLOURS[k], markersize=4, label=name)
    for k in range(paths.shape[2]):
        middle.plot(at, paths[:, :, k].T, color=_COLOURS[k], linewidth=0.5, alpha=0.5)
        middle.errorbar(
            -0.15 - 0.08 * k, float(q.mean[0, k]), float(q.stddev[0, k]), fmt="o",
            color=_COLOURS[k], markersize=4, capsize=2,
        )  # fmt: skip
    for k in range(2):
        below.plot(at, decoded[:, :, k].T, color=_COLOURS[k], linewidth=0.5, alpha=0.5)
        below.plot(at, one.truth[0, : len(at), k], "--", color=_GREY, linewidth=1)
        below.plot(t[seen], x[0, seen, k], "os"[k], color=_COLOURS[k], markersize=3)
    above.set_title("Observed $x(t_i)$, read last to first by the encoder")
    middle.set_title("$q(z(t_0))$ at the left; paths drawn from it obey the learned ODE")
    below.set_title("Decoded: prediction, and extrapolation after the dotted line (truth dashed)")
    above.legend(frameon=False, ncols=2, fontsize=8)
    above.set_ylabel("data")
    middle.set_ylabel("latent state")
    below.set(ylabel="data", xlabel="time")
    arrow = ConnectionPatch(
        (float(t[seen][0]), float(x[0, seen][0, 0])), (-0.15, float(q.mean[0, 0])), "data", "data",
        axesA=above, axesB=middle, arrowstyle="->", color=_GREY,
    )  # fmt: skip
    figure.add_artist(arrow)
    return figure
