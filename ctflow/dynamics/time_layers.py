"""Linear layers that know the time: the three ways in which a network can depend on t."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctflow.state import expand_time

__all__ = ["ConcatLinear", "ConcatSquashLinear", "IgnoreLinear"]


class IgnoreLinear(nn.Module):
    """A linear layer that does not look at the time:  W y + b.

    A field made of these is autonomous.

    Args:
        dim_in: Features of the input.
        dim_out: Features of the output.

    Source:
        FFJORD (Grathwohl et al. 2019, arXiv 1810.01367), `ignore` layers of the released code.

    Example:
        >>> IgnoreLinear(3, 5)(torch.tensor(0.5), torch.zeros(7, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        """Draw the weights as `torch.nn.Linear` does."""
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """Map features [..., dim_in] to [..., dim_out]; `t` is not used."""
        return self.linear(y)


class ConcatLinear(nn.Module):
    """A linear layer that takes the time as one more feature:  W [t, y] + b.

    Args:
        dim_in: Features of the input, without the time.
        dim_out: Features of the output.

    Source:
        FFJORD (Grathwohl et al. 2019, arXiv 1810.01367), `concat` layers of the released code.

    Example:
        >>> ConcatLinear(3, 5)(torch.tensor(0.5), torch.zeros(7, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        """Draw the weights as `torch.nn.Linear` does."""
        super().__init__()
        self.linear = nn.Linear(dim_in + 1, dim_out)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Map features [..., dim_in] at time t (0-dim or [B, 1, ..., 1]) to [..., dim_out]."""
        column = _time_column(t, y).expand(*y.shape[:-1], 1)
        return self.linear(torch.cat([column, y], dim=-1))


class ConcatSquashLinear(nn.Module):
    """A linear layer gated and shifted by the time:  (W y + b) * sigmoid(u t + v) + w t.

    The gate opens and closes each output feature as time goes by; the weights themselves stay.

    Args:
        dim_in: Features of the input.
        dim_out: Features of the output.

    Source:
        FFJORD (Grathwohl et al. 2019, arXiv 1810.01367), `concatsquash` layers of the released
        code; the gate is the sigma_n(t) of Chen et al. 2018 (arXiv 1806.07366v5), section 4.

    Example:
        >>> ConcatSquashLinear(3, 5)(torch.full((7, 1), 0.5), torch.zeros(7, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        """Draw the weights as `torch.nn.Linear` does."""
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)
        self.gate = nn.Linear(1, dim_out)
        self.shift = nn.Linear(1, dim_out, bias=False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Map features [..., dim_in] at time t (0-dim or [B, 1, ..., 1]) to [..., dim_out]."""
        column = _time_column(t, y)
        return self.linear(y) * torch.sigmoid(self.gate(column)) + self.shift(column)


def _time_column(t: Tensor, y: Tensor) -> Tensor:
    """Time as one feature that broadcasts against the rows of `y`: [1], or [B, 1, ..., 1]."""
    return (t.reshape(1) if t.dim() == 0 else expand_time(t, y)).to(y.dtype)
