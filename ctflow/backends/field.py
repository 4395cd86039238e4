"""The user's `f` as a function of the flat state: what every backend integrates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.state import Layout

__all__ = ["Field", "in_this_thread"]

_NEEDS_GRAD = "does not require grad"  # torch's words when f differentiates under no_grad
_IN_PLACE = "in an in-place operation"  # and for y.mul_(2) where y wants a gradient
_INFERENCE = "Inplace update to inference tensor"  # and for any change of what was made under it


class Field:
    """dy/dt of a problem on flat tensors.

    Args:
        problem: Whose `f` and `args` are used.
        layout: How the flat state [B, N] maps to the user's.

    Attributes:
        args: Third argument of `f`; a gradient method may put tensors of its own in its place.
    """

    def __init__(self, problem: ODEProblem, layout: Layout) -> None:
        self._f = in_this_thread(problem.f, layout.device)
        self._has_args = problem.args is not None
        self.layout = layout
        self.args: Any = problem.args
        self._last: Tensor | None = None
        self._last_version = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate `f` once.

        Args:
            t: Times [B], in the dtype of y.
            y: States [B, N].

        Returns:
            dy/dt, [B, N].

        Raises:
            InvalidProblem: If `f` returns another structure, shape, dtype or device than the
                state's, changes its input in place, or overwrites what it returned before.
        """
        layout = self.layout
        version = None if y.is_inference() else y._version
        time, state = layout.time(t), layout.unpack(y)
        try:
            dy = self._f(time, state, self.args) if self._has_args else self._f(time, state)
        except RuntimeError as error:
            if _NEEDS_GRAD in str(error) and not torch.is_grad_enabled():
                raise InvalidProblem(
                    "`f` differentiates with respect to its input, but the solver calls it with "
                    f"gradients off, got: {error}. Wrap the inner derivative in "
                    "`with torch.enable_grad():` and call `y.requires_grad_()`, or use torch.func."
                ) from error
            if _IN_PLACE in str(error):
                raise InvalidProblem(_CHANGED) from error
            if _INFERENCE in str(error):
                raise InvalidProblem(
                    "`f` must not change its input, or another tensor made under inference_mode, "
                    "got one modified in place. Use out-of-place operations, or torch.no_grad."
                ) from error
            raise
        if version is not None and y._version != version:
            raise InvalidProblem(_CHANGED)
        packed = layout.pack_derivative(dy)
        self._check_kept(packed)
        return packed

    def _check_kept(self, dy: Tensor) -> None:
        """Raise if `f` overwrote what it had returned before: the stages of a step would be one."""
        if self._last is not None and self._last._version != self._last_version:
            raise InvalidProblem(
                "`f` must return a new tensor each time, got its earlier result overwritten. "
                "Do not write into a buffer that was returned (`out=`, `copy_`)."
            )
        self._last = None if dy.is_inference() else dy.detach()
        self._last_version = 0 if dy.is_inference() else dy._version


def in_this_thread(f: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """f, so that what it differentiates itself is recorded in the thread that calls it.

    Beside the CPU, autograd differentiates in a thread of each device, and threads number their
    nodes apart: `captures` could not tell what an evaluation recorded from what was there before.

    Args:
        f: The dynamics.
        device: Of the state; on the CPU f is as it should be.
    """
    if device.type == "cpu":
        return f

    def alone(*arguments: Any) -> Any:  # noqa: ANN401
        with torch.autograd.set_multithreading_enabled(False):
            return f(*arguments)

    return alone


_CHANGED = (
    "`f` must not change its input, got a state modified in place. Use out-of-place operations "
    "(`y * 2`, not `y.mul_(2)`)."
)
