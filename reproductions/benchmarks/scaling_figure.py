"""The figures of the scaling workloads.

This module imports matplotlib, which is optional: it is imported after `need` has been asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measuring import Entry
from benchmarks.scaling import Point, Sweep

__all__ = ["figure_of"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes say the same again.
_LIBRARIES = {
    "ctflow native": ("#0072B2", "o"),
    "ctflow compiled": ("#D55E00", "s"),
    "torchdiffeq": ("#009E73", "^"),
    "diffrax": ("#666666", "D"),
}
_MODES = {"forward": "-", "checkpointed": "-", "direct": "--", "adjoint": ":"}
_PANELS = {"forward": "forward", "exact": "forward and exact gradient"}
_Y = {
    "milliseconds": "milliseconds a call",
    "peak_bytes": "rise of resident memory (MiB)",
    "compile_seconds": "first call less a warm one (s)",
}


def figure_of(sweep: Sweep, points: Sequence[Point]) -> Figure:
    """One panel for the forward pass and one for the gradient; all in one for memory."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    figure.suptitle(sweep.title)
    if sweep.y == "peak_bytes":
        panels = {
            library: [point for point in points if point.entry.library == library]
            for library in _LIBRARIES
        }
    else:
        panels = {
            title: [point for point in points if point.entry.task == task]
            for task, title in _PANELS.items()
        }
    panels = {title: own for title, own in panels.items() if own}
    axes = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for panel, (title, own) in zip(axes, panels.items(), strict=False):
        _draw(panel, sweep, own)
        panel.set_title(title, fontsize=11)
    heights = [y for point in points if (y := _y(sweep, point))]
    if heights:  # whole decades, so that there are marks to read
        floor, ceiling = math.floor(math.log10(min(heights))), math.ceil(math.log10(max(heights)))
        axes[0].set_ylim(10.0**floor, 10.0 ** max(ceiling, floor + 1))
    axes[0].set_ylabel(_Y[sweep.y])
    return figure


def _draw(panel: Axes, sweep: Sweep, points: Sequence[Point]) -> None:
    for entry in dict.fromkeys(point.entry for point in points):
        own = [point for point in points if point.entry == entry]
        places = [(_x(sweep, point), _y(sweep, point)) for point in own]
        drawn = [(x, y) for x, y in places if x and y]
        if drawn:
            colour, marker = _LIBRARIES[entry.library]
            x, y = zip(*sorted(drawn), strict=True)
            panel.plot(
                x, y, _MODES[entry.mode], color=colour, marker=marker, markersize=5,
                label=_label(sweep, entry),
            )  # fmt: skip
    panel.set(xscale="log", yscale="log", xlabel=_xlabel(sweep))
    if sweep.name == "scaling-tolerance":
        panel.invert_xaxis()
    places = sorted({x for point in points if (x := _x(sweep, point))})
    if places and places[-1] < 100 * places[0]:  # too few decades for powers of ten
        panel.set_xticks(places, [f"{place:g}" for place in places])
        panel.minorticks_off()
    panel.grid(color="#DDDDDD")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)


def _label(sweep: Sweep, entry: Entry) -> str:
    if sweep.y == "peak_bytes":
        return entry.mode
    return entry.library if entry.task == "forward" else entry.key


def _xlabel(sweep: Sweep) -> str:
    named = {
        "scaling-tolerance": "relative error against a tight solve (better to the right)",
        "scaling-memory": "accepted forward steps (tolerance 1e-2 to 1e-7)",
    }
    return named.get(sweep.name, sweep.axis)


def _x(sweep: Sweep, point: Point) -> float | None:
    if sweep.name == "scaling-tolerance":
        return point.error
    return point.steps if sweep.name == "scaling-memory" else point.size


def _y(sweep: Sweep, point: Point) -> float | None:
    if sweep.y == "milliseconds":
        return None if point.milliseconds is None else point.milliseconds.median
    if sweep.y == "peak_bytes":
        return None if point.peak_bytes is None else point.peak_bytes / 2**20
    return point.compile_seconds
