"""What regularised training adds: costs along the path, and a random end of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.flows.divergence import Rates

__all__ = ["RunningCost", "jacobian", "kinetic", "random_end"]

RunningCost: TypeAlias = Callable[[Rates], Tensor]
"""One number for each sample, [N], from the rates at one place of its path."""


def kinetic(rates: Rates) -> Tensor:
    """Squared speed of each sample:  |f|^2, [N].

    Its integral is the transport cost of the path; a flow that keeps it small moves in straight
    lines at constant speed, which takes few steps to follow.

    Source:
        RNODE (Finlay et al. 2020, arXiv 2002.02798), eq. 8.
    """
    return rates.velocity.flatten(1).square().sum(dim=1)


def jacobian(rates: Rates) -> Tensor:
    """Squared Frobenius norm of each sample's Jacobian:  |df/dz|_F^2, [N].

    `Hutchinson` estimates it as |e^T df/dz|^2 from the products that the trace needs anyway.

    Source:
        RNODE (Finlay et al. 2020, arXiv 2002.02798), eq. 10.
    """
    return rates.jacobian()


def random_end(
    t: Sequence[float] | Tensor, width: float, generator: torch.Generator | None = None
) -> Tensor:
    """The interval with its end moved at random:  t1 + b,  b uniform in (-width, width).

    Drawn anew for each training step, it keeps the field smooth around the end of time. Evaluate
    with the interval itself.

    Args:
        t: Start and end.
        width: Largest shift of the end, in units of t; less than the interval's length.
        generator: Source of the random number; None: torch's own.

    Returns:
        Start and shifted end, [2], in float64 if `t` is not a tensor.

    Raises:
        InvalidProblem: If `width` is negative or not less than the interval's length.

    Source:
        STEER (Ghosh et al. 2020, arXiv 2006.10711), section 3.

    Example:
        >>> bool(abs(random_end((0.0, 1.0), 0.25)[1] - 1) < 0.25)
        True
    """
    ends = t if isinstance(t, Tensor) else torch.tensor(list(t), dtype=torch.float64)
    length = float((ends[1] - ends[0]).abs())
    if not 0 <= width < length:
        raise InvalidProblem(
            f"`width` must be at least 0 and less than the length of the interval {length:g}, got "
            f"{width!r}. The end must not pass the start."
        )
    drawn = torch.rand((), generator=generator, dtype=torch.float64).to(ends)
    return torch.stack([ends[0], ends[1] + width * (2 * drawn - 1)])
