"""Points carried along a field, with their log-determinants and costs, in one solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctflow.api import solve
from ctflow.backends.protocol import Solver
from ctflow.errors import InvalidProblem, SolveFailed
from ctflow.flows.costs import RunningCost
from ctflow.flows.divergence import Divergence, Exact, KnowsDivergence, Rates
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, raise_if_failed

__all__ = ["Carried", "Transport", "arrived"]

_Args = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Context and noise, each empty or one tensor."""


@dataclass(frozen=True)
class Carried:
    """Points that were carried, and what was found on the way.

    Args:
        z: End points, [N, ...]; NaN for a sample that failed.
        log_det: Log-determinant of the map from start to end,  int div f dt, [N].
        costs: Integrals of the running costs over the length of the path, [N, C].
        solution: All that the solve found out.
    """

    z: Tensor
    log_det: Tensor
    costs: Tensor
    solution: Solution

    @property
    def status(self) -> Tensor:
        """A `Status` for each sample, int64 [N]."""
        return self.solution.status.expand(self.z.shape[0])


@dataclass(frozen=True, eq=False)
class Transport:
    """A field with everything that is needed to carry points along it.

    Args:
        field: `f(t, z)`, or `f(t, z, context)`; a row of z, one of the context, and nothing else
            decide a row of the result.
        divergence: How the divergence is found; None: by the field's own formula if it has one,
            else `Exact()`.
        costs: Running costs, integrated along the path.
        solver: How to solve.
    """

    field: Callable[..., Tensor]
    divergence: Divergence | None
    costs: tuple[RunningCost, ...]
    solver: Solver

    def carry(self, z: Tensor, t: Tensor | Sequence[float], context: Tensor | None) -> Carried:
        """Carry points from t[0] to t[1]; a sample that fails says so in the status.

        Args:
            z: Points, [N, ...], finite.
            t: Start and end, in either order, [2].
            context: One row for each point, [N, ...], or None.

        Cost:
            One solve of D + 1 variables a sample, and one for each running cost.
        """
        given = () if context is None else (context,)
        zero = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        moved = _Moved(self.field, self.divergence, self.costs)
        y0 = (z, zero, *([zero.new_zeros(len(z), len(self.costs))] if self.costs else []))
        noise = moved.draw(t, z, given)
        problem = ODEProblem(moved, y0, t, args=(given, noise), batched=True)  # pyright: ignore[reportArgumentType] - normalises t
        solution = solve(problem, self.solver)
        end = [leaf[-1] for leaf in solution.y]
        forwards = float(problem.t.detach()[-1] - problem.t.detach()[0]) > 0
        costs = end[2] if self.costs else zero.new_zeros(len(z), 0)
        return Carried(end[0], end[1], costs if forwards else -costs, solution)

    def follow(self, z: Tensor, t: Tensor | Sequence[float], context: Tensor | None) -> Solution:
        """Solve for the points alone, with output at every time of t [T]."""
        given = () if context is None else (context,)
        problem = ODEProblem(_Alone(self.field), z, t, args=(given,), batched=True)  # pyright: ignore[reportArgumentType] - normalises t
        return solve(problem, self.solver)

    def versions(self) -> tuple[object, ...]:
        """Changes with every update of the field's parameters and buffers."""
        if not isinstance(self.field, nn.Module):
            return ()
        tensors = (*self.field.parameters(), *self.field.buffers())
        return tuple((id(x), x._version) for x in tensors)


@dataclass(frozen=True, eq=False)
class _Moved:
    """d(z, log_det, costs)/dt."""

    field: Any
    divergence: Divergence | None
    costs: tuple[RunningCost, ...]

    def draw(
        self, t: Tensor | Sequence[float], z: Tensor, context: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Noise for one solve: one tensor, or none."""
        if self.divergence is None:
            return ()
        start = torch.as_tensor(t[0]).detach().to(z)
        noise = self.divergence.draw(lambda z: self.field(start, z, *context), z)
        return () if noise is None else (noise,)

    def __call__(self, t: Tensor, state: tuple[Tensor, ...], args: _Args) -> tuple[Tensor, ...]:
        """Rates of everything that is carried."""
        rates = self._rates(t, state[0], *args)
        if not self.costs:
            return rates.velocity, rates.divergence
        return rates.velocity, rates.divergence, self._cost(rates)

    def _rates(
        self, t: Tensor, z: Tensor, context: tuple[Tensor, ...], noise: tuple[Tensor, ...]
    ) -> Rates:
        def at_this_time(z: Tensor) -> Tensor:
            return _checked(self.field(t, z, *context), z)

        if self.divergence is not None:
            return self.divergence.rates(at_this_time, z, noise[0] if noise else None)
        if not isinstance(self.field, KnowsDivergence):
            return Exact().rates(at_this_time, z, None)
        velocity, divergence = self.field.with_divergence(t, z, *context)
        return Rates(velocity, divergence, lambda: Exact().rates(at_this_time, z, None).jacobian())

    def _cost(self, rates: Rates) -> Tensor:
        found = [cost(rates) for cost in self.costs]
        for cost in found:
            if cost.shape != rates.divergence.shape:
                raise InvalidProblem(
                    "a running cost must return one value for each sample, got shape "
                    f"{list(cost.shape)} for {len(rates.divergence)} samples. "
                    "Sum over all but dimension 0."
                )
        return torch.stack(found, dim=1)


def arrived(solution: Solution, batch: Sequence[int] = ()) -> Solution:
    """A solution whose samples all reached the end.

    Args:
        solution: Of rows that were flattened from a batch.
        batch: Its shape.

    Raises:
        SolveFailed: If one did not; says how to find out which, where the steps were shared.
    """
    try:
        return raise_if_failed(solution)
    except SolveFailed as error:
        if solution.stats.solver.coupling == "per_sample":
            if len(batch) < 2:
                raise
            first = torch.tensor(solution.stops[0].sample)
            place = [int(i) for i in torch.unravel_index(first, tuple(batch))]
            raise SolveFailed(
                f"{error} In the batch of shape {list(batch)} it is sample {place}.", solution
            ) from None
        raise SolveFailed(
            f"{error} Under shared steps one sample that fails takes all with it. To have "
            "it named, and the rest solved, use coupling='per_sample' (native and compiled).",
            solution,
        ) from None


def _checked(velocity: object, z: Tensor) -> Tensor:
    """The velocity, if it is one: the divergence of anything else has no meaning."""
    if isinstance(velocity, Tensor) and velocity.shape == z.shape and velocity.dtype == z.dtype:
        return velocity
    got = repr(velocity)
    if isinstance(velocity, Tensor):
        got = f"{velocity.dtype} {list(velocity.shape)}"
    raise InvalidProblem(
        f"`field` must return a velocity like z, {z.dtype} {list(z.shape)}, got {got}. "
        "Return one rate for each variable."
    )


@dataclass(frozen=True, eq=False)
class _Alone:
    """dz/dt, with the context where there is one."""

    field: Any

    def __call__(self, t: Tensor, z: Tensor, args: tuple[tuple[Tensor, ...]]) -> Tensor:
        """Evaluate the field."""
        return self.field(t, z, *args[0])
