"""The paper's figure 2: a state and its adjoint, with the jumps.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["state_and_adjoint"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; dashes say the same again.
_COLOURS, _GREY = ("#0072B2", "#D55E00"), "#666666"
_NAMES, _DASHES = ("angle", "speed"), ("-", "--")


class Curves(Protocol):
    """For each interval, last to first: times [K], states [K, 2] and adjoints [K, 2]."""

    @property
    def times(self) -> list[Tensor]:
        """When, from late to early."""
        ...

    @property
    def states(self) -> list[Tensor]:
        """The state then."""
        ...

    @property
    def adjoints(self) -> list[Tensor]:
        """The adjoint then."""
        ...


def state_and_adjoint(curves: Curves, times: Tensor, seen: Tensor) -> Figure:
    """The state above with its observations, the adjoint below with its jumps.

    Args:
        curves: What is drawn.
        times: When the state is observed, [M].
        seen: What was observed, [M, 2].
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for panel in (above, below):
        panel.axhline(0, color="#BBBBBB", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        for t in times.tolist():
            panel.axvline(t, color="#DDDDDD", linewidth=0.8, zorder=0)
    _draw_state(above, curves, times, seen)
    _draw_adjoint(below, curves)
    below.set_xticks([0.0, *times.tolist()])
    below.set_xticklabels(["$t_0$", *(f"$t_{i}$" for i in range(1, len(times) + 1))])
    below.set_xlabel("time")
    return figure


def _draw_state(panel: Axes, curves: Curves, times: Tensor, seen: Tensor) -> None:
    for k, (name, colour, dash) in enumerate(zip(_NAMES, _COLOURS, _DASHES, strict=True)):
        for t, z in zip(curves.times, curves.states, strict=True):
            panel.plot(t, z[:, k], dash, color=colour)
        panel.plot([], [], dash, color=colour, label=name)
        panel.plot(times, seen[:, k], "os"[k], color=colour, markerfacecolor="white")
        for t, z, x in zip(curves.times, curves.states, seen.flip(0), strict=True):
            panel.plot([t[0]] * 2, [z[0, k], x[k]], ":", color=colour, linewidth=1)
    panel.plot([], [], "o", color=_GREY, markerfacecolor="white", label="observations")
    panel.set_ylabel("state $z(t)$")
    panel.set_title("Forward: the state, and what was observed")
    panel.legend(frameon=False, ncols=3, loc="lower right")


def _draw_adjoint(panel: Axes, curves: Curves) -> None:
    for k, (colour, dash) in enumerate(zip(_COLOURS, _DASHES, strict=True)):
        later = 0.0
        for t, a in zip(curves.times, curves.adjoints, strict=True):
            panel.plot(t, a[:, k], dash, color=colour)
            panel.annotate(
                "",
                (float(t[0]), float(a[0, k])),
                (float(t[0]), later),
                arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 0, "shrinkB": 0},
            )
            later = float(a[-1, k])
        panel.plot(0.0, later, "o", color=colour)
    t, a = curves.times[0], curves.adjoints[0]
    panel.annotate(
        r"jump $\partial L / \partial z(t_5)$",
        (float(t[0]), float(a[0, 0])),
        (8, 16),
        textcoords="offset points",
        ha="right",
        color=_GREY,
    )
    panel.set_ylabel(r"adjoint $a(t) = \partial L / \partial z(t)$")
    panel.set_title("Backward: the adjoint, from the right; arrows are its jumps")
