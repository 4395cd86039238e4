"""The figure of the same training under every backend.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

__all__ = ["errors_by_backend"]


def errors_by_backend(title: str, errors: Mapping[str, Sequence[float]]) -> Figure:
    """One mark a seed, a line for the mean, a row for each backend.

    Args:
        title: Title of the figure.
        errors: Test errors in percent, by backend.
    """
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    for place, own in enumerate(errors.values()):
        first = place == 0
        axes.plot(own, [place] * len(own), "o", color="#0072B2", label="a seed" * first)
        middle = sum(own) / len(own)
        axes.plot(middle, place, "|", color="#D55E00", markersize=22, label="mean" * first)
    axes.set_yticks(range(len(errors)), list(errors))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("test error (%)")
    axes.legend(frameon=False)
    axes.grid(color="#DDDDDD")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
