"""What a solve costs in memory and time, how that grows, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

__all__ = ["Peak", "Timing", "slope", "table_of_costs"]


@dataclass(frozen=True)
class Peak:
    """Peak storage of one solve with its backward pass, outputs subtracted.

    Args:
        tolerance: rtol and atol.
        steps: Accepted forward steps.
        n_bytes: Bytes by gradient method.
    """

    tolerance: float
    steps: int
    n_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Timing:
    """CPU time of one solve with its backward pass.

    Args:
        axis: What grows from one timing to the next.
        size: How much of it there is.
        forward: Seconds of the forward pass.
        adjoint: Seconds of the adjoint's backward pass.
    """

    axis: str
    size: int
    forward: float
    adjoint: float


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y over log x by least squares."""
    u, v = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    return float(((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum())


def table_of_costs(peaks: Sequence[Peak], timings: Sequence[Timing]) -> Table:
    """Peaks by tolerance, then the times of the smallest, middle and largest size of each axis."""
    methods = list(peaks[0].n_bytes)
    table = Table("", "steps", *methods, "forward", title="Peak storage (KiB) and CPU time (ms)")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in peaks:
        kib = (f"{n_bytes / 1024:.0f}" for n_bytes in each.n_bytes.values())
        table.add_row(f"tolerance {each.tolerance:.0e}", str(each.steps), *kib)
    blank = [""] * (len(methods) - 1)
    for axis in dict.fromkeys(each.axis for each in timings):
        own = [each for each in timings if each.axis == axis]
        table.add_section()
        for each in (own[0], own[len(own) // 2], own[-1]):
            times = f"{1e3 * each.adjoint:.1f}", f"{1e3 * each.forward:.1f}"
            table.add_row(f"{axis} {each.size}", "", *blank, *times)
    table.caption = "above the line: KiB; below: ms, adjoint being the backward pass alone"
    return table
