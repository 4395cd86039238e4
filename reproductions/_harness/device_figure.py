"""Times of calls on one device, a panel for each workload.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

__all__ = ["times_by_workload"]

_OURS, _THEIRS = "#0072B2", "#999999"  # Okabe and Ito's palette; labels say the same again


class Measured(Protocol):
    """What is drawn of a contestant."""

    what: str
    task: str
    backend: str
    milliseconds: float
    low: float
    high: float
    apart: bool


def times_by_workload(rows: Sequence[Measured], device: str) -> Figure:
    """Bars of medians with quartiles, task by task.

    Args:
        rows: Everybody on everything.
        device: Its name.
    """
    whats = list({row.what: 0 for row in rows})
    groups = [[row for row in rows if row.what == what] for what in whats]
    columns = 2
    left, right = groups[: (len(groups) + 1) // 2], groups[(len(groups) + 1) // 2 :]
    heights = [sum(len(g) + 1.5 for g in side) for side in (left, right)]
    figure = Figure(figsize=(12.0, 0.6 + 0.24 * max(heights)), layout="constrained")
    star = "; * by itself, while others compiled" if any(row.apart for row in rows) else ""
    figure.suptitle(f"One call on {device}, milliseconds{star}")
    sides = figure.subfigures(1, columns)
    for side, own in zip(sides, (left, right), strict=True):
        if not own:
            continue
        panels = side.subplots(len(own), 1, squeeze=False, height_ratios=[len(g) + 1 for g in own])
        for axes, group in zip(panels[:, 0], own, strict=True):
            for place, row in enumerate(group):
                colour = _THEIRS if row.backend == "torchdiffeq" else _OURS
                error = [[row.milliseconds - row.low], [row.high - row.milliseconds]]
                axes.barh(place, row.milliseconds, color=colour, xerr=error, height=0.7)
                axes.text(row.high, place, f" {row.milliseconds:.3g}", va="center", fontsize=8)
            axes.set_yticks(
                range(len(group)),
                [f"{row.task}, {row.backend}{' *' if row.apart else ''}" for row in group],
                fontsize=8,
            )
            axes.invert_yaxis()
            axes.set_xlim(0, 1.15 * max(r.high for r in group))
            axes.set_title(group[0].what, fontsize=10, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="x", which="both", labelsize=8)
    return figure
