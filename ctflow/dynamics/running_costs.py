"""Running costs that keep a learned field easy to integrate: kinetic energy, Jacobian, Taylor.

Each is called as `cost(t, y)`, or `cost(t, y, args)`, and gives one value for each sample; hand it
to `ODEBlock.solve(x, running_cost=...)` or to `ODEProblem(running_cost=...)`. All are means over
the variables of a sample, so that their weight in a loss does not depend on the size of the state;
multiply by the number of variables for the sums of the papers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.state import flatten_args, leaves_of

__all__ = ["JacobianNorm", "KineticEnergy", "Sum", "TaylorNorm", "rademacher_like"]

Cost = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class KineticEnergy:
    """Square of the speed:  mean |f(t, y)|^2  of each sample.

    With it a field takes straight paths at even speed: it is what optimal transport minimises.

    Args:
        field: `f(t, y)` or `f(t, y, args)`; any structure of the state.

    Cost:
        One more evaluation of the field a call.

    Source:
        Finlay et al. 2020, "How to train your neural ODE" (arXiv 2002.02798): RNODE.

    Example:
        >>> KineticEnergy(lambda t, y: 2 * y)(torch.tensor(0.0), torch.ones(3, 5))
        tensor([4., 4., 4.])
    """

    field: Callable[..., Any]

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Tensor:  # noqa: ANN401
        """The cost of each sample, [B]."""
        return _mean_square(self.field(t, y, *args))


@dataclass(frozen=True, eq=False)
class JacobianNorm:
    """Square of the Jacobian's Frobenius norm, estimated by one product:  mean |noise^T df/dy|^2.

    With it the field hardly changes from place to place, and an explicit solver takes long steps.

    Args:
        field: `f(t, y)` or `f(t, y, args)`; the state is one tensor.
        noise: Shape of the state, with independent entries of mean 0 and variance 1; drawn once a
            solve (`rademacher_like(x)`), so that what is integrated is a function.

    Raises:
        InvalidProblem: When called, if the state has not the shape of the noise.

    Cost:
        One more evaluation of the field a call and its vector-Jacobian product; twice
        differentiable fields only.

    Source:
        Finlay et al. 2020, "How to train your neural ODE" (arXiv 2002.02798): RNODE.

    Example:
        >>> cost = JacobianNorm(lambda t, y: 3 * y, torch.ones(2, 5))
        >>> cost(torch.tensor(0.0), torch.zeros(2, 5))
        tensor([9., 9.])
    """

    field: Callable[..., Any]
    noise: Tensor

    def __call__(self, t: Tensor, y: Tensor, *args: Any) -> Tensor:  # noqa: ANN401
        """The cost of each sample, [B]."""
        if not isinstance(y, Tensor) or y.shape != self.noise.shape:  # pyright: ignore[reportUnnecessaryIsInstance]
            shapes = [list(leaf.shape) for leaf in leaves_of(y)]
            raise InvalidProblem(
                f"`noise` must have the shape of the state, got {list(self.noise.shape)} for "
                f"{shapes}. Draw it anew for each solve: rademacher_like(x)."
            )
        _, pull = torch.func.vjp(lambda y: self.field(t, y, *args), y)  # pyright: ignore
        return _mean_square(pull(self.noise.to(y))[0])


@dataclass(frozen=True, eq=False)
class TaylorNorm:
    """Square of a total time derivative of the path:  mean |d^K y / dt^K|^2  of each sample.

    The error of a method of order p is made of derivatives of order p + 1: without them a solver
    of adaptive steps takes long ones.

    Args:
        field: `f(t, y)` or `f(t, y, args)`; any structure of the state.
        order: K, at least 1 (which is the kinetic energy). 2 and 3 are what papers use.

    Raises:
        InvalidProblem: If `order` is not a positive integer.

    Cost:
        K - 1 nested Jacobian-vector products: about 2^K evaluations of the field. The field must be
        K times differentiable, and K - 1 times in torch's forward mode: for 3 and more that is so
        of `torch.nn.Tanh` and not of `torch.nn.SiLU`.

    Source:
        Kelly et al. 2020, "Learning differential equations that are easy to solve"
        (arXiv 2007.04504): TayNODE, by nested forward mode instead of Taylor mode.

    Example:
        >>> TaylorNorm(lambda t, y: 3 * y, order=2)(torch.tensor(0.0), torch.ones(2, 5))
        tensor([81., 81.])
    """

    field: Callable[..., Any]
    order: int

    def __post_init__(self) -> None:
        """Refuse an order that is none."""
        if type(self.order) is not int or self.order < 1:
            raise InvalidProblem(
                f"`order` must be a positive integer, got {self.order!r}. Papers use 2 and 3."
            )

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Tensor:  # noqa: ANN401
        """The cost of each sample, [B]."""
        _prepare_forward_mode()
        leaves, restore = flatten_args(y)

        def rate(t: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
            return tuple(leaves_of(self.field(t, restore(leaves), *args)))

        derivative = rate
        for _ in range(self.order - 1):
            derivative = _along(rate, derivative)
        return _mean_square(derivative(t.contiguous(), *leaves))  # jvp refuses expanded tensors


@dataclass(frozen=True, eq=False)
class Sum:
    """Several costs together:  sum of weight times cost.

    Args:
        costs: The costs.
        weights: As many numbers.

    Raises:
        InvalidProblem: If there are not as many weights as costs, or none.

    Example:
        >>> decay = lambda t, y: -y
        >>> rnode = Sum((KineticEnergy(decay), JacobianNorm(decay, torch.ones(2, 5))), (0.1, 0.01))
        >>> rnode(torch.tensor(0.0), torch.ones(2, 5))
        tensor([0.1100, 0.1100])
    """

    costs: Sequence[Cost]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        """Refuse what cannot be paired."""
        if not self.costs or len(self.costs) != len(self.weights):
            raise InvalidProblem(
                f"`weights` must be one for each cost, got {len(self.weights)} for "
                f"{len(self.costs)}. Give as many."
            )

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Tensor:  # noqa: ANN401
        """The cost of each sample, [B]."""
        pairs = zip(self.costs, self.weights, strict=True)
        return torch.stack([weight * cost(t, y, *args) for cost, weight in pairs]).sum(0)


def rademacher_like(x: Tensor) -> Tensor:
    """Noise of the shape of `x`: each entry -1 or 1, with even chances.

    Example:
        >>> bool((rademacher_like(torch.zeros(4, 3)).abs() == 1).all())
        True
    """
    return torch.randint_like(x, 0, 2, requires_grad=False) * 2 - 1


def _along(
    rate: Callable[..., tuple[Tensor, ...]], function: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., tuple[Tensor, ...]]:
    """d/dt of a function along the path: its derivative in the direction (1, rate)."""

    def derivative(t: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        direction = (torch.ones_like(t), *rate(t, *leaves))
        found = torch.func.jvp(function, (t, *leaves), direction)  # pyright: ignore
        return cast("tuple[Tensor, ...]", found[1])

    return derivative


@lru_cache(maxsize=1)
def _prepare_forward_mode() -> None:
    """Use forward mode once: torch then compiles formulas, and warns of the way it does so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        one = torch.ones(())
        torch.func.jvp(torch.sin, (one,), (one,))  # pyright: ignore


def _mean_square(dy: Any) -> Tensor:  # noqa: ANN401
    """Mean square over all variables of each sample, all leaves together: [B]."""
    leaves: list[Tensor] = leaves_of(dy)
    n_variables = sum(leaf[0].numel() for leaf in leaves)
    sums = [leaf.square().reshape(leaf.shape[0], -1).sum(1) for leaf in leaves]
    return torch.stack(sums).sum(0) / n_variables
