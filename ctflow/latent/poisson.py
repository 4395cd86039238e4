"""Events in time: an inhomogeneous Poisson process whose rate is a network of the latent state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem, Unsupported
from ctflow.latent.likelihoods import Likelihood, check_width

__all__ = ["PoissonProcess", "homogeneous_log_prob"]


class PoissonProcess(Likelihood):
    """Event times of K sequences, with the decoder's output as their log-rates.

        log p = sum_i log rate(t_i) - integral of rate over the windows

    The data are rows of counts at event times: x[b, i, k] = 1 says that sequence k of series b had
    an event at t[b, i] (2 for a double event, 0 for none). A series without events is one row with
    count 0, at the end of the window say: that it was watched in vain is what was seen. The
    integral is a running cost of the solve that gives the path: one call of the solver for both.

    Args:
        windows: When the process was watched: (start, end), or several such intervals [W, 2],
            apart and in order. Events outside them are refused.

    Raises:
        InvalidProblem: If the windows are not intervals in order.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 5, "Poisson Process likelihoods".

    Example:
        >>> events = PoissonProcess((0.0, 5.0))
        >>> one = torch.ones(1, 2, 1)
        >>> events.log_prob(torch.zeros(1, 2, 1), one, one == 1, torch.tensor([[5.0]]))
        tensor([-5.])
    """

    def __init__(self, windows: Sequence[float] | Sequence[Sequence[float]] | Tensor) -> None:
        """Keep the windows."""
        super().__init__()
        edges = torch.as_tensor(windows, dtype=torch.float64)
        edges = edges.unsqueeze(0) if edges.dim() == 1 else edges
        if edges.dim() != 2 or edges.shape[1:] != (2,) or len(edges) == 0:
            raise InvalidProblem(
                f"`windows` must be (start, end) or several such pairs, got {windows!r}. "
                "Write windows=(0.0, 5.0)."
            )
        flat = edges.flatten()
        inside = bool((edges.diff(dim=1) > 0).all()) and bool((flat.diff() >= 0).all())
        if not bool(torch.isfinite(flat).all()) or not inside:
            raise InvalidProblem(
                f"`windows` must be finite intervals in order, got {edges.tolist()}. "
                "Sort them and join those that overlap."
            )
        self._windows = edges  # a setting: no cast of the module may round it

    @property
    def windows(self) -> Tensor:
        """Intervals in which events were watched for, [W, 2]."""
        return self._windows

    def rate(self, decoded: Tensor) -> Tensor:
        """Events per unit of time, [..., K]."""
        return decoded.exp()

    def log_prob(
        self, decoded: Tensor, x: Tensor, mask: Tensor, integral: Tensor | None = None
    ) -> Tensor:
        """Log-density of the events in nats, [..., B].

        Raises:
            InvalidProblem: If a count is negative, there is no integral, or the widths differ.
        """
        check_width(decoded, x)
        if integral is None:
            raise InvalidProblem(
                "`integral` of the rate is needed, got None. Call elbo or LatentODE.path, which "
                "integrate it along the path."
            )
        counts = torch.where(mask, x, 0.0)  # NaN under the mask would reach the rates' gradients
        if bool((counts < 0).any()):
            raise InvalidProblem(
                f"`x` of a Poisson process must count events, got {counts.min().item():g}. "
                "Put 1 at each event's time."
            )
        return torch.where(mask, counts * decoded, 0.0).sum(dim=(-2, -1)) - integral.sum(dim=-1)

    def mean(self, decoded: Tensor) -> Tensor:
        """The rate: expected events per unit of time."""
        return decoded.exp()

    def sample(self, decoded: Tensor) -> Tensor:
        """Refused: a process has no value at a time; see `mean` for the rate.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(
            f"a Poisson process has no values to draw at {decoded.shape[-2]} given times. Use "
            "`mean`, the rate, and thin a homogeneous process by it."
        )


def homogeneous_log_prob(n_events: float | Tensor, duration: float, rate: float) -> Tensor:
    """Log-density of events under a constant rate, the fit to beat:  n log(rate) - rate * duration.

    Args:
        n_events: Number of events, a number or any shape.
        duration: Length of what was watched.
        rate: Events per unit of time, for example those of the training data.

    Returns:
        Nats, in the shape of `n_events`; minus infinity for events at rate 0.

    Raises:
        InvalidProblem: If the duration or the rate is negative or not finite.

    Example:
        >>> homogeneous_log_prob(20, 5.0, 4.0)
        tensor(7.7259, dtype=torch.float64)
    """
    if not (0 <= duration < math.inf and 0 <= rate < math.inf):
        raise InvalidProblem(
            f"`duration` and `rate` must be finite and not negative, got {duration!r} and "
            f"{rate!r}. Give the time watched, and events in a unit of it."
        )
    n = torch.as_tensor(n_events, dtype=torch.float64)
    return torch.xlogy(n, torch.tensor(rate, dtype=torch.float64)) - rate * duration
