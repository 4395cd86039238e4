"""The figure of the memory reproduction: peaks over steps, and times over sizes.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _harness.costs import Peak, Timing

__all__ = ["memory_and_time"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes say the same again.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_METHODS = {"direct": (_BLUE, "o"), "checkpointed": (_ORANGE, "s"), "adjoint": (_GREEN, "^")}


def memory_and_time(
    peaks: Sequence[Peak], timings: Sequence[Timing], axes: Mapping[str, str]
) -> Figure:
    """Left above, peak storage over steps; beside and below, time over three kinds of size.

    Args:
        peaks: One for each tolerance, loosest first.
        timings: Sizes along every axis, smallest first.
        axes: Name of each axis, and what its sizes are multiples of.
    """
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for panel, (axis, unit) in zip(panels[1:], axes.items(), strict=True):
        _draw_times(panel, [each for each in timings if each.axis == axis], unit)
    for panel in panels:
        panel.set(xscale="log", yscale="log")
        panel.grid(color="#DDDDDD")
        panel.spines[["top", "right"]].set_visible(False)
    _draw_peaks(panels[0], peaks)
    panels[0].set_title("Memory: the adjoint's does not grow with steps", fontsize=11)
    panels[1].set_title("Time against state size", fontsize=11)
    panels[2].set_title("Time against number of parameters", fontsize=11)
    panels[3].set_title("Time against horizon", fontsize=11)
    return figure


def _draw_peaks(panel: Axes, peaks: Sequence[Peak]) -> None:
    steps = [each.steps for each in peaks]
    for name, (colour, marker) in _METHODS.items():
        mib = [each.n_bytes[name] / 2**20 for each in peaks]
        panel.plot(steps, mib, color=colour, marker=marker, label=name)
    panel.set_xlabel("accepted forward steps (tolerance 1e-2 to 1e-8)")
    panel.set_ylabel("peak storage, outputs subtracted (MiB)")
    panel.set_xticks(steps, [str(n) for n in steps], minor=False)
    marks = [2.0**k for k in range(-3, 8)]
    panel.set_yticks(marks, [f"{mark:g}" for mark in marks])
    panel.minorticks_off()
    panel.set_ylim(
        min(peak.n_bytes["checkpointed"] for peak in peaks) / 2**20.5,
        max(peak.n_bytes["direct"] for peak in peaks) / 2**19.5,
    )
    panel.legend(frameon=False)


def _draw_times(panel: Axes, timings: Sequence[Timing], unit: str) -> None:
    sizes = [each.size for each in timings]
    forward = [1e3 * each.forward for each in timings]
    adjoint = [1e3 * each.adjoint for each in timings]
    panel.plot(sizes, adjoint, color=_GREEN, marker="^", label="backward, by the adjoint")
    panel.plot(sizes, forward, color=_GREY, marker="o", label="forward")
    guide = [forward[-1] * 0.5 * size / sizes[-1] for size in sizes]
    panel.plot(sizes, guide, color=_GREY, linestyle=":", label="slope 1")
    panel.set_ylim(min(forward) / 3, max(adjoint) * 2)
    panel.set_xlabel(unit)
    panel.set_ylabel("CPU time (ms)")
    panel.legend(frameon=False)
