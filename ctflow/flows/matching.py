"""Flow matching: regress a field on straight paths, with no solve in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ctflow.errors import InvalidProblem

__all__ = [
    "Passage",
    "Path",
    "conditional_transport",
    "linear_path",
    "matching_loss",
    "pair_by_transport",
]


class Passage(NamedTuple):
    """Where samples of a path are at their times, and how fast they move.

    Args:
        z: Places, [N, ...].
        velocity: dz/dt, [N, ...].
    """

    z: Tensor
    velocity: Tensor


class Path(Protocol):
    """A path from base to data for each pair."""

    def __call__(self, z: Tensor, x: Tensor, t: Tensor) -> Passage:
        """Passage at t [N, 1, ...] on the way from z [N, ...] to x [N, ...]."""
        ...


def linear_path(z: Tensor, x: Tensor, t: Tensor) -> Passage:
    """The straight line from z to x:  (1 - t) z + t x.

    Args:
        z: Base samples, [N, ...].
        x: Data, [N, ...].
        t: Times in [0, 1], [N, 1, ...].

    Source:
        Liu, Gong and Liu 2023 (arXiv 2209.03003), eq. 1; Albergo and Vanden-Eijnden 2023.
    """
    return Passage((1 - t) * z + t * x, x - z)


def conditional_transport(sigma: float = 1e-2) -> Path:
    """The optimal-transport conditional path:  (1 - (1 - sigma) t) z + t x.

    At t = 1 the base has shrunk to a Gaussian of width sigma around each point of the data.

    Args:
        sigma: Width that is left, in units of the base's.

    Source:
        Lipman et al. 2023 (arXiv 2210.02747), eqs. 20 to 23.
    """
    if not 0 <= sigma < 1:
        raise InvalidProblem(
            f"`sigma` must be at least 0 and less than 1, got {sigma!r}. It is the width at t = 1."
        )

    def path(z: Tensor, x: Tensor, t: Tensor) -> Passage:
        return Passage((1 - (1 - sigma) * t) * z + t * x, x - (1 - sigma) * z)

    return path


def pair_by_transport(z: Tensor, x: Tensor) -> Tensor:
    """Which row of x each row of z goes to so that the squared distances sum to the least.

    The optimal coupling of the two batches: paths cross less, so the field is easier to learn and
    its flow takes fewer steps.

    Args:
        z: Base samples, [N, ...].
        x: Data, [N, ...].

    Returns:
        Rows of x, int64 [N], a permutation.

    Raises:
        InvalidProblem: If the shapes differ, or a number is not finite.

    Cost:
        O(N^3) at worst on the CPU, by scipy.optimize.linear_sum_assignment; 10 ms for N = 256.

    Source:
        Tong et al. 2024 (arXiv 2302.00482) and Pooladian et al. 2023 (arXiv 2304.14772).

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [2.0]])
        >>> pair_by_transport(z, z.flip(0) + 10).tolist()
        [2, 1, 0]
    """
    if z.shape != x.shape:
        raise InvalidProblem(
            f"`z` and `x` must have one shape, got {list(z.shape)} and {list(x.shape)}. "
            "Draw as many base samples as there are data."
        )
    with torch.no_grad():
        cost = torch.cdist(z.flatten(1).cpu().double(), x.flatten(1).cpu().double()).square()
    if not bool(torch.isfinite(cost).all()):
        raise InvalidProblem(
            "`z` and `x` must be finite, got NaN or infinite distances between them. "
            "Clean the data."
        )
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(columns, dtype=torch.int64, device=x.device)


def matching_loss(
    field: Callable[..., Tensor],
    z: Tensor,
    x: Tensor,
    *,
    path: Path = linear_path,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared distance of the field from the velocity of random passages.

    Its minimiser carries the base at t = 0 to the data at t = 1: afterwards
    `ContinuousFlow(base, field)` has its exact likelihood and its samples, under any backend. For
    the minibatch coupling, order the data first: `x[pair_by_transport(z, x)]`.

    Args:
        field: `f(t, z)`, or `f(t, z, context)`; gets t as [N, 1, ...].
        z: Base samples, [N, ...].
        x: Data, [N, ...].
        path: `linear_path`, `conditional_transport(sigma)`, or any `Path`.
        context: One row for each pair, or None.
        generator: Source of the random times; None: torch's own.

    Returns:
        The loss, 0-dim.

    Raises:
        InvalidProblem: If the shapes of z and x differ, or the field returns another.

    Cost:
        One evaluation of the field.

    Source:
        Lipman et al. 2023 (arXiv 2210.02747), eq. 9.

    Example:
        >>> from ctflow.flows import FreeForm
        >>> matching_loss(FreeForm(2, (8,)), torch.randn(4, 2), torch.randn(4, 2)).shape
        torch.Size([])
    """
    if z.shape != x.shape:
        raise InvalidProblem(
            f"`z` and `x` must have one shape, got {list(z.shape)} and {list(x.shape)}. "
            "Draw as many base samples as there are data."
        )
    shape = (len(x), *(1,) * (x.dim() - 1))
    t = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
    passage = path(z, x, t)
    given = () if context is None else (context,)
    found = field(t, passage.z, *given)
    if found.shape != passage.velocity.shape:  # it would be broadcast
        raise InvalidProblem(
            f"`field` must return a velocity like z, {list(passage.z.shape)}, got "
            f"{list(found.shape)}. Return one rate for each variable."
        )
    return (found - passage.velocity).square().flatten(1).sum(dim=1).mean()
