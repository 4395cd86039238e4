"""`LatentSDE`: a latent state that obeys a stochastic equation, and its variational posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ctflow.api import as_solver
from ctflow.api_sde import solve_sde
from ctflow.backends.protocol import Solver
from ctflow.errors import InvalidProblem
from ctflow.latent.checks import check_count, check_parts, check_sizes, check_tensors
from ctflow.latent.context import Context, ContextEncoder
from ctflow.latent.elbo import ELBO
from ctflow.latent.grid import Grid
from ctflow.latent.likelihoods import Likelihood
from ctflow.latent.observations import Observations
from ctflow.latent.prior import standard_normal
from ctflow.sde import SDEProblem
from ctflow.solution import raise_if_failed
from ctflow.state import widest

__all__ = ["LatentSDE", "StochasticPath"]


class StochasticPath(NamedTuple):
    """One posterior path for each series.

    Attributes:
        z: Latent states at the wanted times, [B, T, L].
        kl: KL divergence of its law from the prior's up to the last time, after z(t0), [B].
    """

    z: Tensor
    kl: Tensor


class LatentSDE(nn.Module):
    """A generative model of time series whose latent state obeys an SDE with diagonal noise.

        prior      dz = h(t, z) dt + g(t, z) dW,       z(t0) ~ N(0, I)
        posterior  dz = f(t, z, context) dt + g(t, z) dW

    Both share the diffusion g, so that the KL divergence of their paths is finite: the mean of
    the integral of |u|^2 / 2 with u = (f - h) / g, which is integrated along with the path.

    Args:
        encoder: Gives q(z(t0) | data) and the context; see `ContextEncoder`.
        drift: Posterior drift, a module of [B, L + C + 2] -> [B, L] that reads z, the context, the
            time left until the next observation, and the time, side by side.
        prior_drift: Prior drift h(t, z), [..., L] -> [..., L].
        diffusion: g(t, z), [..., L] -> [..., L], each entry of its own variable alone, and away
            from zero.
        decoder: Latent states to what the likelihood takes.
        likelihood: Distribution of the data given the decoder's output.
        latent: Variables of the latent state, L.
        t0: Time of the latent state; nothing may be seen before it.
        solver: A `Solver` with an SDE backend; None for `euler` with 100 steps a unit of time.

    Raises:
        InvalidProblem: If a part cannot be called, `latent` is no positive integer, `t0` is not
            finite, or the likelihood integrates a rate, which is not offered here.

    Cost:
        `elbo` is one solve of L + 1 variables on the union of all times.

    Source:
        Li, Wong, Chen, Duvenaud 2020 (arXiv 2001.01328), section 5, eqs. 8 to 10.
    """

    def __init__(
        self,
        encoder: ContextEncoder,
        drift: Callable[[Tensor], Tensor],
        prior_drift: Callable[[Tensor, Tensor], Tensor],
        diffusion: Callable[[Tensor, Tensor], Tensor],
        decoder: Callable[[Tensor], Tensor],
        likelihood: Likelihood,
        *,
        latent: int,
        t0: float = 0.0,
        solver: Solver | str | None = None,
    ) -> None:
        """Check the settings; nothing is solved yet."""
        super().__init__()
        check_parts(
            encoder=encoder, drift=drift, prior_drift=prior_drift, diffusion=diffusion,
            decoder=decoder,
        )  # fmt: skip
        check_sizes(latent, t0)
        if likelihood.windows is not None:
            raise InvalidProblem(
                "`likelihood` of a latent SDE must not integrate a rate, got one with windows "
                f"{likelihood.windows.tolist()}. Use a LatentODE."
            )
        self.encoder, self.drift, self.prior_drift = encoder, drift, prior_drift
        self.diffusion, self.decoder, self.likelihood = diffusion, decoder, likelihood
        self.latent, self.t0 = latent, float(t0)
        self.solver = as_solver(solver or Solver("torchsde", "euler", step=0.01))

    @property
    def prior(self) -> Normal:
        """N(0, I) of the latent state at t0, [L], in the dtype of the model."""
        return standard_normal(self, self.latent)

    def path(
        self, z0: Tensor, context: Context, t: Tensor, *, seed: int | None = None
    ) -> StochasticPath:
        """A posterior path for each series, and what it costs in KL divergence.

        Args:
            z0: States at t0, [B, L].
            context: What the encoder says of the data.
            t: Times at or after t0, [T] or [B, T], in any order.
            seed: Of the Brownian motion; None draws one from torch's global generator.

        Raises:
            SolveFailed: If the solve did not reach the last time.
        """
        start = torch.cat([z0, torch.zeros_like(z0[:, :1])], dim=1)
        states = self._solved(self._posterior, self._noise, start, context, t, seed)
        return StochasticPath(states.read[..., : self.latent], states.last[:, self.latent])

    def elbo(
        self, x: Tensor, t: Tensor, mask: Tensor | None = None, *, seed: int | None = None
    ) -> ELBO:
        """Evidence lower bound of each series, from one posterior path of each.

        Args:
            x: Values, [B, T, D].
            t: Times, [T] or [B, T], at or after t0.
            mask: True where a value was seen; None: everywhere.
            seed: Of the Brownian motion; None draws one from torch's global generator.

        Returns:
            The likelihood's logarithm, and the KL divergence of z(t0) plus that of the path.
        """
        data = Observations(x, t, mask)
        q, context = self.encoder(data, self.t0)
        times = data.t if data.t.dim() == 1 else torch.where(data.rows, data.t, self.t0)
        path = self.path(q.rsample(), context, times, seed=seed)
        fit = self.likelihood.log_prob(self.decoder(path.z), data.x, data.seen)
        return ELBO(fit, kl_divergence(q, self.prior).sum(dim=-1) + path.kl)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        *,
        at: Tensor,
        n_samples: int = 1,
        seed: int | None = None,
    ) -> Tensor:
        """Expected data along posterior paths, which go on under the prior after the last datum.

        Args:
            x: Values seen, [B, T, D].
            t: Their times, [T] or [B, T].
            mask: True where a value was seen; None: everywhere.
            at: Times at or after t0, [T'] or [B, T'].
            n_samples: Paths of each series.
            seed: Of the Brownian motion.

        Returns:
            [n_samples, B, T', D]; its quantiles over dimension 0 are bands of uncertainty.

        Raises:
            InvalidProblem: If the data or times make no sense, or `n_samples` is not positive.
            SolveFailed: If the solve did not reach the last time.
        """
        check_count(n_samples)
        check_tensors(at=at)
        q, context = self.encoder(Observations(x, t, mask), self.t0)
        z0 = q.sample((n_samples,)).flatten(0, 1)
        many = Context(context.t.repeat(n_samples, 1), context.values.repeat(n_samples, 1, 1))
        times = at if at.dim() == 1 else at.repeat(n_samples, 1)
        z = self.path(z0, many, times, seed=seed).z
        mean = self.likelihood.mean(self.decoder(z))
        return mean.reshape(n_samples, len(x), *mean.shape[1:])

    def sample(self, n: int, t: Tensor, *, seed: int | None = None) -> Tensor:
        """Series drawn from the prior, with the data's noise, [n, T, D].

        Args:
            n: How many.
            t: Times at or after t0, [T].
            seed: Of the Brownian motion.
        """
        z0 = self.prior.sample((n,))
        z = self._solved(self.prior_drift, self.diffusion, z0, None, t, seed).read
        return self.likelihood.sample(self.decoder(z))

    def _posterior(self, t: Tensor, state: Tensor, context: Context) -> Tensor:
        """Drift of z, and the rate of the KL divergence, [B, L + 1]."""
        z, ahead = state[:, : self.latent], context.at(t)
        time = t.expand(len(z), 1).to(z.dtype)
        prior, left = self.prior_drift(t, z), context.left(t).to(z.dtype)
        drift = self.drift(torch.cat([z, ahead, left, time], dim=1))
        drift = torch.where(context.ahead(t), drift, prior)
        u = (drift - prior) / self.diffusion(t, z)
        return torch.cat([drift, 0.5 * u.square().sum(dim=1, keepdim=True)], dim=1)

    def _noise(self, t: Tensor, state: Tensor, context: Context) -> Tensor:  # noqa: ARG002
        g = self.diffusion(t, state[:, : self.latent])
        return torch.cat([g, torch.zeros_like(g[:, :1])], dim=1)

    def _solved(
        self,
        f: Callable[..., Tensor],
        g: Callable[..., Tensor],
        start: Tensor,
        context: Context | None,
        t: Tensor,
        seed: int | None,
    ) -> _States:
        check_tensors(t=t)
        grid = Grid.shared(self.t0, t.to(widest(t.device)))
        problem = SDEProblem(f, g, start, grid.t, args=context, seed=seed)
        y = raise_if_failed(solve_sde(problem, self.solver)).y
        read = grid.read(y)
        return _States(read, y[-1])


class _States(NamedTuple):
    """States at the wanted times [B, T, ...], and at the last time of any series [B, ...]."""

    read: Tensor
    last: Tensor
