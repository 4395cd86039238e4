"""Which times to solve for, so that each series' own times are read off one solve."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem

__all__ = ["Grid"]

_SHORT = 1e-3  # part of the batch's interval that is solved for a series that asks for nothing


class Grid(NamedTuple):
    """Output times of a solve that starts at t0, and where each wanted time stands among them.

    Attributes:
        t: Output times, [M] or [B, M], strictly monotone, `t[..., 0]` is t0.
        places: Of each wanted time in `t`, int64 [T] or [B, T].
    """

    t: Tensor
    places: Tensor

    @classmethod
    def shared(cls, t0: float, t: Tensor) -> Grid:
        """One grid for all series: every distinct time that any of them wants.

        Args:
            t0: Where the solve starts.
            t: Wanted times, [T] or [B, T], on one side of t0.
        """
        sign = _side(t0, t)
        start = t.new_tensor([t0])
        nodes = torch.unique(torch.cat([start, t.flatten()]) * sign)
        if len(nodes) == 1:
            nodes = torch.cat([nodes, nodes + 1.0])
        index = torch.searchsorted(nodes, (t * sign).contiguous())
        return cls(nodes * sign, index)

    @classmethod
    def of_each(cls, t0: float, t: Tensor) -> Grid:
        """A grid for each series with its own times and no others.

        A series with fewer distinct times than another gets the rest as further outputs between its
        last two, which cost no step of the solver.

        Args:
            t0: Where the solve starts.
            t: Wanted times, [B, T], on one side of t0.
        """
        sign = _side(t0, t)
        first = torch.full_like(t[:, :1], t0)
        ordered, order = (torch.cat([first, t], dim=1) * sign).sort(dim=1, stable=True)
        is_new = ordered.diff(dim=1) > 0
        rank = torch.cat([torch.zeros_like(order[:, :1]), is_new.cumsum(dim=1)], dim=1)
        last = rank[:, -1:]  # of the distinct times of each row
        end = torch.where(last > 0, ordered[:, -1:], ordered[:, -1:] + _shortest(ordered))
        m = max(int(last.max()) + 1, 2)
        places = torch.where((rank == last) & (last > 0), m - 1, rank)
        nodes = first.new_zeros(len(t), m).scatter(1, places, ordered)
        # Between the last but one distinct time, at place `last - 1`, and the end.
        before = nodes.gather(1, (last - 1).clamp(min=0))
        j = torch.arange(m, device=t.device)
        gap = (m - last).clamp(min=1)
        part = ((j - (last - 1).clamp(min=0)) / torch.where(last > 0, gap, m - 1)).clamp(0, 1)
        nodes = torch.where(j >= last.clamp(min=1), before + part * (end - before), nodes)
        nodes = torch.where(j == m - 1, end, nodes)
        index = torch.empty_like(order).scatter(1, order, places)
        return cls(nodes * sign, index[:, 1:])

    def read(self, values: Tensor) -> Tensor:
        """Values of the solve at the wanted times.

        Args:
            values: Outputs of the solve, [M, B, ...].

        Returns:
            [B, T, ...].
        """
        if self.places.dim() == 1:
            return values.index_select(0, self.places).transpose(0, 1)
        series = torch.arange(values.shape[1], device=values.device).unsqueeze(1)
        return values[self.places, series]


def _side(t0: float, t: Tensor) -> float:
    """+1.0 for times after t0, -1.0 for times before it.

    Raises:
        InvalidProblem: If there are both, or none, or one that is not finite; if they want a
            gradient, which a grid would hand to whichever series has the same time.
    """
    if t.requires_grad:
        raise InvalidProblem(
            "`t` must want no gradient here, got one that does. Use a LatentODE, or t.detach()."
        )
    if t.numel() == 0 or not bool(torch.isfinite(t.detach()).all()):
        what = "none" if t.numel() == 0 else "NaN or infinity"
        raise InvalidProblem(f"`t` must hold finite times, got {what}. Mask what is missing.")
    low, high = float(t.min()), float(t.max())
    if low >= t0:
        return 1.0
    if high <= t0:
        return -1.0
    raise InvalidProblem(
        f"`t` must lie on one side of the latent state's time {t0:g}, got times from {low:g} to "
        f"{high:g}. Ask for the two sides separately, or build the model with an earlier t0."
    )


def _shortest(ordered: Tensor) -> float:
    span = float(ordered.max() - ordered.min())
    return _SHORT * span if span > 0 else 1.0
