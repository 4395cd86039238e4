"""From observations to a normal distribution of the latent state: recognition networks."""

from __future__ import annotations

import math
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow.errors import InvalidProblem
from ctflow.latent.observations import Observations, picked
from ctflow.latent.recurrence import states_of

__all__ = [
    "Cell",
    "Encoder",
    "NormalHead",
    "RNNEncoder",
    "check_features",
    "keep_memory",
    "reversed_steps",
]

Cell: TypeAlias = Literal["rnn", "gru"]
"""A plain tanh recurrence, or a gated one."""


class Encoder(Protocol):
    """What a latent model asks of its recognition network; any module of this call will do."""

    def __call__(self, data: Observations, t0: float) -> Normal:
        """q(z(t0) | data).

        Args:
            data: What was seen.
            t0: Time of the latent state, before everything seen.

        Returns:
            A normal distribution of [B, L].
        """
        ...


class NormalHead(nn.Module):
    """A linear layer that gives mean and standard deviation of a normal distribution.

    It starts near z = W h with a small standard deviation: one near 1 would drown the path in
    noise for the first hundreds of steps, in which a latent ODE learns to ignore its encoder.

    Args:
        width: Features that come in.
        latent: Variables of the distribution, L.
        scale: Standard deviation at the start, before training.
    """

    def __init__(self, width: int, latent: int, scale: float = 0.05) -> None:
        """Draw the weights as torch does, and shift the biases of the standard deviation."""
        super().__init__()
        self.linear = nn.Linear(width, 2 * latent)
        with torch.no_grad():
            self.linear.bias[latent:] += math.log(scale)

    def forward(self, features: Tensor) -> Normal:
        """Features [..., W] to a distribution of [..., L]."""
        mean, log_scale = self.linear(features).chunk(2, dim=-1)
        # Beyond these no data can push a standard deviation that starts at 0.05; they keep an
        # overflow of exp out of the first, wild steps of training.
        return Normal(mean, log_scale.clamp(-12.0, 4.0).exp())


class RNNEncoder(nn.Module):
    """A recurrent network over the observations, last to first, as in the paper.

    Each step reads the values (zeros where missing), which of them were seen, and, with
    `gaps=True`, the time to the observation before (for the first: to the latent state's time t0).
    Without gaps the network knows the order of the observations and not their times.

    Args:
        features: Features of the data, D.
        latent: Variables of the latent state, L.
        hidden: Width of the recurrence.
        cell: "rnn", tanh as in the paper, or "gru".
        gaps: Whether it reads the times.

    Raises:
        InvalidProblem: When called, if a series has no observation or the data another D.

    Cost:
        One pass over the largest number of observations of any series.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 5, eq. 53; gaps as in its RNN baseline.

    Example:
        >>> encoder = RNNEncoder(2, 4)
        >>> data = Observations(torch.zeros(7, 30, 2), torch.linspace(0, 1, 30))
        >>> encoder(data, 0.0).mean.shape
        torch.Size([7, 4])
    """

    def __init__(
        self,
        features: int,
        latent: int,
        hidden: int = 25,
        *,
        cell: Cell = "rnn",
        gaps: bool = True,
    ) -> None:
        """Make the recurrence and what reads the distribution off its last state."""
        super().__init__()
        self.features, self.gaps = features, gaps
        width = 2 * features + int(gaps)
        make = nn.GRU if _checked_cell(cell) == "gru" else nn.RNN
        self.recurrence = make(width, hidden, batch_first=True)
        keep_memory(self.recurrence)
        self.head = NormalHead(hidden, latent)

    def forward(self, data: Observations, t0: float) -> Normal:
        """q(z(t0) | data), [B, L]."""
        check_features(data, self.features, self.head.linear.weight)
        data.require_some()
        steps, gaps = reversed_steps(data, t0)
        inputs = torch.cat([steps, gaps], dim=-1) if self.gaps else steps
        states = states_of(self.recurrence, inputs)
        last = (data.counts - 1).reshape(-1, 1, 1).expand(-1, 1, states.shape[2])
        return self.head(states.gather(1, last).squeeze(1))


@torch.no_grad()
def keep_memory(recurrence: nn.RNNBase) -> None:
    """Start the recurrence of each gate as a rotation.

    Torch's own start shrinks what was read to about 0.6 of it at every step, so that a state after
    thirty observations knows nothing of the first that it read, and some seeds never learn to.
    """
    for name, weight in recurrence.named_parameters():
        if name.startswith("weight_hh"):
            for gate in weight.split(recurrence.hidden_size):
                nn.init.orthogonal_(gate)


def reversed_steps(data: Observations, t0: float) -> tuple[Tensor, Tensor]:
    """Observations last to first, at the front of each row, zeros behind.

    Args:
        data: What was seen.
        t0: Time before everything seen.

    Returns:
        Values beside flags of what was seen, [B, n, 2 D]; and the time from each observation back
        to the one before, or to t0, [B, n, 1]; both in the dtype of the data.

    Raises:
        InvalidProblem: If something was seen before t0.
    """
    data.require_from(t0)
    n = data.order.shape[1]
    place = (data.counts.unsqueeze(1) - 1 - torch.arange(n, device=data.x.device)).clamp(min=0)
    order = data.order.gather(1, place)
    times = data.times.gather(1, order)
    start = torch.full_like(times[:, :1], t0)
    before = torch.where(place > 0, torch.cat([times[:, 1:], start], dim=1), t0)
    gaps = (times - before).unsqueeze(-1).to(data.x.dtype)
    both = torch.cat([data.x, data.seen.to(data.x.dtype)], dim=-1)
    steps = picked(both, order)
    if data.even:
        return steps, gaps
    filled = data.filled.unsqueeze(-1)
    return torch.where(filled, steps, 0.0), torch.where(filled, gaps, 0.0)


def check_features(data: Observations, features: int, weight: Tensor) -> None:
    """Refuse data of another width or dtype than a network was made for.

    Args:
        data: What was seen.
        features: Width of the network's input, D.
        weight: One of its parameters.

    Raises:
        InvalidProblem: Naming both.
    """
    if data.x.dtype != weight.dtype:
        raise InvalidProblem(
            f"`x` must have the network's dtype {weight.dtype}, got {data.x.dtype}. Write "
            f"x.to({weight.dtype}), or convert the model."
        )
    if data.x.shape[2] != features:
        raise InvalidProblem(
            f"`x` must have {features} features, got shape {list(data.x.shape)}. Build the network "
            "with the width of the data."
        )


def _checked_cell(cell: str) -> str:
    if cell not in ("rnn", "gru"):
        raise InvalidProblem(
            f"`cell` must be 'rnn' or 'gru', got {cell!r}. 'rnn' is the paper's tanh recurrence."
        )
    return cell
