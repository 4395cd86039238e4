"""A latent SDE: the path's KL divergence, the bound, and forecasts that follow the prior."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ctflow import InvalidProblem, Solver
from ctflow.latent import ContextEncoder, Gaussian, LatentSDE, Observations, PoissonProcess

THETA, SIGMA, NOISE = 1.0, math.sqrt(2.0), 0.5  # stationary variance 1: N(0, 1) at every time
STEP = Solver("torchsde", "euler", step=0.02)


def pull(t: Tensor, z: Tensor) -> Tensor:
    """Prior drift of an Ornstein-Uhlenbeck process."""
    return -THETA * z


def noise(t: Tensor, z: Tensor) -> Tensor:
    """Its diffusion."""
    return torch.full_like(z, SIGMA)


class Shifted(nn.Module):
    """The prior drift plus a constant times the diffusion."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, inputs: Tensor) -> Tensor:
        return -THETA * inputs[:, :1] + self.shift * SIGMA


def process(drift: nn.Module, solver: Solver = STEP) -> LatentSDE:
    """An Ornstein-Uhlenbeck process seen with noise, whose prior is the truth."""
    torch.manual_seed(0)
    encoder = ContextEncoder(1, 1, hidden=16, context=4)
    return LatentSDE(
        encoder, drift, pull, noise, nn.Identity(), Gaussian(NOISE), latent=1, solver=solver
    )


X = torch.tensor([[0.9, 0.4, -0.3, -0.2], [0.1, 0.5, 0.6, 1.2]]).unsqueeze(-1)
T = torch.tensor([0.1, 0.4, 0.7, 1.0])


