"""The figure of Table 1: errors of every network, and memory against depth.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _harness.bodies import Growth
from _harness.training import NETS, Trained

__all__ = ["errors_and_memory"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes say the same again.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_BODIES = [(_GREY, "D"), (_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "^")]


def errors_and_memory(
    title: str, trained: Sequence[Trained], growth: Sequence[Growth], paper: Mapping[str, float]
) -> Figure:
    """Left, one mark a network and seed, the paper's on MNIST beside it; right, memory.

    Args:
        title: Title of the whole figure.
        trained: Every network.
        growth: Memory of every body.
        paper: The paper's errors in percent.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"Table 1 on {title}")
    left, right = figure.subplots(1, 2)
    for place, net in enumerate(NETS):
        errors = [100 * each.error for each in trained if each.job.net == net]
        left.plot(errors, [place] * len(errors), "o", color=_BLUE, label="ours" * (place == 0))
        if net in paper:
            first = "the paper's, on MNIST" * (place == 0)
            left.plot(paper[net], place, "x", color=_ORANGE, label=first)
    left.set_yticks(range(len(NETS)), NETS)
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel("test error (%)")
    left.legend(frameon=False)
    for each, (colour, marker) in zip(growth, _BODIES, strict=True):
        mib = [kib / 1024 for kib in each.kib]
        label = f"{each.body}: depth$^{{{each.exponent:.2f}}}$"
        right.plot(each.depth, mib, color=colour, marker=marker, label=label)
    right.set(xscale="log", yscale="log", xlabel="depth: blocks, or steps of the solver")
    right.set_ylabel("peak live storage of a training step (MiB)")
    right.set_xticks(growth[0].depth, [str(depth) for depth in growth[0].depth])
    right.minorticks_off()
    right.legend(frameon=False)
    _tidy(left)
    _tidy(right)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(color="#DDDDDD")
    axes.spines[["top", "right"]].set_visible(False)
