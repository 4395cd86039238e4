"""A training step alone and split, and what many processes would make of it.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from matplotlib.figure import Figure

__all__ = ["measured_and_projected"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's palette
_MARKERS = ("o", "s", "^")


class Measured(Protocol):
    """What is drawn of a timing."""

    family: str
    processes: int
    alone: float
    together: float
    quartiles: tuple[float, float]


def measured_and_projected(
    timings: Sequence[Measured], projected: Sequence[Mapping[str, Any]]
) -> Figure:
    """Bars of times; efficiency against processes, for the same batch and one that grows.

    Args:
        timings: Steps alone and together.
        projected: Efficiency by model and number of processes.
    """
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    bars, *panels = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    for place, each in enumerate(timings):
        low, high = each.quartiles
        error = [[each.together - low], [high - each.together]]
        bars.barh(2.5 * place, each.alone, color="#999999")
        bars.barh(2.5 * place + 0.9, each.together, xerr=error, color=_COLOURS[0])
        speed = f"  {each.together:.0f} ms, {each.alone / each.together:.2f}x"
        bars.text(each.alone, 2.5 * place, f"  {each.alone:.0f} ms", va="center", fontsize=8)
        bars.text(max(high, each.together), 2.5 * place + 0.9, speed, va="center", fontsize=8)
    names = [f"{each.family}\n1 and {each.processes} processes" for each in timings]
    bars.set_yticks([2.5 * place + 0.45 for place in range(len(timings))], names, fontsize=8)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.6 * max(max(each.alone, *each.quartiles) for each in timings))
    bars.set_xlabel("processor milliseconds of a step")
    bars.set_title("measured", fontsize=10, loc="left")
    families = list(dict.fromkeys(each["family"] for each in projected))
    for axes, kind in zip(panels, ("same batch", "batch grows"), strict=True):
        for family, colour, marker in zip(families, _COLOURS, _MARKERS, strict=False):
            own = [each for each in projected if each["family"] == family]
            axes.plot(
                [each["processes"] for each in own], [100 * each[kind] for each in own],
                color=colour, marker=marker, label=family,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({each["processes"] for each in projected}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_ylim(0, 105)
        axes.set_xlabel("processes")
        axes.set_title(f"projected, {kind}", fontsize=10, loc="left")
    panels[0].set_ylabel("efficiency (%)")
    panels[0].legend(fontsize=8, frameon=False)
    for axes in (bars, *panels):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