def evidence() -> Tensor:
    """log p(x) of both series: a Gaussian process with covariance exp(-theta |s - t|)."""
    covariance = torch.exp(-THETA * (T[:, None] - T).abs()) + NOISE**2 * torch.eye(4)
    return MultivariateNormal(torch.zeros(4), covariance).log_prob(X[..., 0])


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_divergence_of_a_shifted_drift_is_known(shift: float) -> None:
    """Half the squared shift for each unit of time, up to the last observation and no further."""
    model = process(Shifted(shift))
    _, context = model.encoder(Observations(X, T), 0.0)
    at = torch.tensor([0.5, 1.0, 2.0])
    kl = model.path(torch.zeros(2, 1), context, at, seed=0).kl
    torch.testing.assert_close(kl, torch.full((2,), 0.5 * shift**2), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_divergence_of_each_series_ends_at_its_own_last_observation(
    dtype: torch.dtype,
) -> None:
    """Beside longer ones, and where a time rounds down in the dtype of the state."""
    last, shift = torch.tensor([0.4, 0.7, 0.9, 1.0], dtype=torch.float64), 0.7
    t = torch.linspace(0.25, 1.0, 4, dtype=torch.float64) * last.unsqueeze(1)
    mask = torch.tensor([[False] * 3 + [True], [True] * 4, [False, True, False, True], [True] * 4])
    model = process(Shifted(shift)).to(dtype)
    _, context = model.encoder(Observations(torch.zeros(4, 4, 1, dtype=dtype), t, mask), 0.0)
    kl = model.path(torch.zeros(4, 1, dtype=dtype), context, torch.tensor([2.0]), seed=0).kl
    torch.testing.assert_close(kl.double(), 0.5 * shift**2 * last, rtol=1e-5, atol=0.0)


class Pulled(nn.Module):
    """The drift of another Ornstein-Uhlenbeck process."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, inputs: Tensor) -> Tensor:
        return -self.rate * inputs[:, :1]


def test_the_divergence_between_two_ornstein_uhlenbeck_processes_is_known() -> None:
    """Value and gradient: Euler's second moments are known step by step, here for 50 of 0.02.

    Within five standard errors of 4000 paths.
    """
    n, step, start = 4000, 0.02, 1.5
    drift = Pulled(2.0)
    model = process(drift).double()
    x = torch.zeros(n, 1, 1, dtype=torch.float64)
    _, context = model.encoder(Observations(x, T[-1:]), 0.0)
    each = model.path(torch.full_like(x[:, 0], start), context, T[-1:], seed=0).kl
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    second, wanted = torch.tensor(start**2, dtype=torch.float64), torch.zeros(())
    for _ in range(50):
        wanted = wanted + step * (THETA - rate) ** 2 / (2 * SIGMA**2) * second
        second = (1 - rate * step) ** 2 * second + SIGMA**2 * step
    error = 5 * each.detach().std().item() / math.sqrt(n)
    assert each.detach().mean().item() == pytest.approx(wanted.item(), abs=error)
    (found,) = torch.autograd.grad(each.mean(), drift.rate)
    (slope,) = torch.autograd.grad(wanted, rate)
    assert found.item() == pytest.approx(slope.item(), abs=5 * error)  # as wide as it is per unit


def test_context_is_that_of_the_observations_ahead() -> None:
    """What lies behind a time has no influence; after the last one it is zero."""
    encoder = ContextEncoder(1, 1)
    changed = X.clone()
    changed[:, 0] += 1.0
    _, context = encoder(Observations(X, T), 0.0)
    _, other = encoder(Observations(changed, T), 0.0)
    now = torch.tensor(0.2)
    assert torch.equal(context.at(now), other.at(now))
    assert not torch.equal(context.at(torch.tensor(0.05)), other.at(torch.tensor(0.05)))
    assert not bool(context.at(torch.tensor(1.0)).any())
    left = [context.left(torch.tensor(t))[0].item() for t in (0.0, 0.2, 0.4, 1.0)]
    assert left == pytest.approx([0.1, 0.2, 0.3, 0.0], abs=1e-6)


def test_padding_and_times_of_their_own_change_no_context() -> None:
    """A series alone, and beside a longer one."""
    encoder = ContextEncoder(1, 1)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    q, context = encoder(Observations(X, T.repeat(2, 1), mask), 0.0)
    alone_q, alone = encoder(Observations(X[:1, :2], T[:2]), 0.0)
    now = torch.tensor(0.2)
    torch.testing.assert_close(q.mean[:1], alone_q.mean)
    torch.testing.assert_close(context.at(now)[:1], alone.at(now))
    assert not bool(context.at(torch.tensor(0.5))[0].any())


def test_a_series_has_its_own_path_and_gradient_beside_a_longer_one() -> None:
    """Padded, with times of its own: as alone, under the same noise."""
    drift = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 1))
    model = process(drift, Solver("torchsde", "euler", step=0.05))
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    own = torch.tensor([0.15, 0.35, torch.nan, torch.nan])
    found: list[list[Tensor]] = []
    for rows, n in ((2, 4), (1, 2)):
        data = Observations(X[:rows, :n], torch.stack([own, T])[:rows, :n], mask[:rows, :n])
        q, context = model.encoder(data, 0.0)
        path = model.path(q.mean, context, torch.tensor([0.15, 0.35, 1.0]), seed=2)
        value = path.z[0].square().sum() + path.kl[0]
        found.append([value, path.kl[0], *torch.autograd.grad(value, list(drift.parameters()))])
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_training_brings_the_bound_to_the_evidence_and_not_above() -> None:
    """Prior and noise are the truth's: only the posterior is learned, from two series.

    The bound is that of the discretised process, whose evidence is within 0.1 nats of the exact.
    """
    torch.manual_seed(0)
    drift = nn.Sequential(nn.Linear(7, 32), nn.Tanh(), nn.Linear(32, 1))
    model = process(drift, Solver("torchsde", "euler", step=0.1))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    x = X.repeat(16, 1, 1)
    for step in range(160):
        for group in optimiser.param_groups:
            group["lr"] = 0.03 * (1 - step / 160)
        optimiser.zero_grad()
        (-model.elbo(x, T).value().mean()).backward()
        optimiser.step()
    with torch.no_grad():
        bound = model.elbo(X.repeat(500, 1, 1), T, seed=1).value().reshape(500, 2)
    gap = evidence() - bound.mean(dim=0)
    error = 3 * bound.std(dim=0) / math.sqrt(500)
    assert bool((gap > -0.1 - error).all())
    assert bool((gap < 1.0 + error).all())


def test_a_forecast_spreads_as_the_prior_does() -> None:
    """Long after the last observation it has the stationary variance, whatever was seen."""
    model = process(Shifted(0.3))
    with torch.no_grad():
        paths = model.predict(X, T, at=torch.tensor([5.0]), n_samples=2000, seed=0)
    assert paths.shape == (2000, 2, 1, 1)
    torch.testing.assert_close(paths.var(dim=0), torch.ones(2, 1, 1), rtol=0.12, atol=0.0)
    torch.testing.assert_close(paths.mean(dim=0), torch.zeros(2, 1, 1), rtol=0.0, atol=0.12)


def test_samples_of_the_prior_are_stationary() -> None:
    """Variance one plus the noise's, at every time."""
    series = process(Shifted(0.0)).sample(4000, torch.tensor([0.0, 0.5, 1.0]), seed=0)
    wanted = torch.full((3, 1), 1 + NOISE**2)
    torch.testing.assert_close(series.var(dim=0), wanted, rtol=0.1, atol=0.0)


def test_every_parameter_gets_a_gradient_and_seeds_repeat() -> None:
    """Encoder, context and drift, also by the stochastic adjoint."""
    for gradient in ("direct", "adjoint"):
        drift = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 1))
        solver = Solver("torchsde", "milstein", step=0.05, gradient=gradient)  # pyright: ignore[reportArgumentType]
        model = process(drift, solver)
        values = []
        for _ in range(2):
            torch.manual_seed(1)
            values.append(model.elbo(X, T, seed=2).value())
        assert torch.equal(values[0], values[1])
        values[0].sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_junk_under_the_mask_changes_no_bound_and_no_gradient(junk: float) -> None:
    """In the values and, where nothing was seen, in the times."""
    drift = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 1))
    model, mask = process(drift, Solver("torchsde", "euler", step=0.1)), torch.ones(2, 4) > 0
    mask[0, 2] = False
    found = []
    for stuff in (0.0, junk):
        torch.manual_seed(1)
        x, t = X.where(mask.unsqueeze(-1), stuff), T.expand(2, 4).where(mask, stuff)
        value = model.elbo(x, t, mask, seed=2).value().sum()
        found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert bool(torch.isfinite(torch.cat([g.flatten() for g in found[1]])).all())


