"""The figure of the adjoint's drift: what the report says over what is true.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["drift_and_estimate"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes say the same again.
_STYLES = (("#0072B2", "o"), ("#009E73", "^"), ("#D55E00", "s"), ("#CC79A7", "D"))
_GREY = "#666666"
_LEAST = 1e-9  # smaller figures are drawn here
_MOST = 1e3  # and larger ones here


class Point(Protocol):
    """One solve by the adjoint; see the script."""

    @property
    def kind(self) -> str:
        """Kind of its problem."""
        ...

    @property
    def error(self) -> float:
        """True relative error."""
        ...

    @property
    def drift(self) -> float:
        """Relative drift."""
        ...

    @property
    def estimate(self) -> float:
        """Estimated relative error."""
        ...

    @property
    def doubted(self) -> bool:
        """Whether a warning said so."""
        ...


def drift_and_estimate(
    points: Sequence[Point], kinds: Sequence[str], threshold: float, limits: tuple[float, float]
) -> Figure:
    """Left, the estimate over the true error; right, the drift.

    Args:
        points: The solves.
        kinds: Kinds of problem, in the order of the legend.
        threshold: Estimate from which ctflow warns.
        limits: True error below which no warning may be given, and above which one must be.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, name in ((left, "estimate"), (right, "drift")):
        for kind, (colour, marker) in zip(kinds, _STYLES, strict=True):
            for doubted in (True, False):
                own = [p for p in points if p.kind == kind and p.doubted == doubted]
                x, y = [_clip(p.error) for p in own], [_clip(getattr(p, name)) for p in own]
                face = colour if doubted else "none"
                panel.scatter(x, y, s=26, marker=marker, edgecolors=colour, facecolors=face)
        _decorate(panel, limits)
    left.axhline(threshold, color=_GREY, linestyle="--", linewidth=1)
    left.annotate(
        "warned from here on", (1e-9, threshold), (2, 4), textcoords="offset points", color=_GREY
    )
    left.annotate(
        "drift below 1e-5: no estimate made",
        (1e-8, _LEAST),
        (0, 8),
        textcoords="offset points",
        color=_GREY,
    )
    left.set_ylabel("estimated relative error, in the report")
    right.set_ylabel("drift, in the report")
    left.set_title("Estimate of the gradient's error", fontsize=11)
    right.set_title("Drift of the rebuilt state", fontsize=11)
    for kind, (colour, marker) in zip(kinds, _STYLES, strict=True):
        left.scatter([], [], marker=marker, color=colour, label=kind)
    left.scatter(
        [], [], marker="o", facecolors="none", edgecolors=_GREY, label="hollow: no warning"
    )
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def _decorate(panel: Axes, limits: tuple[float, float]) -> None:
    """Scales, the diagonal, and the strip between right and wrong."""
    panel.set(xscale="log", yscale="log")
    panel.set_xlim(_LEAST / 3, _MOST * 3)
    panel.set_ylim(_LEAST / 3, _MOST * 3)
    panel.plot([_LEAST, _MOST], [_LEAST, _MOST], ":", color=_GREY, linewidth=1)
    panel.axvspan(*limits, color="#EEEEEE", zorder=0)
    panel.set_xlabel("true relative error of the gradient")
    panel.grid(color="#E5E5E5")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _clip(x: float) -> float:
    return min(max(x, _LEAST), _MOST)
