"""Figure of learned paths beside the solution, with the time as an input and without.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["paths_by_time"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; dashes say the same again.
_LOOKS = {False: ("plain", "#D55E00", ":"), True: ("STEER", "#0072B2", "--")}


class Path(Protocol):
    """What is drawn of a run: whether its field saw the time, whether its end was random."""

    @property
    def timed(self) -> bool: ...
    @property
    def steer(self) -> bool: ...
    @property
    def path(self) -> list[float]: ...


def paths_by_time(t: Tensor, truth: Tensor, runs: Sequence[Path]) -> Figure:
    """Left the fields that see the time, right those that do not.

    Args:
        t: Times, [T].
        truth: The solution, [T].
        runs: The learned paths.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    titles = {True: "field given the time", False: "field of y alone"}
    panels = zip(figure.subplots(1, 2), titles.items(), strict=True)
    for axes, (timed, title) in panels:
        axes.plot(t, truth, color="#666666", lw=2, label="solution")
        for steer, (name, colour, style) in _LOOKS.items():
            own = [each for each in runs if (each.timed, each.steer) == (timed, steer)]
            for place, each in enumerate(own):
                label = name if place == 0 else None
                axes.plot(t, each.path, style, color=colour, lw=1.2, label=label)
        axes.set(title=title, xlabel="time", ylabel="y")
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure
