"""A problem with a gradient wanted of everything that enters it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.api import solve
from ctflow.backends.captures import Captures, pull, sequence_number
from ctflow.backends.field import Field
from ctflow.backends.protocol import Solver
from ctflow.errors import GradientWarning, InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, raise_if_failed
from ctflow.state import Layout, flatten_args, leaves_of, map_leaves

__all__ = ["Asked", "Gradient", "Loss", "default_loss", "infinite_if_nan"]

Loss = Callable[[Any], Tensor]
"""What is differentiated: a scalar of the outputs, each leaf [T, *shape]."""


class Gradient(NamedTuple):
    """What one solver made of a problem.

    Attributes:
        y: Outputs, [T, B, M], detached; B is 1 unless dimension 0 is a batch.
        parts: Name of the part -> gradients of its tensors, zeros where there is none.
        solution: The solution, with the counts of its backward pass.
        doubts: What it said itself against its gradient.
    """

    y: Tensor
    parts: dict[str, tuple[Tensor, ...]]
    solution: Solution
    doubts: tuple[str, ...]

    @property
    def norm(self) -> float:
        """Norm of the whole gradient."""
        return math.hypot(*(float(g.norm()) for part in self.parts.values() for g in part))

    def of_part(self, part: str) -> float:
        """Norm of one part."""
        return math.hypot(*(float(g.norm()) for g in self.parts[part]))

    def distance(self, other: Gradient, part: str | None = None) -> float:
        """Norm of the difference from another one, of a part or of the whole; never NaN."""
        names = self.parts if part is None else (part,)
        pairs = [p for n in names for p in zip(self.parts[n], other.parts[n], strict=True)]
        return infinite_if_nan(math.hypot(*(float((a - b).norm()) for a, b in pairs)))

    def check_finite(self) -> None:
        """Refuse to measure anything against what is no number.

        Raises:
            InvalidProblem: If an entry is infinite or NaN.
        """
        for name, tensors in self.parts.items():
            if not all(bool(torch.isfinite(g).all()) for g in tensors):
                raise InvalidProblem(
                    f"the problem must have a gradient, got one of {name} that is not finite. "
                    "Look for a root, a norm or a division at zero in `f`: see `check_dynamics`."
                )


def infinite_if_nan(error: float) -> float:
    """An error that is no number is no small one, and NaN hides from every comparison."""
    return math.inf if math.isnan(error) else error


@dataclass(frozen=True, eq=False)
class Asked:
    """A problem with a gradient wanted of y0, parameters, args and times.

    Args:
        problem: With fresh leaves for y0, args and t.
        parts: "y0", "params", "args", "t": the tensors of each.
        loss: What is differentiated.
    """

    problem: ODEProblem
    parts: dict[str, tuple[Tensor, ...]]
    loss: Loss

    @classmethod
    def of(
        cls, problem: ODEProblem, loss: Loss | None, seed: int = 0, narrow: bool = False
    ) -> Asked:
        """The same problem with its own leaves; parameters are those that `f` is found to read.

        Args:
            problem: What is asked.
            loss: What is differentiated; None: the outputs after the first, weighted at random.
            seed: Of the weights.
            narrow: Whether a dtype below float64 will do.

        Raises:
            InvalidProblem: If the state is not float64, unless `narrow`.
        """
        dtype = leaves_of(problem.y0)[0].dtype
        if dtype != torch.float64 and not narrow:
            raise InvalidProblem(
                f"gradients are compared in float64, got a state of {dtype}. "
                "Use `.double()` on `y0` and on the module."
            )
        y0 = map_leaves(_leaf, problem.y0)
        args, rebuild = flatten_args(problem.args)
        own = [_leaf(x) if _is_floating(x) else x for x in args]
        t = problem.t.detach().double().clone().requires_grad_()
        changed = replace(problem, y0=y0, args=None if problem.args is None else rebuild(own), t=t)
        handed = tuple(x for x in own if _is_floating(x))
        params = [x for x in _read(changed) if all(x is not other for other in handed)]
        parts = {"y0": tuple(leaves_of(y0)), "params": tuple(params), "args": handed, "t": (t,)}
        parts = {name: tensors for name, tensors in parts.items() if tensors}
        return cls(changed, parts, loss or default_loss(seed))

    def gradient(self, solver: Solver) -> Gradient:
        """Solve, differentiate, and keep what the backward pass says of itself.

        Raises:
            SolveFailed: If a sample did not arrive.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GradientWarning)
            solution = raise_if_failed(solve(self.problem, solver))
            loss = self.loss(solution.y)
            tensors = [x for part in self.parts.values() for x in part]
            found = pull((loss,), tensors, (torch.ones_like(loss),), keep=True)
        for other in caught:
            if not issubclass(other.category, GradientWarning):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        doubts = [str(w.message) for w in caught if issubclass(w.category, GradientWarning)]
        filled = iter(
            torch.zeros_like(x) if g is None else g.detach()
            for g, x in zip(found, tensors, strict=True)
        )
        parts = {name: tuple(next(filled) for _ in part) for name, part in self.parts.items()}
        return Gradient(self._by_time(solution.y), parts, solution, tuple(doubts))

    def _by_time(self, y: Any) -> Tensor:  # noqa: ANN401
        per_sample = self.problem.batched or self.problem.t.dim() == 2
        leading = 2 if per_sample else 1
        leaves = [leaf.detach() for leaf in leaves_of(y)]
        flattened = [leaf.reshape(*leaf.shape[:leading], -1) for leaf in leaves]
        together = torch.cat(flattened, dim=-1)
        return together if per_sample else together.unsqueeze(1)

    def value(self, solver: Solver) -> float:
        """The loss alone."""
        with torch.no_grad():
            return float(self.loss(raise_if_failed(solve(self.problem, solver)).y))


def default_loss(seed: int) -> Loss:
    """Every output with a random weight, linear and quadratic: no part can hide."""

    def loss(y: Any) -> Tensor:  # noqa: ANN401
        generator = torch.Generator().manual_seed(seed)
        total: list[Tensor] = []
        for leaf in leaves_of(y):
            weight = torch.rand(leaf.shape, generator=generator, dtype=torch.float64) + 0.5
            sign = 2.0 * torch.randint(0, 2, leaf.shape, generator=generator) - 1.0
            total.append(((weight * sign).to(leaf) * leaf + 0.1 * leaf * leaf).sum())
        return torch.stack(total).sum()

    return loss


def _read(problem: ODEProblem) -> list[Tensor]:
    """Leaves that `f` reads and that want a gradient."""
    per_sample = problem.t.dim() == 2
    layout = Layout.of(problem.y0, per_sample)
    field = Field(problem, layout)
    captures = Captures(problem, field)
    leaf = layout.pack(problem.y0).detach().requires_grad_()
    start = problem.t.detach()[..., 0].expand(layout.batch).to(layout.dtype)
    with torch.enable_grad():
        marker = sequence_number()
        captures.discover(field(start, leaf), leaf, marker)
    return [x for x in captures.inputs if x.is_leaf]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _is_floating(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
