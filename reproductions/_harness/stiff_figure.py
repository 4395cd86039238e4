"""The figure of the stiff problems: work over precision, and what the gradients are worth.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

__all__ = ["work_and_gradients"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes say the same again.
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
_GREY = "#666666"


class Run(Protocol):
    """One solve; see the script."""

    @property
    def problem(self) -> str:
        """Name of its problem."""
        ...

    @property
    def method(self) -> str:
        """Its method."""
        ...

    @property
    def rtol(self) -> float:
        """Relative tolerance."""
        ...

    @property
    def steps(self) -> int:
        """Attempted steps."""
        ...

    @property
    def error(self) -> float:
        """Largest error in tolerances."""
        ...

    @property
    def steps_gradient(self) -> float | None:
        """Error of the gradient as that of the steps."""
        ...

    @property
    def gradient(self) -> float | None:
        """Error of the gradient as that of the solution."""
        ...


def work_and_gradients(runs: Sequence[Run], limit: float) -> Figure:
    """Left, steps over the error of the state; right, errors of the gradient over the tolerance.

    Args:
        runs: The solves.
        limit: Largest error accepted of a gradient.
    """
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(run.problem for run in runs))
    for name, (colour, marker) in zip(names, _STYLES, strict=False):
        for method, line, face in (("rodas5p", "-", colour), ("radau", ":", "none")):
            own = [run for run in runs if (run.problem, run.method) == (name, method)]
            errors = [run.error * run.rtol for run in own]
            left.loglog(errors, [run.steps for run in own], line, color=colour, marker=marker,
                        markerfacecolor=face)  # fmt: skip
        ours = [run for run in runs if run.problem == name and run.gradient is not None]
        tolerances = [run.rtol for run in ours]
        right.loglog(tolerances, [run.gradient for run in ours], color=colour, marker=marker)
        checked = [run for run in ours if run.steps_gradient is not None]
        right.loglog(
            [run.rtol for run in checked], [run.steps_gradient for run in checked], color=colour,
            marker=marker, markerfacecolor="none", linestyle="none",
        )  # fmt: skip
        left.plot([], [], color=colour, marker=marker, linestyle="none", label=name)
    right.axhline(limit, color=_GREY, linewidth=1)
    right.annotate("accepted at 1e-6", (0.0, limit), (4, 3), xycoords=("axes fraction", "data"),
                   textcoords="offset points", color=_GREY)  # fmt: skip
    left.set_xlabel("largest error of a variable, over |y| + atol / rtol")
    left.set_ylabel("attempted steps")
    left.set_title("Rodas5P (filled) and SciPy's Radau (hollow, dotted)", fontsize=11)
    right.set_xlabel("relative tolerance")
    right.set_ylabel("relative error of the parameters' gradient")
    right.set_title("Gradient: of the solution (filled), of the steps (hollow)", fontsize=11)
    for panel in (left, right):
        panel.grid(color="#E5E5E5")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
