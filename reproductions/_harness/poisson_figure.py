"""Figure 7 of the paper: learned rates above the events they were learned from.

This module imports matplotlib, which is optional: scripts import it after they have asked `need`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from _harness.events import Events

__all__ = ["rates"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#BBBBBB"


class Fit(Protocol):
    """A fitted process."""

    @property
    def events(self) -> Events:
        """What it was fitted to."""
        ...

    def rate(self, t: Tensor) -> Tensor:
        """Events per unit of time, at times [T]."""
        ...


def rates(two: Fit, coal: Fit, peaks: Sequence[float]) -> Figure:
    """The paper's two bursts on the left, the coal-mining disasters on the right.

    Args:
        two: The bursts' process.
        coal: The disasters' process; the years held out are shaded.
        peaks: Where the bursts' rate has its peaks, each the middle of its half height.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, two)
    for number, peak in enumerate(peaks):
        label = "middle at\nhalf height" if number == 0 else None
        left.axvline(peak, color=_ORANGE, linestyle=":", linewidth=1, label=label)
    left.legend(frameon=False, fontsize=8, loc="upper center")
    left.set_title("Figure 7: two bursts of ten events")
    _draw(right, coal)
    right.set_title("Coal-mining disasters; shaded years were held out")
    return figure


def _draw(panel: Axes, fitted: Fit) -> None:
    events = fitted.events
    both = torch.cat([events.windows, events.held_out])
    t = torch.linspace(float(both.min()), float(both.max()), 800, dtype=torch.float64)
    for start, end in events.held_out.tolist():
        panel.axvspan(start, end, color=_GREY, alpha=0.4, linewidth=0)
    panel.plot(t, fitted.rate(t), color=_BLUE, label="learned rate")
    panel.plot(events.t, torch.zeros_like(events.t), "|", color=_ORANGE, markersize=10,
               label="events")  # fmt: skip
    panel.set(xlabel=events.unit, ylabel=f"events per {events.unit}")
    panel.set_ylim(bottom=-0.05 * float(fitted.rate(t).max()))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
