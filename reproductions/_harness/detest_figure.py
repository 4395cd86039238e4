"""Figure of work against precision on DETEST.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

__all__ = ["work_and_precision"]

_COLOURS = {"3": "#009E73", "5": "#0072B2", "7": "#CC79A7", "8": "#D55E00"}
_ORDERS = {
    "bosh3": "3", "RK23": "3", "dopri5": "5", "tsit5": "5", "RK45": "5", "vern7": "7",
    "dopri8": "8", "dop853": "8", "DOP853": "8",
}  # fmt: skip
_LINES = {"ctflow": "-", "torchdiffeq": "--", "SciPy": ":"}
_MARKERS = {"tsit5": "s", "dop853": "s", "DOP853": "s"}


class Run(Protocol):
    """What is drawn of a solve: see the script."""

    @property
    def problem(self) -> str:
        """Its name."""
        ...

    @property
    def who(self) -> str:
        """Library and method."""
        ...

    @property
    def tolerance(self) -> float:
        """Tolerance."""
        ...

    @property
    def error(self) -> float:
        """Error at the end."""
        ...

    @property
    def evaluations(self) -> int:
        """Evaluations."""
        ...


def work_and_precision(runs: Sequence[Run]) -> Figure:
    """For each class, and for all, evaluations against error: geometric means at each tolerance."""
    classes = [*dict.fromkeys(run.problem[0] for run in runs), ""]
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    figure.suptitle("DETEST: evaluations against error at t = 20, geometric means")
    panels = figure.subplots(2, 3, squeeze=False).flatten()
    for panel, name in zip(panels, classes, strict=False):
        chosen = [run for run in runs if run.problem.startswith(name)]
        for who in dict.fromkeys(run.who for run in chosen):
            own = [run for run in chosen if run.who == who]
            library, method = who.split()
            points = [
                (_mean([max(run.error, 1e-16) for run in own if run.tolerance == tolerance]),
                 _mean([run.evaluations for run in own if run.tolerance == tolerance]))
                for tolerance in sorted({run.tolerance for run in own})
            ]  # fmt: skip
            panel.plot(
                *zip(*points, strict=True), _LINES[library], color=_COLOURS[_ORDERS[method]],
                marker=_MARKERS.get(method, "o"), markersize=3.5, linewidth=1.2, label=who,
            )  # fmt: skip
        panel.set(xscale="log", yscale="log", title=f"class {name}" if name else "all problems")
        panel.set(xlabel="error", ylabel="evaluations")
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
    for panel in panels[len(classes) :]:
        panel.set_visible(False)
    handles, labels = panels[len(classes) - 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