def test_one_observation_is_enough_and_none_is_refused() -> None:
    """Even at t0 itself, where the path has no length."""
    model = process(Shifted(0.0))
    for t in (T[:1], torch.zeros(1)):
        assert bool(torch.isfinite(model.elbo(X[:, :1], t).value()).all())
    mask = torch.tensor([[True] * 4, [False] * 4])
    with pytest.raises(InvalidProblem, match="none for sample 1"):
        model.elbo(X, T, mask)


def test_forecasts_at_times_of_each_series_are_those_at_shared_ones() -> None:
    """In any order, and however many paths are drawn."""
    model = process(Shifted(0.3))
    own = torch.tensor([[0.5, 1.5], [1.5, 0.5]])
    torch.manual_seed(0)
    found = model.predict(X, T, at=own, n_samples=3, seed=1)
    torch.manual_seed(0)
    shared = model.predict(X, T, at=own[0], n_samples=3, seed=1)
    torch.testing.assert_close(found[:, 0], shared[:, 0])
    torch.testing.assert_close(found[:, 1].flip(1), shared[:, 1])


def test_times_that_make_no_sense_are_refused() -> None:
    """Before t0, not finite, none."""
    model = process(Shifted(0.0))
    for at, words in (([-1.0, 1.0], "one side"), ([torch.nan], "finite times"), ([], "got none")):
        with pytest.raises(InvalidProblem, match=words):
            model.predict(X, T, at=torch.tensor(at))


def test_settings_that_make_no_sense_are_refused() -> None:
    """Parts, sizes, numbers of paths, lists of times."""
    for changes in ({"prior_drift": None}, {"latent": 0}, {"t0": math.nan}):
        parts: dict[str, Any] = {"prior_drift": pull, "latent": 1} | changes
        with pytest.raises(InvalidProblem, match=f"`{next(iter(changes))}`"):
            LatentSDE(
                ContextEncoder(1, 1), Shifted(0.0), diffusion=noise, decoder=nn.Identity(),
                likelihood=Gaussian(NOISE), **parts,
            )  # fmt: skip
    model = process(Shifted(0.0))
    with pytest.raises(InvalidProblem, match="`n_samples` must be positive"):
        model.predict(X, T, at=T, n_samples=0)
    with pytest.raises(InvalidProblem, match="`at` must be a tensor, got list"):
        model.predict(X, T, at=[0.5])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidProblem, match="`t` must be a tensor, got list"):
        model.sample(2, [0.5])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidProblem, match="want no gradient"):
        model.elbo(X, T.clone().requires_grad_())


def test_a_likelihood_that_integrates_is_refused() -> None:
    """There is no running cost along a stochastic path."""
    with pytest.raises(InvalidProblem, match="must not integrate a rate"):
        LatentSDE(
            ContextEncoder(1, 1), Shifted(0.0), pull, noise, nn.Identity(),
            PoissonProcess((0.0, 1.0)), latent=1,
        )  # fmt: skip
