"""Times at which steps must end, and what `f` may see on either side of a discontinuity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctflow.backends.native.control import Span, next_node
from ctflow.backends.native.step import FlatField

__all__ = ["Sided", "Stops"]


class Stops(NamedTuple):
    """Times that no step passes over.

    Attributes:
        times: All of them, [K], in time's own dtype, any order.
        jumps: Those at which f may be discontinuous, [J]; they are among `times` too.
    """

    times: Tensor
    jumps: Tensor

    def next_after(self, t: Tensor, span: Span) -> Tensor:
        """The next stop ahead of t, or the end of the interval, [B]."""
        return next_node(self.times.unsqueeze(0), t, span)

    def first_stretch(self, span: Span) -> Span:
        """The interval up to the first stop: what is before it says nothing of what is behind."""
        return span._replace(t1=self.next_after(span.t0, span))

    def beside(self, field: FlatField, toward: Tensor) -> FlatField:
        """The field with times of jumps evaluated on the side that lies toward +1 or -1, [B]."""
        return Sided(field, self, toward) if len(self.jumps) else field

    def is_jump(self, t: Tensor) -> Tensor:
        """Which times are places of jumps, bool [B]."""
        return (t.unsqueeze(1) == self.jumps.to(t.dtype)).any(dim=1)

    def seen(self, t0: Tensor, t1: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Least and greatest time that f may see in steps from t0 to t1, [B] each, in its dtype.

        None where there are no jumps: everything from t0 to t1.
        One step of the floating-point numbers inside where an end is a jump: a stage at the end
        belongs to the near side, one at the start to the far side of the jump before it.
        """
        if not len(self.jumps):
            return None
        toward = torch.sign(t1 - t0)
        start, end = t0.to(dtype), t1.to(dtype)
        start = torch.where(self.is_jump(t0), _beside(start, toward), start)
        end = torch.where(self.is_jump(t1), _beside(end, -toward), end)
        up = toward >= 0
        return torch.where(up, start, end), torch.where(up, end, start)

    def side(self, t: Tensor, toward: Tensor, dtype: torch.dtype) -> Tensor:
        """Times as f may see them, [B]: of a jump the side that lies toward +1 or -1."""
        seen = t.to(dtype)
        return torch.where(self.is_jump(t), _beside(seen, toward), seen)


class Sided:
    """A field that evaluates times of jumps on one side.

    Args:
        field: f on flat tensors.
        stops: The jumps.
        toward: +1 or -1, [B]: the side on which a time that is a jump is evaluated.
    """

    def __init__(self, field: FlatField, stops: Stops, toward: Tensor) -> None:
        self._field = field
        self._stops = stops
        self._toward = toward

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate it once."""
        moved = self._stops.side(t.detach(), self._toward, t.dtype)
        return self._field(t + (moved - t.detach()), y)


def _beside(t: Tensor, toward: Tensor) -> Tensor:
    """The next number of the dtype in a direction."""
    toward = toward.to(t.dtype)
    if t.dtype in (torch.float32, torch.float64):
        return torch.nextafter(t, t + toward)
    limits = torch.finfo(t.dtype)
    return t + toward * torch.clamp(t.abs() * limits.eps, min=limits.tiny)
