"""Small models and data that the tests of latent models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow import Solver
from ctflow.dynamics import MLP
from ctflow.latent import (
    Gaussian,
    LatentODE,
    Likelihood,
    Observations,
    ODERNNEncoder,
    RNNEncoder,
)

__all__ = ["DTYPE", "ENCODERS", "irregular", "small_model", "without_noise"]

DTYPE = torch.float64
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: RNNEncoder(2, 3, 5, gaps=False),
    "rnn with gaps": lambda: RNNEncoder(2, 3, 5),
    "gru": lambda: RNNEncoder(2, 3, 5, cell="gru"),
    "ode-rnn": lambda: ODERNNEncoder(2, 3, 5),
}


def small_model(
    encoder: str = "rnn with gaps",
    likelihood: Likelihood | None = None,
    *,
    features: int = 2,
    solver: Solver | str | None = None,
    t0: float = 0.0,
) -> LatentODE:
    """A latent ODE of 3 variables in float64, the same at every call."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, features))
    made = RNNEncoder(features, 3, 5) if features != 2 else ENCODERS[encoder]()
    model = LatentODE(
        made, MLP(3, (6,)), decoder, likelihood or Gaussian(0.3), latent=3, t0=t0, solver=solver
    )
    return model.to(DTYPE)


def irregular(batch: int = 4, n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, times of each series, and a mask that leaves each an observation."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, 2, generator=generator, dtype=DTYPE)
    t = torch.rand(batch, n, generator=generator, dtype=DTYPE).sort(dim=1).values + 0.1
    mask = torch.rand(batch, n, 2, generator=generator) > 0.4
    mask[:, 0] = True
    return x, t, mask


class _Certain(Normal):
    """Draws one standard deviation above its mean, whatever the generator's state."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (self.mean + self.stddev).expand(*sample_shape, *self.mean.shape)


class _Fixed(nn.Module):
    """An encoder whose draws do not depend on what lies beside them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, data: Observations, t0: float) -> Normal:
        q = self.inner(data, t0)
        return _Certain(q.mean, q.stddev)


def without_noise(model: LatentODE) -> LatentODE:
    """The model, with the same draw for a series alone and beside others."""
    model.encoder = _Fixed(model.encoder)  # pyright: ignore[reportArgumentType]
    return model
