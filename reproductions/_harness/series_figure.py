"""Errors of models of real series by how much they are shown, and one series with its forecast.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _harness.series_models import INTERPOLANTS, Answer

__all__ = ["errors_by_share"]

_COLOURS = {
    "latent ODE, RNN encoder": "#0072B2",
    "latent ODE, ODE-RNN encoder": "#56B4E9",
    "RNN": "#D55E00",
    "RNN with gaps": "#E69F00",
    "GRU with gaps": "#CC79A7",
    "linear": "#999999",
    "spline": "#444444",
}


class Row(Protocol):
    """One model on one set and task, at every share shown."""

    @property
    def data(self) -> str:
        """Name of the set."""
        ...

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    @property
    def task(self) -> str:
        """What was asked."""
        ...

    @property
    def values(self) -> list[float]:
        """For each share."""
        ...


def errors_by_share(shares: Sequence[float], rows: Sequence[Row], answer: Answer | None) -> Figure:
    """One series above; below it a plot for each set and task.

    Args:
        shares: Of the observations, that were shown.
        rows: Every model on every set and task.
        answer: A model's answer, whose first test series is drawn.
    """
    kinds = list(dict.fromkeys((row.data, row.task) for row in rows))
    figure = Figure(figsize=(3.4 * max(len(kinds), 3), 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.2))
    if answer is not None:
        _draw_series(above.subplots(), answer)
    for axes, (data, task) in zip(below.subplots(1, len(kinds)), kinds, strict=True):
        for row in rows:
            if (row.data, row.task) == (data, task):
                style = "--" if row.model in INTERPOLANTS else "-"
                axes.plot(shares, row.values, style, marker="o", markersize=4,
                          color=_COLOURS[row.model], label=row.model)  # fmt: skip
        axes.set(xlabel="share shown", title=f"{data}, {task}")
        axes.set_ylim(0, 1.0 if task == "class" else None)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
        unit = "RMSE (ppm)" if data == "co2" else "RMSE (standard deviations)"
        axes.set_ylabel("told right" if task == "class" else unit)
    handles, labels = below.axes[0].get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_series(axes: Axes, answer: Answer, b: int = 0) -> None:
    test, unit = answer.split.test, answer.split.unit
    t, there, seen = test.t, test.there[b], answer.seen[b]
    hidden = there & ~seen
    values = unit * test.x[b, :, 0]
    axes.axvspan(float(t[test.early[b]].max()), float(t[-1]), color="#EEEEEE", linewidth=0)
    axes.plot(t[hidden], values[hidden], ".", color="#999999", markersize=4, label="hidden")
    axes.plot(t, unit * answer.found[b, :, 0], color=_COLOURS[answer.model], label=answer.model)
    axes.plot(t[seen], values[seen], "o", color="#009E73", markersize=6, label="shown")
    axes.set(xlabel="seasons", ylabel="CO2 since the first value (ppm)",
             title="One test series; in the shaded year nothing was shown")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
