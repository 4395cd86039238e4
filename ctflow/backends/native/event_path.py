"""Event functions along one step: where they stay off zero, and where they come to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctflow.backends.events import EventFunctions, Look
from ctflow.backends.native.interpolate import at, coefficients
from ctflow.backends.native.loop import Integration
from ctflow.backends.native.step import Step

__all__ = ["CLOSE", "PLACES", "EventPath", "bracketed"]

PLACES = (0.25, 0.5, 0.75, 1.0)  # fractions of a step at which it is looked at
CLOSE = 1e-9  # width of a bracket, in parts of a step, from which Newton's method takes over
_MOST_HALVINGS = 60


class EventPath:
    """Event functions along the interpolant of one step.

    Args:
        functions: The event functions.
        plan: Has the method.
        step: The step, `extended`.
    """

    def __init__(self, functions: EventFunctions, plan: Integration, step: Step) -> None:
        self._functions = functions
        self._q = coefficients(plan.tableau, step, step.y0.dtype)
        self.step = step

    def look(self, j: int, s: Tensor) -> Look:
        """Function j at fractions s of the step, [B], in time's own dtype."""
        step, column = self.step, s.to(self.step.y0.dtype).unsqueeze(1)
        slope = self._q[-1] * len(self._q)
        for i in range(len(self._q) - 2, -1, -1):
            slope = self._q[i] * (i + 1) + slope * column
        dy = slope / torch.where(step.h == 0, 1.0, step.h)
        return self._functions.look(j, *self._place(s), dy)

    def value(self, j: int, s: Tensor) -> Tensor:
        """Function j alone, [B]."""
        return self._functions.value(j, *self._place(s))

    def _place(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Times [B] and states [B, N]; the step's own at its end."""
        step, column = self.step, s.to(self.step.y0.dtype).unsqueeze(1)
        t = torch.where(s == 1.0, step.t1, torch.lerp(step.t0, step.t1, s))
        return t, torch.where(column == 1.0, step.y1, at(step.y0, self._q, column))

    def quiet(self, j: int, side: Tensor, left: Look, right: Look) -> Tensor:
        """Whether function j surely has no zero in the step, and no contact, bool [B].

        From values alone, of which there are few: it stays on its side, and wherever it has turned
        back from its way to zero it was far from it, as a parabola through the values tells.

        Args:
            j: Number of the function.
            side: Its sign so far, [B]; 0 where that is not known.
            left: It at the start of the step.
            right: It at the end.
        """
        s = torch.tensor(PLACES[:-1], dtype=self.step.t0.dtype, device=side.device).unsqueeze(1)
        y = at(self.step.y0, self._q, s.to(self.step.y0.dtype).unsqueeze(2))
        t = torch.lerp(self.step.t0, self.step.t1, s)
        inner = [self._functions.value(j, *place) for place in zip(t, y, strict=True)]
        g = side * torch.stack([left.g, *inner, right.g])
        near = 2 * torch.maximum(left.doubt, right.doubt)
        clear = (g > 4 * near).all(dim=0)  # false for NaN and for no side
        before, here, after = g[:-2], g[1:-1], g[2:]
        turned = before + after - 2 * here  # a parabola's lowest point is 1/16 of it lower, or less
        low = (here <= before) & (here <= after) & (here <= turned + near)
        length = (self.step.t1 - self.step.t0).abs().to(g.dtype) * PLACES[0]
        in_first = (side * left.slope < 0) & (g[1] >= g[0])
        in_first = in_first & (g[0] <= left.slope.abs() * length + near)
        in_last = (side * right.slope > 0) & (g[-2] >= g[-1])
        in_last = in_last & (g[-1] <= right.slope.abs() * length + near)
        return clear & ~(low.any(dim=0) | in_first | in_last)

    def zero(
        self,
        j: int,
        rows: Tensor,
        side: Tensor,
        ends: tuple[Tensor, Tensor],
        looks: tuple[Look, Look],
    ) -> Tensor:
        """Where function j comes to zero from a side, as a fraction of the step, [B]."""
        low, high = side * looks[0].g, side * looks[1].g
        inner = rows & (low > 0) & (high < 0)
        s = bracketed(lambda s: side * self.value(j, s), inner, ends, (low, high))
        return torch.where(low <= 0, ends[0], torch.where(high >= 0, ends[1], s))

    def turn(self, j: int, rows: Tensor, side: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """Where the slope of function j, toward zero at lo, turns away from it, [B]."""

        def toward(s: Tensor) -> Tensor:
            return -side * self.look(j, s).slope

        return bracketed(toward, rows, (lo, hi), (toward(lo), toward(hi)))


def bracketed(
    function: Callable[[Tensor], Tensor],
    rows: Tensor,
    ends: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
) -> Tensor:
    """Zeros of a function that is positive at the first end and not at the second, by Ridders.

    Args:
        function: [B] -> [B].
        rows: Where a zero is wanted, bool [B]; each sample's bits are its own.
        ends: Both ends, [B].
        values: The function there.

    Source:
        Ridders 1979, IEEE Trans. Circuits Syst. 26; Press et al., Numerical Recipes, 3rd ed.,
        section 9.2.1.
    """
    (lo, hi), (f_lo, f_hi) = ends, values
    for _ in range(_MOST_HALVINGS):
        rows = rows & (hi - lo > CLOSE) & (f_hi != 0)
        if not bool(rows.any()):
            break
        middle = (lo + hi) / 2
        f_middle = function(torch.where(rows, middle, lo))
        root = (f_middle.square() - f_lo * f_hi).clamp(min=0).sqrt()
        part = torch.where(root > 0, f_middle / root, 0.0).to(lo.dtype)
        x = torch.minimum(torch.maximum(middle + (middle - lo) * part, lo), hi)
        f_x = function(torch.where(rows, x, lo))
        for at_, f_at in ((middle, f_middle), (x, f_x)):
            inside = rows & (at_ >= lo) & (at_ <= hi)
            left, right = inside & (f_at > 0), inside & ~(f_at > 0)
            lo, f_lo = torch.where(left, at_, lo), torch.where(left, f_at, f_lo)
            hi, f_hi = torch.where(right, at_, hi), torch.where(right, f_at, f_hi)
    return hi
