"""Figure of a trained network under other settings of its solver.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

__all__ = ["accuracy_and_evaluations"]

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"


class Setting(Protocol):
    """What is drawn of a setting: see the script."""

    @property
    def name(self) -> str:
        """The setting."""
        ...

    @property
    def tolerance(self) -> float | None:
        """Its tolerance; None for fixed steps."""
        ...

    @property
    def forward(self) -> float:
        """Evaluations."""
        ...

    @property
    def accuracy(self) -> float:
        """Share that is classified right."""
        ...


def accuracy_and_evaluations(title: str, settings: Sequence[Setting]) -> Figure:
    """Left both against tolerance; right accuracy against evaluations, fixed steps beside."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    adaptive = [each for each in settings if each.tolerance is not None]
    fixed = [each for each in settings if each.tolerance is None]
    tolerances = [each.tolerance or 0.0 for each in adaptive]
    accuracy = [100 * each.accuracy for each in adaptive]
    forward = [each.forward for each in adaptive]
    left.plot(tolerances, accuracy, color=_BLUE, marker="o")
    left.set(xscale="log", xlabel="tolerance")
    left.set_ylabel("test accuracy (%)", color=_BLUE)
    other = left.twinx()
    other.plot(tolerances, forward, color=_ORANGE, marker="s")
    other.set_ylabel("evaluations forward", color=_ORANGE)
    right.plot(forward, accuracy, color=_BLUE, marker="o", label="adaptive steps")
    right.plot(
        [each.forward for each in fixed], [100 * each.accuracy for each in fixed],
        color=_GREEN, marker="^", ls="", label="fixed Euler steps",
    )  # fmt: skip
    right.set(xlabel="evaluations forward", ylabel="test accuracy (%)")
    right.legend(frameon=False)
    left.set_ylim(right.get_ylim())  # one image more or less is no trend
    for axes in (left, right):
        axes.grid(color="#DDDDDD")
        axes.spines["top"].set_visible(False)
    right.spines["right"].set_visible(False)
    return figure
