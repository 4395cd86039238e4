"""Times of calls on one device, a panel for each workload.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

from _harness.speed_figure import Timed, bars

__all__ = ["times_by_workload"]


class Measured(Timed, Protocol):
    """What is drawn of a contestant."""

    what: str
    task: str
    backend: str
    apart: bool


def times_by_workload(rows: Sequence[Measured], device: str) -> Figure:
    """Bars of medians with quartiles, task by task.

    Args:
        rows: Everybody on everything.
        device: Its name.
    """
    whats = list({row.what: 0 for row in rows})
    groups = [[row for row in rows if row.what == what] for what in whats]
    left, right = groups[: (len(groups) + 1) // 2], groups[(len(groups) + 1) // 2 :]
    heights = [sum(len(g) + 1.5 for g in side) for side in (left, right)]
    figure = Figure(figsize=(12.0, 0.6 + 0.24 * max(heights)), layout="constrained")
    star = "; * by itself, while others compiled" if any(row.apart for row in rows) else ""
    figure.suptitle(f"One call on {device}, milliseconds{star}")
    sides = figure.subfigures(1, 2)
    for side, own in zip(sides, (left, right), strict=True):
        if not own:
            continue
        panels = side.subplots(len(own), 1, squeeze=False, height_ratios=[len(g) + 1 for g in own])
        for axes, group in zip(panels[:, 0], own, strict=True):
            labels = [f"{r.task}, {r.backend}{' *' if r.apart else ''}" for r in group]
            bars(axes, group, labels, [r.backend != "torchdiffeq" for r in group])
            axes.set_title(group[0].what, fontsize=10, loc="left")
    return figure
