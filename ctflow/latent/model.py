"""`LatentODE`: a latent state that obeys an ODE, and what is seen of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow.api import as_solver, solve
from ctflow.backends.protocol import Solver
from ctflow.errors import InvalidProblem, Unsupported
from ctflow.latent.checks import check_parts, check_sizes, check_tensors
from ctflow.latent.encoders import Encoder
from ctflow.latent.grid import Grid
from ctflow.latent.likelihoods import Likelihood
from ctflow.latent.observations import Observations
from ctflow.latent.prior import standard_normal
from ctflow.problem import ODEProblem
from ctflow.solution import Solution, Stats, raise_if_failed
from ctflow.state import widest

__all__ = ["LatentODE", "Path"]


class Path(NamedTuple):
    """One latent path for each series, read off one solve.

    Attributes:
        z: Latent states at the wanted times, [..., B, T, L].
        integral: Integral of the likelihood's rate over its windows, [..., B, K]; None without.
    """

    z: Tensor
    integral: Tensor | None


class LatentODE(nn.Module):
    """A generative model of time series whose latent state obeys an ODE.

        z(t0) ~ N(0, I),    dz/dt = f(t, z),    x(t_i) ~ likelihood(decoder(z(t_i))).

    Its four parts are modules of yours: anything with the same call will do. `ctflow.latent.elbo`
    is what training maximises.

    Times of each series: where the backend can step each sample by itself, every series is solved
    on its own times alone; else, or with `Solver(coupling="shared")`, all are solved together on
    the union of their times, and each reads off its own.

    Args:
        encoder: Recognition network, q(z(t0) | data); see `Encoder`.
        field: Dynamics `f(t, z)` of the latent state, [..., L] -> [..., L].
        decoder: Latent states [..., L] to what the likelihood takes, [..., D].
        likelihood: Distribution of the data given the decoder's output.
        latent: Variables of the latent state, L.
        t0: Time of the latent state; nothing may be seen before it.
        solver: A `Solver`, the name of a backend, or None for the defaults.

    Attributes:
        stats: `Stats` of the last solve, None before one.

    Raises:
        InvalidProblem: If a part cannot be called, `latent` is no positive integer, `t0` is not
            finite, or a window of the likelihood starts before t0.

    Source:
        Chen et al. 2018 (arXiv 1806.07366v5), section 5, eqs. 11 to 13.

    Example:
        >>> from ctflow.dynamics import MLP
        >>> from ctflow.latent import Gaussian, RNNEncoder
        >>> decoder = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 2))
        >>> model = LatentODE(RNNEncoder(2, 4), MLP(4, (20,)), decoder, Gaussian(0.1), latent=4)
        >>> model.predict(torch.zeros(5, 30, 2), torch.rand(5, 30).sort().values,
        ...               at=torch.linspace(0, 2, 50)).shape
        torch.Size([5, 50, 2])
    """

    stats: Stats | None

    def __init__(  # four parts, and three settings
        self,
        encoder: Encoder,
        field: Callable[..., Any],
        decoder: Callable[[Tensor], Tensor],
        likelihood: Likelihood,
        *,
        latent: int,
        t0: float = 0.0,
        solver: Solver | str | None = None,
    ) -> None:
        """Check the settings; nothing is solved yet."""
        super().__init__()
        check_parts(encoder=encoder, field=field, decoder=decoder)
        check_parts(**{"likelihood.log_prob": getattr(likelihood, "log_prob", None)})
        check_sizes(latent, t0)
        self.encoder, self.field, self.decoder = encoder, field, decoder
        self.likelihood = likelihood
        self.latent, self.t0 = latent, float(t0)
        self.solver = as_solver(solver)
        self.stats = None
        windows = likelihood.windows
        if windows is not None and float(windows.min()) < self.t0:
            raise InvalidProblem(
                f"`t0` must not lie after the start of the likelihood's windows "
                f"{windows.tolist()}, got {self.t0:g}. Let the latent state hold where they start."
            )

    @property
    def prior(self) -> Normal:
        """N(0, I) of the latent state at t0, [L], in the dtype of the model."""
        return standard_normal(self, self.latent)

    def posterior(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Normal:
        """q(z(t0) | data), of [B, L].

        Args:
            x: Values, [B, T, D].
            t: Times, [T] or [B, T].
            mask: True where a value was seen, [B, T] or [B, T, D]; None: everywhere.

        Raises:
            InvalidProblem: If the observations make no sense (see `Observations`) or lie before
                t0, or the encoder gives something else.
        """
        return self.encoded(Observations(x, t, mask))

    def encoded(self, data: Observations) -> Normal:
        """The same of observations that were checked before.

        Raises:
            InvalidProblem: If something was seen before t0, or the encoder gives something else.
        """
        data.require_from(self.t0)
        q = self.encoder(data, self.t0)
        mean: object = getattr(q, "mean", None)
        wanted = (len(data.x), self.latent)
        if not isinstance(mean, Tensor) or mean.shape != wanted:
            got = list(mean.shape) if isinstance(mean, Tensor) else type(q).__name__
            raise InvalidProblem(
                f"the encoder must give a Normal of {list(wanted)}, got {got}. Build it for "
                f"{self.latent} latent variables, and give a row for each series."
            )
        return q

    def trajectory(self, z0: Tensor, t: Tensor) -> Tensor:
        """Latent states at any times on one side of t0.

        Args:
            z0: States at t0, [..., B, L].
            t: Times, [T], or [B, T] for times of each series; in any order.

        Returns:
            [..., B, T, L].

        Raises:
            InvalidProblem: If there are times on both sides of t0.
            SolveFailed: If a path did not reach its last time.
        """
        return self.path(z0, t).z

    def path(self, z0: Tensor, t: Tensor) -> Path:
        """Latent states, and the integral of the likelihood's rate, from one solve.

        Args:
            z0: States at t0, [..., B, L].
            t: Times, [T] or [B, T].

        Raises:
            InvalidProblem: If there are times on both sides of t0.
            SolveFailed: If a path did not reach its last time.
        """
        check_tensors(z0=z0, t=t)
        flat, times = self._flat(z0, t.detach())
        solution, grid = self._solved(flat, times)
        n = t.shape[-1]
        z = grid.read(solution.y)
        shape = z0.shape[:-1]
        path = self._timed(z[:, :n].reshape(*shape, n, self.latent), t)
        if solution.cost is None:
            return Path(path, None)
        edges = grid.read(solution.cost)[:, n:]  # start and end of each window in turn
        integral = (edges[:, 1::2] - edges[:, 0::2]).sum(dim=1)
        return Path(path, integral.reshape(*shape, -1))

    def predict(self, x: Tensor, t: Tensor, mask: Tensor | None = None, *, at: Tensor) -> Tensor:
        """Expected data at any times, from the posterior's mean.

        Args:
            x: Values seen, [B, T, D].
            t: Their times, [T] or [B, T].
            mask: True where a value was seen; None: everywhere.
            at: Times on one side of t0, between, at or beyond those of the data: [T'] or [B, T'].

        Returns:
            [B, T', D].
        """
        z = self.trajectory(self.posterior(x, t, mask).mean, at)
        return self.likelihood.mean(self.decoder(z))

    def sample(self, n: int, t: Tensor) -> Tensor:
        """Series drawn from the model: from the prior, along the ODE, with the data's noise.

        Args:
            n: How many.
            t: Times, [T].

        Returns:
            [n, T, D].
        """
        z = self.trajectory(self.prior.sample((n,)), t)
        return self.likelihood.sample(self.decoder(z))

    def _flat(self, z0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """States [N, L], and their times [T'] or [N, T'] followed by the windows' edges."""
        if z0.dim() < 2 or z0.shape[-1] != self.latent:
            raise InvalidProblem(
                f"`z0` must be [..., B, {self.latent}], got shape {list(z0.shape)}. "
                "Draw it from model.prior or model.posterior."
            )
        if t.dim() not in (1, 2) or (t.dim() == 2 and t.shape[0] != z0.shape[-2]):
            raise InvalidProblem(
                f"`t` must be [T] or [B, T], got shape {list(t.shape)} for `z0` of shape "
                f"{list(z0.shape)}. Give one row for each series."
            )
        flat = z0.reshape(-1, self.latent)
        t = t.to(z0.device, widest(z0.device))
        windows = self.likelihood.windows
        if windows is not None:
            edges = windows.to(t).flatten()
            t = torch.cat([t, edges.expand(*t.shape[:-1], -1)], dim=-1)
        if t.dim() == 2:
            t = t.repeat(len(flat) // len(t), 1)
        return flat, t

    def _solved(self, z0: Tensor, t: Tensor) -> tuple[Solution, Grid]:
        """One solve from t0 that reaches every wanted time; see the class for how it is chosen."""
        if t.dim() == 2 and self.solver.coupling != "shared":
            grid = Grid.of_each(self.t0, t)
            try:
                return self._solve(z0, grid), grid
            except Unsupported:
                if self.solver.coupling == "per_sample":
                    raise
        grid = Grid.shared(self.t0, t)
        return self._solve(z0, grid), grid

    def _solve(self, z0: Tensor, grid: Grid) -> Solution:
        cost = None
        if self.likelihood.windows is not None:
            cost = _Rate(self.decoder, self.likelihood)
        problem = ODEProblem(self.field, z0, grid.t, batched=True, running_cost=cost)
        solution = raise_if_failed(solve(problem, self.solver))
        self.stats = solution.stats
        return solution

    def _timed(self, z: Tensor, t: Tensor) -> Tensor:
        """States [..., B, T, L] with their derivative by their own times, which is the field.

        That by the grid's would be another: series share its nodes, and the first of them is t0.
        """
        if not t.requires_grad:
            return z
        now = t.detach().to(z).expand(z.shape[:-1]).reshape(-1, 1)
        slope = self.field(now, z.detach().reshape(-1, self.latent)).reshape(z.shape)
        return z + slope * (t - t.detach()).to(z).unsqueeze(-1)


class _Rate:
    """The likelihood's rate along the path, [N, K].

    A method of the model would hand backends all of it, and what changes in it with every solve.
    """

    def __init__(self, decoder: Callable[[Tensor], Tensor], likelihood: Likelihood) -> None:
        self.decoder, self.likelihood = decoder, likelihood

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002 - of the state alone
        return self.likelihood.rate(self.decoder(z))
