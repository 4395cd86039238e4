"""Room beside the data for paths to pass one another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem

__all__ = ["Augment"]


class Augment(nn.Module):
    """A layer that adds zeros: features to [B, D], channels to [B, C, H, W].

    The paths of an ODE cannot cross, so that a layer of D variables cannot exchange two points on
    a line nor turn a disc inside out. With room to go around it can, and with a simpler field.

    Args:
        extra: So many zeros are added along dimension 1.

    Raises:
        InvalidProblem: If `extra` is not a positive integer; when called, if the input has no
            dimension 1.

    Source:
        Dupont et al. 2019, "Augmented neural ODEs" (arXiv 1904.01681).

    Example:
        >>> Augment(2)(torch.ones(7, 3)).shape, Augment(5)(torch.ones(7, 3, 8, 8)).shape
        (torch.Size([7, 5]), torch.Size([7, 8, 8, 8]))
    """

    def __init__(self, extra: int) -> None:
        """Check the number."""
        super().__init__()
        if type(extra) is not int or extra < 1:
            raise InvalidProblem(
                f"`extra` must be a positive integer, got {extra!r}. Give the features to add."
            )
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """The input [B, D, ...] with zeros behind it, [B, D + extra, ...]."""
        if x.dim() < 2:
            raise InvalidProblem(
                f"`x` must be [B, D, ...], got shape {list(x.shape)}. Add the batch dimension."
            )
        zeros = x.new_zeros(x.shape[0], self.extra, *x.shape[2:])
        return torch.cat([x, zeros], dim=1)

    def extra_repr(self) -> str:
        """The number of zeros, for `repr`."""
        return f"extra={self.extra}"
