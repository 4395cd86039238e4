"""The figure of a training step: everybody's time, and memory against tolerance.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

__all__ = ["times_and_memory"]

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes say the same again.
_STYLES = (("#009E73", "^"), ("#0072B2", "o"), ("#D55E00", "s"), ("#CC79A7", "D"))


def times_and_memory(
    times: Mapping[str, Sequence[float]],
    memory: Mapping[str, Sequence[float]],
    tolerances: Sequence[float],
) -> Figure:
    """Left, one mark a round; right, one line a gradient.

    Args:
        times: Milliseconds of every round, by who took them.
        memory: Peak KiB at every tolerance, by gradient.
        tolerances: The tolerances.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle("A training step of the ODE-Net")
    left, right = figure.subplots(1, 2)
    for place, values in enumerate(times.values()):
        left.plot(values, [place] * len(values), "o", color="#0072B2", alpha=0.5)
    left.set_yticks(range(len(times)), list(times))
    left.invert_yaxis()
    left.set(xscale="log", xlabel="time of one thread, every round (ms)")
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.xaxis.set_minor_formatter(NullFormatter())
    for (name, kib), (colour, marker) in zip(memory.items(), _STYLES, strict=False):
        right.plot(tolerances, kib, color=colour, marker=marker, label=name)
    right.set(xscale="log", yscale="log", xlabel="tolerance")
    right.set_ylabel("peak live storage of the block (KiB)")
    right.invert_xaxis()
    if memory:
        right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
