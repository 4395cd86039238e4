"""Jacobians by vector-Jacobian products, batched by torch.func's rules where those exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["products", "rows_of"]

_ROWS = 256  # vector-Jacobian products taken at once


def rows_of(dy: Tensor, inputs: Sequence[Tensor], create: bool = False) -> list[Tensor | None]:
    """Derivatives of each column of dy, in every row of a batch at once.

    Rows of the batch must not depend on each other, or there must be one.

    Args:
        dy: Outputs, [B, M], with a graph.
        inputs: Tensors that the graph reaches, [B, ...] each.
        create: Whether the derivatives have a graph of their own.

    Returns:
        For each input d dy[b, m] / d input[b] as [M, *input.shape]; None where autograd finds no
        way.

    Cost:
        M vector-Jacobian products, vectorised where the operations allow it.
    """
    batch, width = dy.shape
    unit = torch.eye(width, dtype=dy.dtype, device=dy.device).unsqueeze(1).expand(-1, batch, -1)
    if not dy.requires_grad or not width:
        return [None for _ in inputs]
    parts = [_some_rows(dy, inputs, rows, create) for rows in unit.split(_ROWS)]
    found: list[Tensor | None] = []
    for column in zip(*parts, strict=True):
        known = [x for x in column if x is not None]
        found.append(torch.cat(known) if known else None)
    return found


def products(
    dy: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, *, batched: bool, create: bool
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian products that keep the graph; None where autograd finds no way.

    Args:
        dy: Output.
        inputs: What the graph reaches.
        cotangent: Of the shape of dy; several in a new first dimension if `batched`.
        batched: Whether there are several.
        create: Whether the products themselves have a graph.
    """
    return torch.autograd.grad(
        dy, inputs, cotangent, True, create, allow_unused=True, is_grads_batched=batched
    )


def _some_rows(
    dy: Tensor, inputs: Sequence[Tensor], rows: Tensor, create: bool
) -> Sequence[Tensor | None]:
    try:
        return products(dy, inputs, rows, batched=True, create=create)
    except RuntimeError:  # an operation of f without a rule for batches
        each = [products(dy, inputs, row, batched=False, create=create) for row in rows]
        columns = zip(*each, strict=True)
        return [
            torch.stack([x for x in c if x is not None]) if _known(c) else None for c in columns
        ]


def _known(parts: Sequence[Tensor | None]) -> bool:
    """Whether autograd found a way: it does for all rows of a tensor, or for none."""
    return parts[0] is not None
