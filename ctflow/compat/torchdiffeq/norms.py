"""The norms by which torchdiffeq accepts a step, as functions of the flat state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.state import Layout, leaves_of

__all__ = ["Norm", "flat_norm", "mixed", "rms"]

Norm: TypeAlias = Callable[[Any], Any]
"""What a caller passes as `norm`: a function of the state's structure to a scalar."""


def rms(x: Tensor) -> Tensor:
    """Root mean square of all elements, 0-dim; 0 for none."""
    return torch.linalg.vector_norm(x) * max(x.numel(), 1) ** -0.5


def mixed(parts: Sequence[Tensor]) -> Tensor:
    """The largest root mean square of several tensors: torchdiffeq's norm of a tuple."""
    sizes = [rms(part) for part in parts]
    return torch.stack(sizes).amax() if len(sizes) > 1 else sizes[0]


def flat_norm(norm: Norm | None, layout: Layout) -> Callable[[Tensor], Tensor]:
    """A norm of the state as one of the flat tensor [1, N], 0-dim.

    Args:
        norm: The caller's; None for the root mean square, of a tuple the largest of its parts.
        layout: How the flat tensor maps to the state.
    """
    if norm is None:
        if len(layout.shapes) == 1:
            return rms
        widths = [layout.width([shape]) for shape in layout.shapes]
        return lambda flat: mixed(flat.split(widths, dim=-1))
    return lambda flat: _number(norm(layout.unpack(flat)), flat)


def _number(value: object, like: Tensor) -> Tensor:
    """What the caller's norm returned, as a 0-dim tensor.

    Raises:
        InvalidProblem: If it is not one real number.
    """
    found = leaves_of(value)
    single = found[0] if len(found) == 1 else None
    if isinstance(single, Tensor) and single.numel() == 1 and not single.is_complex():
        return single.detach().reshape(()).abs().to(like)
    if isinstance(single, int | float):
        return like.new_tensor(abs(float(single)))
    what = f"shape {list(single.shape)}" if isinstance(single, Tensor) else type(value).__name__
    raise InvalidProblem(
        f"`norm` must return one real number, got {what}. Reduce over all elements."
    )
