"""What a solve tells its caller on the way: callbacks, and the limits that torchdiffeq sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from ctflow.compat.torchdiffeq.methods import Kind
from ctflow.compat.torchdiffeq.warning import warn_caller
from ctflow.state import Layout

__all__ = ["Callbacks", "Calls", "callbacks_of"]

Callback: TypeAlias = Callable[[Tensor, Any, Tensor], object]
NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")

_CALLED: dict[Kind, tuple[str, ...]] = {
    "adaptive": NAMES,
    "runge_kutta": NAMES[:1],
    "adams": NAMES[:1],
    "implicit": NAMES[:1],
    "scipy": (),
}


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of one solve; None for those that are not wanted.

    Args:
        step: `callback_step(t0, y0, dt)`, right before a step is attempted.
        accept: `callback_accept_step`, when it counts.
        reject: `callback_reject_step`, when it does not.
    """

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None


def callbacks_of(func: object, kind: Kind, suffix: str = "") -> Callbacks:
    """The callbacks that are attributes of `func`.

    One that the method does not call brings a warning, as in torchdiffeq: it changes no number.

    Args:
        func: The caller's dynamics.
        kind: What kind of method solves.
        suffix: "_adjoint" for those of the backward pass.
    """
    found = [getattr(func, name + suffix, None) for name in NAMES]
    called = _CALLED[kind]
    unheard = [
        name + suffix
        for name, callback in zip(NAMES, found, strict=True)
        if callback is not None and name not in called
    ]
    if unheard:
        warn_caller(
            f"{', '.join(unheard)} of `func` will not be called: this method calls "
            f"{', '.join(called) or 'none'}."
        )
    return Callbacks(*(x if n in called else None for n, x in zip(NAMES, found, strict=True)))


class Calls:
    """Callbacks on their way through one solve.

    Args:
        callbacks: Whom to call.
        layout: How the flat state maps to the caller's.
    """

    def __init__(self, callbacks: Callbacks, layout: Layout) -> None:
        self._callbacks = callbacks
        self._layout = layout
        self._y: Tensor | None = None

    def begin(self, y0: Tensor) -> None:
        """Note the state at the start, [1, N]."""
        self._y = y0

    def before(self, t: Tensor, size: Tensor) -> None:
        """Tell that a step of this size is about to be attempted at t, [1] each."""
        if self._callbacks.step is not None:
            self._call(self._callbacks.step, t, self._y, size)

    def after(self, t: Tensor, y0: Tensor, y1: Tensor, taken: Tensor, accepted: bool) -> None:
        """Tell whether the step from t, [1], and y0 to y1, [1, N], counts."""
        self._y = y1 if accepted else y0
        callback = self._callbacks.accept if accepted else self._callbacks.reject
        if callback is not None:
            self._call(callback, t, y0, taken)

    def _call(self, callback: Callback, t: Tensor, y: Tensor | None, size: Tensor) -> None:
        state = None if y is None else self._layout.unpack(y)
        callback(t.reshape(()), state, size.reshape(()))
