"""Figures of trainings side by side: losses and evaluations.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

__all__ = ["losses_and_evaluations", "smoothed"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; dashes say the same again.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_STYLES = ("-", "--", "-.", ":", "-", "--", "-.")

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def losses_and_evaluations(
    title: str,
    tasks: Mapping[str, Curves],
    unit: str = "step",
    names: tuple[str, str] = ("loss (mean square error)", "evaluations forward"),
) -> Figure:
    """One column a task: above what falls in learning, below what it costs.

    Args:
        title: Title of the whole figure.
        tasks: For each task and name of a curve, the values of both rows.
        unit: Of the horizontal axis.
        names: Of the two rows.
    """
    figure = Figure(figsize=(5 * len(tasks), 6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, len(tasks), squeeze=False, sharex="col")
    for column, (task, curves) in enumerate(tasks.items()):
        for i, (name, rows) in enumerate(curves.items()):
            for row, values in enumerate(rows):
                axes = panels[row][column]
                width = max(len(values) // 50, 1)
                shown = smoothed(values, width)
                axes.plot(
                    range(width, len(values) + 1), shown, color=_COLOURS[i % 7],
                    linestyle=_STYLES[i % 7], label=name,
                )  # fmt: skip
        panels[0][column].set_title(task, fontsize=11)
        panels[0][column].set_yscale("log")
        panels[1][column].set_xlabel(unit)
        panels[0][column].legend(frameon=False, fontsize=8)
    for row, name in enumerate(names):
        panels[row][0].set_ylabel(name)
    for axes in panels.flatten():
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Means of so many neighbours."""
    return [sum(values[i : i + width]) / width for i in range(len(values) - width + 1)]
