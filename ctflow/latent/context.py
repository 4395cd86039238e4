"""What a latent SDE's posterior drift may know of the data ahead, at any time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow.latent.encoders import NormalHead, check_features, reversed_steps
from ctflow.latent.observations import Observations

__all__ = ["Context", "ContextEncoder"]


class Context(NamedTuple):
    """A summary of what lies ahead, constant between observations.

    Attributes:
        t: Times of the observations, [B, n], growing; those behind the last of a series are
            infinite. No gradient reaches them.
        values: Row i holds what the observations from i on say, [B, n + 1, C]; the last row zeros.
    """

    t: Tensor
    values: Tensor

    def at(self, t: Tensor) -> Tensor:
        """The summary of the observations after t (0-dim), [B, C]."""
        place = (self._rounded(t) <= t).sum(dim=1)
        return self.values[torch.arange(len(place), device=place.device), place]

    def left(self, t: Tensor) -> Tensor:
        """The time from t (0-dim) to the next observation, [B, 1]; zero after the last."""
        times = self._rounded(t)
        gap = torch.where(times > t, times - t, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(torch.isinf(gap), 0.0, gap)

    def ahead(self, t: Tensor) -> Tensor:
        """Whether a series has observations after t (0-dim), bool [B, 1]."""
        return self.left(t) > 0

    def _rounded(self, t: Tensor) -> Tensor:
        """Times as they are in the dtype of t, so that an observation's own time is not before it.

        A solver hands a drift its time in the dtype of the state: in float32 0.7 comes before 0.7.
        """
        return self.t.to(t.dtype)


class ContextEncoder(nn.Module):
    """A GRU over the observations, last to first, whose states are the context.

    Args:
        features: Features of the data, D.
        latent: Variables of the latent state, L.
        hidden: Width of the recurrence.
        context: Features of the context, C.

    Raises:
        InvalidProblem: When called, if a series has no observation or the data another D.

    Source:
        Li et al. 2020 (arXiv 2001.01328), section 5 and appendix 9.

    Example:
        >>> encoder = ContextEncoder(2, 4, context=8)
        >>> data = Observations(torch.zeros(7, 30, 2), torch.linspace(0, 1, 30))
        >>> q, context = encoder(data, 0.0)
        >>> q.mean.shape, context.at(torch.tensor(0.5)).shape
        (torch.Size([7, 4]), torch.Size([7, 8]))
    """

    def __init__(self, features: int, latent: int, hidden: int = 32, context: int = 16) -> None:
        """Make the recurrence and its two read-outs."""
        super().__init__()
        self.features, self.context = features, context
        self.recurrence = nn.GRU(2 * features + 1, hidden, batch_first=True)
        self.summary = nn.Linear(hidden, context)
        self.head = NormalHead(hidden, latent, scale=0.3)

    def forward(self, data: Observations, t0: float) -> tuple[Normal, Context]:
        """q(z(t0) | data), [B, L], and the context."""
        check_features(data, self.features, self.head.linear.weight)
        data.require_some()
        steps, gaps = reversed_steps(data, t0)
        states, _ = self.recurrence(torch.cat([steps, gaps], dim=-1))
        packed, n = data.packed(), states.shape[1]
        counts = packed.counts.unsqueeze(1)
        # State k has read the last k + 1 observations: those from count - 1 - k on.
        place = (counts - 1 - torch.arange(n, device=states.device)).clamp(min=0)
        ordered = states.gather(1, place.unsqueeze(-1).expand(-1, -1, states.shape[2]))
        filled = torch.arange(n, device=states.device) < counts
        values = torch.where(filled.unsqueeze(-1), self.summary(ordered), 0.0)
        times = torch.where(filled, packed.times, torch.inf)
        q = self.head(states.gather(1, (counts - 1).unsqueeze(-1).expand(-1, 1, states.shape[2])))
        zero = torch.zeros_like(values[:, :1])
        first = Normal(q.mean.squeeze(1), q.stddev.squeeze(1))
        return first, Context(times, torch.cat([values, zero], dim=1))
