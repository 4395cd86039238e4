"""What one call of torchdiffeq's interface asks, checked once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from ctflow.compat.torchdiffeq.calls import Callbacks, callbacks_of
from ctflow.compat.torchdiffeq.methods import Kind, kind_of
from ctflow.compat.torchdiffeq.options import Options, read
from ctflow.compat.torchdiffeq.warning import warn_caller
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.state import Layout

__all__ = ["Request", "State", "asked", "checked_state", "checked_times"]

State: TypeAlias = Tensor | tuple[Tensor, ...]
Tolerance: TypeAlias = float | Tensor


@dataclass(frozen=True, eq=False)
class Request:
    """A solve, as torchdiffeq's arguments describe it.

    Args:
        func: The dynamics, `func(t, y)`.
        y0: Initial state.
        t: Output times, [T].
        rtol: Relative tolerance, or one for each variable, [1, N].
        atol: Absolute tolerance, likewise.
        method: torchdiffeq's name.
        kind: What kind of method it is.
        options: Its option dict, read.
        callbacks: Whom to tell of steps.
    """

    func: Callable[..., Any]
    y0: State
    t: Tensor
    rtol: Tolerance
    atol: Tolerance
    method: str
    kind: Kind
    options: Options
    callbacks: Callbacks

    @property
    def layout(self) -> Layout:
        """How the flat state [1, N] maps to the caller's."""
        return Layout.of(cast("Any", self.y0), per_sample=False)

    @property
    def direction(self) -> float:
        """+1 or -1: where time goes."""
        return 1.0 if len(self.t) < 2 or bool(self.t[1] > self.t[0]) else -1.0


def asked(
    func: Callable[..., Any],
    y0: object,
    t: object,
    rtol: object,
    atol: object,
    method: str | None,
    options: object,
    suffix: str = "",
) -> Request:
    """The arguments of a call, checked.

    Args:
        func: The dynamics.
        y0: Initial state.
        t: Output times.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        method: Name of the method; None for dopri5.
        options: Its option dict.
        suffix: "_adjoint" where the callbacks of the backward pass are meant.

    Raises:
        InvalidProblem: For what means nothing.
        Unsupported: For what torchdiffeq takes and ctflow does not.
    """
    state = checked_state(y0)
    layout = Layout.of(cast("Any", state), per_sample=False)
    name = "dopri5" if method is None else method
    kind = kind_of(name)
    return Request(
        func,
        state,
        checked_times(t, layout),
        _tolerance("rtol", rtol, layout),
        _tolerance("atol", atol, layout),
        name,
        kind,
        read(options, name, kind, layout.dtype),
        callbacks_of(func, kind, suffix),
    )


def checked_state(y0: object) -> State:
    """The initial state: a tensor, or a tuple of tensors.

    Raises:
        InvalidProblem: If it is something else.
    """
    if isinstance(y0, Tensor):
        return y0
    parts = cast("tuple[object, ...]", y0) if isinstance(y0, tuple) else ()
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise InvalidProblem(
            f"`y0` must be a tensor or a tuple of tensors, got {type(y0).__name__}"
            f"{f' of {[type(part).__name__ for part in parts]}' if parts else ''}. "
            "Write y0=(position, speed)."
        )
    return tuple(part for part in parts if isinstance(part, Tensor))


def checked_times(t: object, layout: Layout) -> Tensor:
    """Output times [T] on the state's device.

    Raises:
        InvalidProblem: If they are not one floating tensor of one dimension.
    """
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dim() != 1 or not len(t):
        got = f"{t.dtype} of shape {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise InvalidProblem(
            f"`t` must be a tensor of floating dtype and one dimension, got {got}. "
            "Write t=torch.linspace(0., 1., 11)."
        )
    if t.device == layout.device:
        return t
    warn_caller("t is not on the device of y0 and is moved there.")
    return t.to(layout.device)


def _tolerance(name: str, value: object, layout: Layout) -> Tolerance:
    """A tolerance as a number, or one for each variable, [1, N]."""
    parts: list[object]
    if isinstance(value, Tensor) or not isinstance(value, Iterable):
        parts = [value]
    else:
        parts = list(cast("Iterable[object]", value))
        if layout.is_tensor or len(parts) != len(layout.shapes):
            raise InvalidProblem(
                f"`{name}` in a tuple must have an entry for each part of `y0`, got {len(parts)} "
                f"for {len(layout.shapes)}. Pass one number, or as many."
            )
    tensors = [_one(name, part, layout) for part in parts]
    if len(tensors) == 1 and tensors[0].numel() == 1:
        return float(tensors[0])
    if len(tensors) == 1 and layout.is_tensor:
        shaped = [_expanded(name, tensors[0], layout.shapes[0])]
    elif len(tensors) == 1:
        shaped = [_expanded(name, tensors[0], torch.Size((_size(layout),)))]
    else:
        pairs = zip(tensors, layout.shapes, strict=True)
        shaped = [_expanded(name, x, shape) for x, shape in pairs]
    flat = torch.cat([x.reshape(-1) for x in shaped]).to(layout.device, layout.real_dtype)
    return (flat.repeat_interleave(2) if layout.is_complex else flat).unsqueeze(0)


def _size(layout: Layout) -> int:
    return sum(shape.numel() for shape in layout.shapes)


def _one(name: str, value: object, layout: Layout) -> Tensor:
    try:
        found = torch.as_tensor(cast("Any", value), device=layout.device)
        number = found.is_floating_point() or not (found.is_complex() or found.dtype == torch.bool)
        least = float(found.detach().amin()) if number else math.nan
        fits = math.isfinite(float(found.detach().amax())) and least >= 0 if number else False
    except (TypeError, ValueError, RuntimeError):
        raise InvalidProblem(f"`{name}` must be a number, got {value!r:.60}.") from None
    if found.requires_grad:
        raise Unsupported(f"`{name}` must not require a gradient. Detach it.")
    if not fits or (name == "atol" and least == 0):
        raise InvalidProblem(
            f"`{name}` must be finite and {'positive' if name == 'atol' else 'not negative'}, got "
            f"{value!r:.60}. Pass a float such as 1e-6."
        )
    return found


def _expanded(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    try:
        return value.expand(shape)
    except RuntimeError:
        raise InvalidProblem(
            f"`{name}` must fit the shape {list(shape)} of the state, got {list(value.shape)}. "
            "Pass one number, or one for each element."
        ) from None
