"""Figure of a bouncing ball: its course before and after the fit, and the fit's way.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["courses_and_fit"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; dashes say the same again.
_LOOKS = {"true": ("#666666", "-"), "guess": ("#D55E00", ":"), "found": ("#0072B2", "--")}
_NAMES = {"gravity": ("#0072B2", "o"), "restitution": ("#D55E00", "s"), "floor": ("#009E73", "^")}


def courses_and_fit(
    courses: Mapping[str, tuple[Tensor, Tensor]],
    measured: Tensor,
    way: Sequence[Mapping[str, float]],
    true: Mapping[str, float],
) -> Figure:
    """Left one ball's height over time; right the error of each parameter during the fit.

    Args:
        courses: For each name times and heights, [T] each.
        measured: Times of this ball's bounces, [n].
        way: Parameters at every evaluation of the fit.
        true: Their true values.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (t, height) in courses.items():
        colour, style = _LOOKS[name]
        left.plot(t, height, style, color=colour, lw=1.4, label=name)
    floor = [true["floor"]] * len(measured)
    left.plot(measured, floor, "kv", markersize=6, label="measured times")
    left.set(xlabel="time (s)", ylabel="height (m)")
    left.legend(frameon=False, fontsize=8, loc="upper right")
    for name, (colour, mark) in _NAMES.items():
        errors = [abs(values[name] - true[name]) for values in way]
        right.semilogy(errors, color=colour, marker=mark, markersize=3, lw=1, label=name)
    right.set(xlabel="evaluation of the loss", ylabel="error of the parameter")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
