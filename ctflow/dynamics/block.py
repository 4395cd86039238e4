"""`ODEBlock`: the solution map of a vector field as a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ctflow.api import as_solver, solve
from ctflow.backends.protocol import Solver
from ctflow.errors import InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, Stats, raise_if_failed
from ctflow.state import State, leaves_of, map_leaves
from ctflow.transforms import untraced

__all__ = ["ODEBlock"]

S = TypeVar("S", bound="State")


class ODEBlock(nn.Module):
    """A layer that flows its input along a field:  x -> y(t1)  where  dy/dt = f(t, y), y(t0) = x.

    Dimension 0 of the input is a batch of independent systems: where the backend can, each sample
    has its own step size, and its result does not depend on the others. Write
    `solver=Solver(coupling="shared")` for one step size for all.

    It behaves as any layer does. `state_dict` holds the field's tensors alone; `t` and `solver`
    are settings, like the stride of a convolution, and may be set anew at any time
    (`block.solver = "torchdiffeq"` swaps the backend of a trained model). Time stays float64
    whatever `.half()` or `.to(dtype)` does to the parameters. Inside `torch.compile` the solve is
    a graph break: what stands around it is compiled, the solve runs as it does outside.

    Under `torch.autocast` the solve runs in float32, as a softmax or a loss does: half-precision
    inputs are raised, and autocast is off inside, since an error estimate made of rounding would
    shrink the step without end. Enable it again inside the field where that is meant.

    Args:
        field: `f(t, y)`, or `f(t, y, args)` if the layer is called with `args`. A module's
            parameters become the layer's.
        t: Start and end of the time interval, in either order.
        solver: A `Solver`, the name of a backend, or None for the defaults.
        random_end: In training mode the end is drawn anew for each call, evenly from
            `t[1] - random_end` to `t[1] + random_end`: STEER (Ghosh et al. 2020, arXiv 2006.10711),
            a regulariser against stiffness. In evaluation mode the end is `t[1]`.

    Attributes:
        stats: `Stats` of the last solve, None before one and in a copy of the layer.

    Raises:
        InvalidProblem: If `t` is not two distinct finite numbers, `field` is not callable, or
            `random_end` is negative or reaches back to `t[0]`.

    Cost:
        One solve a call; `stats` has the evaluations for each sample.

    Example:
        >>> from ctflow.dynamics import MLP
        >>> block = ODEBlock(MLP(2, (16,)), solver=Solver(rtol=1e-4, atol=1e-4))
        >>> block(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
        >>> block.stats.forward.n_steps.shape
        torch.Size([5])
    """

    stats: Stats | None

    def __init__(
        self,
        field: Callable[..., Any],
        t: Sequence[float] | Tensor = (0.0, 1.0),
        *,
        solver: Solver | str | None = None,
        random_end: float = 0.0,
    ) -> None:
        """Check the settings; nothing is solved yet."""
        super().__init__()
        if not callable(field):
            raise InvalidProblem(
                f"`field` must be callable as f(t, y), got {type(field).__name__}. "
                "Pass a module or a function."
            )
        self.field = field
        self.t = _interval(t)
        self.random_end = _checked_end(random_end, self.t)
        self.solver = solver
        self.stats = None

    @property
    def solver(self) -> Solver:
        """How the layer solves; assign a `Solver`, the name of a backend, or None."""
        return self._solver

    @solver.setter
    def solver(self, solver: Solver | str | None) -> None:
        self._solver = as_solver(solver)

    def forward(self, x: S, args: Any = None) -> S:  # noqa: ANN401 - handed to the field as it is
        """State at the end of the interval.

        Args:
            x: State at the start: a tensor [B, ...], or tensors in tuples, lists and dicts.
            args: Third argument of the field; gradients reach its tensors.

        Returns:
            State at the end, in the shape of `x`.

        Raises:
            SolveFailed: If any sample did not reach the end; carries the partial `Solution`.
        """
        return self._last(x, args)

    def solve(
        self,
        x: State,
        args: Any = None,  # noqa: ANN401 - handed to the field as it is
        *,
        running_cost: Callable[..., Any] | None = None,
        local_error: bool = False,
    ) -> Solution:
        """All that a solve finds out, for losses that look at more than the state at the end.

        Args:
            x: State at the start, as for `forward`.
            args: Third argument of the field and of the running cost.
            running_cost: Its integral along the path becomes `cost`: see `KineticEnergy`,
                `JacobianNorm` and `TaylorNorm`.
            local_error: Whether `local_error` is wanted (ERNODE's regulariser).

        Returns:
            The `Solution`; the state at the end is `y[-1]`, the integral `cost[-1]`.

        Raises:
            SolveFailed: If any sample did not reach the end.

        Example:
            >>> from ctflow.dynamics import MLP, KineticEnergy
            >>> block = ODEBlock(MLP(2, (16,)))
            >>> solution = block.solve(torch.zeros(5, 2), running_cost=KineticEnergy(block.field))
            >>> solution.y[-1].shape, solution.cost[-1].shape
            (torch.Size([5, 2]), torch.Size([5]))
        """
        return self._solve(x, self._times(), args, running_cost, local_error)

    def trajectory(self, x: S, t: Tensor | Sequence[float], args: Any = None) -> S:  # noqa: ANN401
        """State at every time of a grid of its own, whose gradient is followed too.

        Args:
            x: State at `t[0]`, as for `forward`.
            t: Times, [T], or [B, T] for a grid for each sample.
            args: Third argument of the field.

        Returns:
            The structure of `x`, each leaf [T, B, ...].

        Raises:
            SolveFailed: If any sample did not reach the last time.
        """
        return self._trajectory(x, t, args)

    def extra_repr(self) -> str:
        """Settings for `repr`, which shows the field by itself if it is a module."""
        settings = f"t={self.t}, solver={self.solver}"
        settings += f", random_end={self.random_end}" if self.random_end else ""
        if isinstance(self.field, nn.Module):
            return settings
        return f"{getattr(self.field, '__qualname__', type(self.field).__name__)}, {settings}"

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles: a copy has not solved anything yet."""
        return self.__dict__ | {"stats": None}

    @untraced
    def _last(self, x: Any, args: Any) -> Any:  # noqa: ANN401
        return map_leaves(lambda leaf: leaf[-1], self._trajectory(x, self._times(), args))

    @untraced
    def _trajectory(self, x: Any, t: Tensor | Sequence[float], args: Any) -> Any:  # noqa: ANN401
        return self._solve(x, t, args).y

    def _times(self) -> tuple[float, float]:
        if not (self.training and self.random_end):
            return self.t
        return self.t[0], self.t[1] + self.random_end * (2 * float(torch.rand(())) - 1)

    @untraced
    def _solve(
        self,
        x: Any,  # noqa: ANN401
        t: Tensor | Sequence[float],
        args: Any,  # noqa: ANN401
        running_cost: Callable[..., Any] | None = None,
        local_error: bool = False,
    ) -> Solution:
        device = _device(x)
        if torch.is_autocast_enabled(device):
            x, args = map_leaves(_raise_precision, (x, args))
        with torch.autocast(device, enabled=False):
            problem = ODEProblem(
                self.field,
                x,
                t,  # pyright: ignore[reportArgumentType] - normalises t
                args=args,
                batched=True,
                running_cost=running_cost,
                local_error=local_error,
            )
            solution = solve(problem, self.solver)
        self.stats = solution.stats
        return raise_if_failed(solution)


def _interval(t: Sequence[float] | Tensor) -> tuple[float, float]:
    if isinstance(t, Tensor) and t.requires_grad:
        raise InvalidProblem(
            "`t` of a layer must be plain numbers, got a tensor that requires a gradient. "
            "Use block.trajectory(x, t)[-1], whose `t` receives one."
        )
    try:
        t0, t1 = (float(time) for time in t)
    except (TypeError, ValueError):
        raise InvalidProblem(
            f"`t` must be two numbers, got {t!r}. Write t=(0.0, 1.0); for more output times use "
            "block.trajectory(x, t)."
        ) from None
    if not (math.isfinite(t0) and math.isfinite(t1)) or t0 == t1:
        raise InvalidProblem(
            f"`t` must be two distinct finite numbers, got ({t0}, {t1}). Write t=(0.0, 1.0)."
        )
    return t0, t1


def _checked_end(random_end: float, t: tuple[float, float]) -> float:
    is_number = isinstance(random_end, int | float)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not (is_number and 0 <= random_end < abs(t[1] - t[0])):
        raise InvalidProblem(
            f"`random_end` must be at least 0 and below the length of the interval, got "
            f"{random_end!r} for t={t}. STEER's authors take half of it or less."
        )
    return float(random_end)


def _device(x: object) -> str:
    """Device type of a state; "cpu" for what `ODEProblem` will refuse."""
    return next((leaf.device.type for leaf in leaves_of(x) if isinstance(leaf, Tensor)), "cpu")


def _raise_precision(leaf: object) -> object:
    if isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16):
        return leaf.float()
    return leaf
