"""The four panels of Figure 3.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _harness.live import Epoch
from _harness.solves import Measured

__all__ = ["statistics_of_solves"]

_MARKS = {"dopri5": "o", "tsit5": "s", "Adams (VODE)": "^", "LSODA": "D"}
# Six steps of matplotlib's viridis, light to dark as the tolerance tightens.
_SHADES = ("#fde725", "#7ad151", "#22a884", "#2a788e", "#414487", "#440154")
_GREY, _BLUE = "#666666", "#0072B2"


def statistics_of_solves(
    title: str, solves: Sequence[Measured], history: Sequence[Epoch], paper: Mapping[float, float]
) -> Figure:
    """Error, time and backward evaluations against forward ones; evaluations against epochs.

    Args:
        title: Title of the whole figure.
        solves: One mark each in panels a to c.
        history: Of the training.
        paper: The paper's ratio of panel c, by tolerance.
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    figure.suptitle(title)
    a, b, c, d = figure.subplots(2, 2).flatten()
    tolerances = sorted({each.tolerance for each in solves}, reverse=True)
    shades = {t: _SHADES[i * (len(_SHADES) - 1) // max(len(tolerances) - 1, 1)]
              for i, t in enumerate(tolerances)}  # fmt: skip
    batch = max(each.batch for each in solves)
    full = [each for each in solves if each.norm in ("full", "whole")]
    for each in full:
        mark = {"marker": _MARKS[each.solver], "color": shades[each.tolerance], "ms": 5,
                "mec": _GREY, "mew": 0.4, "ls": ""}  # fmt: skip
        a.plot(each.forward, max(each.error, 1e-12), **mark)
        if each.batch == batch and each.solver in ("dopri5", "tsit5"):
            b.plot(each.forward, 1e3 * each.seconds, **mark)
        c.plot(each.forward, each.backward, **mark)
    for tolerance in tolerances:
        a.axhline(tolerance, color=shades[tolerance], linestyle="--", linewidth=1)
        a.plot([], [], "o", color=shades[tolerance], label=f"tolerance {tolerance:.0e}")
    for solver in dict.fromkeys(each.solver for each in full):
        c.plot([], [], _MARKS[solver], color=_GREY, label=solver)
    _line(c, [each.forward for each in full], 1.0, "-", "as many")
    _line(c, [each.forward for each in full], sum(paper.values()) / len(paper), ":", "the paper's")
    epochs = [e.epoch for e in history]
    d.plot(epochs, [e.forward for e in history], "s--", color=_GREY, ms=4, label="in training")
    fine = [e.fine for e in history if e.fine is not None]
    d.plot(epochs[-len(fine) :], fine, "o-", color=_BLUE, ms=4, label="at tolerance 1e-03")
    a.set(yscale="log", xlabel="evaluations forward", ylabel="error of the solve (rms)")
    b.set(xlabel="evaluations forward", ylabel=f"CPU time forward, batch {batch} (ms)")
    b.set_ylim(bottom=0)
    b.set_xlim(left=0)
    c.set(xlabel="evaluations forward", ylabel="evaluations backward")
    d.set(xlabel="epoch", ylabel="evaluations forward, mean over samples")
    titles = ("(a) error against tolerance", "(b) time follows evaluations",
              "(c) backward against forward", "(d) evaluations by epoch")  # fmt: skip
    for axes, text in zip((a, b, c, d), titles, strict=True):
        axes.set_title(text, fontsize=11)
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    a.legend(frameon=False, fontsize=8, loc="upper right")
    c.legend(frameon=False, fontsize=8)
    d.legend(frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, x: Sequence[float], slope: float, style: str, label: str) -> None:
    end = max(x)
    axes.plot([0, end], [0, slope * end], style, color=_GREY, linewidth=1, label=label)
