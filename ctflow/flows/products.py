"""Products with the Jacobian of a field, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["forms", "squared", "summed", "unit_vectors", "vjp"]


def vjp(
    field: Callable[[Tensor], Tensor], z: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Velocity at z, and the function from cotangents to their products with the Jacobian."""
    found: Any = torch.func.vjp(field, z)
    return found[0], found[1]


def forms(
    pull: Callable[[Tensor], tuple[Tensor, ...]], vectors: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Sums of e^T J e over vectors [K, N, ...], and of |e^T J|^2 on demand; [N] each."""
    rows = [pull(e)[0].flatten(1) for e in vectors]
    trace = summed([(row * e.flatten(1)).sum(dim=1) for row, e in zip(rows, vectors, strict=True)])
    return trace, lambda: summed([squared(row) for row in rows])


def summed(terms: list[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    return torch.stack(terms).sum(dim=0) if len(terms) > 1 else terms[0]


def squared(row: Tensor) -> Tensor:
    """Squared norm of each sample's row [N, D], [N]."""
    return row.square().sum(dim=1)


def unit_vectors(z: Tensor, size: int) -> list[Tensor]:
    """The unit vectors of a sample's variables, each in the shape of z."""
    eye = torch.eye(size, dtype=z.dtype, device=z.device)
    return [row.reshape(1, *z.shape[1:]).expand(z.shape) for row in eye]
