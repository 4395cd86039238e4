"""Fields with structure: Hamiltonian dynamics, and equations of second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem

__all__ = ["HamiltonianField", "SecondOrderField"]

Pair: TypeAlias = tuple[Tensor, Tensor]


class HamiltonianField(nn.Module):
    """Motion that keeps an energy:  dq/dt = dH/dp,  dp/dt = -dH/dq.

    Whatever the energy is, the exact motion keeps it and keeps volumes; what a solver makes of it
    drifts by its tolerance. It does not depend on time.

    Args:
        energy: `H(q, p)`, one value for each sample, [B]; twice differentiable, so smooth
            activations.

    Raises:
        InvalidProblem: When called, if the state is not a pair of tensors of one shape, or the
            energy not one value for each sample.

    Cost:
        One evaluation of the energy and its gradient a call.

    Source:
        Greydanus et al. 2019, "Hamiltonian neural networks" (arXiv 1906.01563).

    Example:
        >>> field = HamiltonianField(lambda q, p: 0.5 * (q**2 + p**2).sum(1))
        >>> field(torch.tensor(0.0), (torch.tensor([[1.0]]), torch.tensor([[2.0]])))
        (tensor([[2.]]), tensor([[-1.]]))
    """

    def __init__(self, energy: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Keep the energy; a module's parameters become the field's."""
        super().__init__()
        self.energy = energy

    def forward(self, t: Tensor, y: Pair) -> Pair:  # noqa: ARG002
        """Derivative of the state.

        Args:
            t: Time; not used.
            y: Places q and momenta p, [B, ...] each.

        Returns:
            dq/dt and dp/dt.
        """
        q, p = _pair(y)

        def total(q: Tensor, p: Tensor) -> Tensor:
            energy = self.energy(q, p)
            if energy.shape != q.shape[:1]:
                raise InvalidProblem(
                    f"`energy` must give one value for each sample, got shape "
                    f"{list(energy.shape)} for {q.shape[0]} samples. Sum over the rest."
                )
            return energy.sum()

        slope_q, slope_p = torch.func.grad(total, (0, 1))(q, p)  # pyright: ignore
        return slope_p, -slope_q


class SecondOrderField(nn.Module):
    """An equation of second order as one of first:  dx/dt = v,  dv/dt = a(t, x, v).

    Paths may cross in x, so that it learns what a field on x alone cannot; and it is what motion
    under a force is.

    Args:
        acceleration: `a(t, x, v)`, of the shape of x.

    Raises:
        InvalidProblem: When called, if the state is not a pair of tensors of one shape.

    Source:
        Norcliffe et al. 2020, "On second order behaviour in augmented neural ODEs"
        (arXiv 2006.07220): SONODE.

    Example:
        >>> field = SecondOrderField(lambda t, x, v: -x)
        >>> field(torch.tensor(0.0), (torch.tensor([[1.0]]), torch.tensor([[2.0]])))
        (tensor([[2.]]), tensor([[-1.]]))
    """

    def __init__(self, acceleration: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Keep the acceleration; a module's parameters become the field's."""
        super().__init__()
        self.acceleration = acceleration

    def forward(self, t: Tensor, y: Pair) -> Pair:
        """Derivative of the state.

        Args:
            t: Time, 0-dim or [B, 1, ..., 1].
            y: Places x and velocities v, [B, ...] each.

        Returns:
            dx/dt and dv/dt.
        """
        x, v = _pair(y)
        return v, self.acceleration(t, x, v)


def _pair(y: object) -> Pair:
    """The two halves of a state.

    Raises:
        InvalidProblem: If it has no two halves of one shape.
    """
    match y:
        case (Tensor() as first, Tensor() as second) if first.shape == second.shape:
            return first, second
        case _:
            found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise InvalidProblem(
                f"`y` must be a pair of tensors of one shape, got {found}. Integrate (q, p), "
                "or (x, v)."
            )
