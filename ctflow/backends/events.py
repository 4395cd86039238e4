"""The problem's event functions and changes as functions of the flat state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.event import checked_events
from ctflow.problem import ODEProblem
from ctflow.state import Layout, leaves_of

__all__ = ["EventFunctions", "Look"]

_IN_PLACE = "in-place operation"  # torch's words for y.mul_(2) where y wants a gradient
_ROUNDING = 64.0  # units in the last place by which sums of a few terms may be off


class Look(NamedTuple):
    """An event function at one place of every sample, detached.

    Attributes:
        g: Its value, [B], in the dtype of the state, as all of these.
        slope: Its derivative along the way,  direction (dg/dt + dg/dy dy/dt).
        noise: What rounding of t and y may change it by.
        rounding: What rounding of y and of the function's own terms may, t being exact.
        doubt: What an error of the state of one tolerance may change it by.
    """

    g: Tensor
    slope: Tensor
    noise: Tensor
    rounding: Tensor
    doubt: Tensor


class EventFunctions:
    """Event functions and changes of a problem on flat tensors.

    Args:
        problem: Whose events and `args` are used.
        layout: How the flat state [B, N] maps to the user's.
        direction: Of time, +1 or -1, [B].
        rtol: Relative tolerance of the state, for `Look.doubt`; 0 where there is none.
        atol: Absolute tolerance.

    Attributes:
        events: The problem's events.
        direction: Of time, [B], in the dtype of the state.
    """

    def __init__(
        self, problem: ODEProblem, layout: Layout, direction: Tensor, rtol: float, atol: float
    ) -> None:
        self.events = checked_events(problem.event)
        self._layout = layout
        self._more = () if problem.args is None else (problem.args,)
        self.direction = direction.to(layout.real_dtype)
        self._tolerances = rtol, atol

    def __len__(self) -> int:
        """Number of event functions."""
        return len(self.events)

    def value(self, j: int, t: Tensor, y: Tensor) -> Tensor:
        """Event function j at times [B] and states [B, N]: [B], with a graph in grad mode.

        Raises:
            InvalidProblem: If it returns anything but one real number for each sample, or changes
                its input.
        """
        layout, version = self._layout, y._version
        changed = (
            f"`fn` of event {j} must not change its input, got a state modified in place. "
            "Use out-of-place operations."
        )
        try:
            with torch.autocast(layout.device.type, enabled=False):  # it would round the sign
                g = self.events[j].fn(layout.time(t.to(y.dtype)), layout.unpack(y), *self._more)
        except RuntimeError as error:
            if _IN_PLACE in str(error):
                raise InvalidProblem(changed) from error
            raise
        if y._version != version:
            raise InvalidProblem(changed)
        wanted = torch.Size([layout.batch] if layout.per_sample else [])
        if not isinstance(g, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidProblem(
                f"`fn` of event {j} must return a tensor, got {type(g).__name__}. Compute it from "
                "`t` and `y` by torch, so that it has a derivative."
            )
        if g.shape != wanted:
            what = "one number for each sample" if layout.per_sample else "one number"
            raise InvalidProblem(
                f"`fn` of event {j} must return {what}, of shape {list(wanted)}, got "
                f"{list(g.shape)}. {_reshape(layout.per_sample)}"
            )
        if g.dtype != layout.real_dtype:
            raise InvalidProblem(
                f"`fn` of event {j} must return {layout.real_dtype}, got {g.dtype}. "
                "Compute it in the real dtype of `y`."
            )
        if g.device != layout.device:
            raise InvalidProblem(
                f"`fn` of event {j} must return a tensor on {layout.device}, got {g.device}. "
                "Move its parameters there."
            )
        return g.reshape(layout.batch)

    def look(self, j: int, t: Tensor, y: Tensor, dy: Tensor) -> Look:
        """Event function j and its derivative where the solution has the slope dy, [B, N]."""
        rtol, atol = self._tolerances
        of_time = torch.finfo(t.dtype).eps
        with torch.enable_grad():
            t, y = t.detach().to(y.dtype).requires_grad_(), y.detach().requires_grad_()
            g = self.value(j, t, y)
            g_t, g_y = self._derivatives(j, g, t, y)
        g, t, y = g.detach(), t.detach(), y.detach()
        slope = (g_y * dy).sum(dim=1) + g_t
        of_y = (g_y * y).abs().sum(dim=1)
        rounding = torch.finfo(y.dtype).eps * (of_y + (g_t * t).abs() + g.abs())
        rounding = _ROUNDING * rounding
        noise = rounding + _ROUNDING * of_time * (slope * t).abs()
        doubt = rtol * of_y + atol * g_y.abs().sum(dim=1)
        return Look(g, slope * self.direction, noise, rounding, torch.maximum(doubt, noise))

    def _derivatives(self, j: int, g: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """dg/dt [B] and dg/dy [B, N]."""
        found = (None, None)
        if g.requires_grad:
            found = torch.autograd.grad(g.sum(), (t, y), allow_unused=True)
        if found == (None, None):
            raise InvalidProblem(
                f"`fn` of event {j} must depend on `t` or `y` by operations that torch can "
                "differentiate, got a value that depends on neither. Leave out `.item()`, "
                "`.detach()`, torch.no_grad and NumPy."
            )
        g_t, g_y = found
        return (
            torch.zeros_like(t) if g_t is None else g_t,
            torch.zeros_like(y) if g_y is None else g_y,
        )

    def change(self, j: int, t: Tensor, y: Tensor) -> Tensor:
        """States right after event j at times [B] and states [B, N]; [B, N].

        Raises:
            InvalidProblem: If the change returns another structure, shape, dtype or device than the
                state's, or what is not finite.
        """
        change = self.events[j].change
        if change is None:
            return y
        layout, version = self._layout, y._version
        new = change(layout.time(t.to(y.dtype)), layout.unpack(y), *self._more)
        if y._version != version:
            raise InvalidProblem(
                f"`change` of event {j} must not change its input in place, got it modified. "
                "Return a new state; torch.stack, torch.cat and torch.where make one."
            )
        try:
            return layout.pack_derivative(new)
        except InvalidProblem:
            raise InvalidProblem(
                f"`change` of event {j} must return a state with the structure, shapes, dtype and "
                f"device of `y0`, got {_described(new)}. Return every part, changed or not."
            ) from None

    def check_rows(self, t: Tensor, y: Tensor) -> None:
        """Raise if a sample's event function depends on the other samples.

        Raises:
            InvalidProblem: If that of the first or the last changes when all are copies of it.
        """
        if y.shape[0] == 1:
            return
        with torch.no_grad():
            for j, b in ((j, b) for j in range(len(self)) for b in (0, y.shape[0] - 1)):
                alike = y[b : b + 1].expand_as(y).contiguous()
                own, other = (float(self.value(j, t, x)[b]) for x in (y, alike))
                off = 1e3 * torch.finfo(y.dtype).eps ** 0.75 * max(abs(own), abs(other))
                if abs(own - other) > off:
                    raise InvalidProblem(
                        f"`fn` of event {j} must be a function of each sample by itself, got "
                        f"{own:g} for sample {b}, and {other:g} when the other samples are copies "
                        "of it. Reduce over all dimensions but the first."
                    )


def _reshape(per_sample: bool) -> str:
    if per_sample:
        return "Reduce over all dimensions but the first; `t` has the rank of `y`: t.reshape(-1)."
    return "Index or sum it; for a batch of systems use Solver(coupling='per_sample')."


def _described(new: object) -> str:
    leaves = [f"{list(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
              for x in leaves_of(new)]  # fmt: skip
    return f"{type(new).__name__} with {', '.join(leaves) or 'nothing'}"
