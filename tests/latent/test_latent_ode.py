"""A latent ODE: paths, posterior, bound and samples, on every backend alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ctflow import InvalidProblem, Solver, Unsupported
from ctflow.latent import Gaussian, LatentODE, Observations, annealed, elbo
from tests.latent.parts import DTYPE, ENCODERS, irregular, small_model


class Fixed(nn.Module):
    """An encoder that says N(mean, scale) whatever it sees."""

    def __init__(self, mean: float, scale: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([mean], dtype=DTYPE))
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)], dtype=DTYPE))

    def forward(self, data: Observations, t0: float) -> Normal:
        batch = (len(data.x), 1)
        return Normal(self.mean.expand(batch), self.log_scale.exp().expand(batch))


def decay(encoder: nn.Module, noise: float = 0.5, solver: Solver | None = None) -> LatentODE:
    """z' = -z, seen as it is with noise: everything is Gaussian and known in closed form."""
    return LatentODE(
        encoder, lambda t, z: -z, nn.Identity(), Gaussian(noise).to(DTYPE), latent=1, solver=solver
    ).to(DTYPE)


SERIES = torch.tensor([[0.4], [1.0], [0.1]], dtype=DTYPE).unsqueeze(0)
TIMES = torch.tensor([0.0, 0.5, 2.0], dtype=DTYPE)


def exact(noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of p(z0 | x), and log p(x), of `decay`."""
    h = torch.exp(-TIMES)
    x = SERIES[0, :, 0]
    variance = 1 / (1 + (h * h).sum() / noise**2)
    mean = variance * (h * x).sum() / noise**2
    covariance = torch.outer(h, h) + noise**2 * torch.eye(3, dtype=DTYPE)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=DTYPE), covariance)
    return mean, variance, evidence.log_prob(x)


def test_the_bound_is_the_evidence_where_the_posterior_is_exact() -> None:
    """In a linear Gaussian model, with the sampled KL, every single sample gives log p(x)."""
    noise = 0.5
    mean, variance, evidence = exact(noise)
    model = decay(Fixed(float(mean), float(variance.sqrt())), noise)
    for _ in range(3):
        value = elbo(model, SERIES, TIMES, kl="sampled").value()
        torch.testing.assert_close(value, evidence.unsqueeze(0), rtol=1e-6, atol=1e-6)


def test_the_analytic_bound_is_the_evidence_on_average() -> None:
    """Within five standard errors of 20 000 samples; and a wrong posterior gives less."""
    mean, variance, evidence = exact(0.5)
    torch.manual_seed(0)
    model = decay(Fixed(float(mean), float(variance.sqrt())))
    batch = SERIES.expand(20_000, -1, -1)
    values = elbo(model, batch, TIMES).value().detach()
    error = 5 * values.std() / math.sqrt(len(values))
    assert abs(float(values.mean() - evidence)) < float(error) < 0.05
    worse = elbo(decay(Fixed(float(mean) + 0.5, 0.5)), batch, TIMES).value().detach().mean()
    assert worse < evidence - 0.1


def test_training_the_bound_finds_the_exact_posterior() -> None:
    """Gradients of both parts point there: mean and standard deviation within 2 %."""
    mean, variance, _ = exact(0.5)
    coarse = Solver(method="rk4", step=0.5, coupling="shared", gradient="direct")
    model = decay(Fixed(0.0, 1.0), solver=coarse)
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(150):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 150)
        optimiser.zero_grad()
        (-elbo(model, SERIES, TIMES, n_samples=200).value().mean()).backward()
        optimiser.step()
    found = model.posterior(SERIES, TIMES)
    torch.testing.assert_close(found.mean[0, 0], mean, rtol=0.02, atol=0.005)
    torch.testing.assert_close(found.stddev[0, 0], variance.sqrt(), rtol=0.02, atol=0.005)


@pytest.mark.parametrize("n_samples", [1, 4])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_a_bound_has_one_value_for_each_series(n_samples: int, kl: str) -> None:
    """Several samples are averaged."""
    model, (x, t, mask) = small_model(), irregular()
    bound = elbo(model, x, t, mask, n_samples=n_samples, kl=kl)  # pyright: ignore[reportArgumentType]
    assert bound.log_likelihood.shape == bound.kl.shape == (4,)
    torch.testing.assert_close(bound.value(0.0), bound.log_likelihood)
    torch.testing.assert_close(bound.value(2.0), bound.log_likelihood - 2 * bound.kl)


def test_several_samples_are_averaged() -> None:
    """The bound of three samples is the mean of the bounds of each of them."""
    model, (x, t, mask) = small_model(solver=Solver(rtol=1e-9, atol=1e-9)), irregular()
    torch.manual_seed(1)
    found = elbo(model, x, t, mask, n_samples=3, kl="sampled")
    q = model.posterior(x, t, mask)
    torch.manual_seed(1)
    z0 = q.rsample((3,))
    paths = model.trajectory(z0, t)
    fits = torch.stack([model.likelihood.log_prob(model.decoder(z), x, mask) for z in paths])
    torch.testing.assert_close(found.log_likelihood, fits.mean(dim=0), rtol=1e-6, atol=1e-6)
    ratio = (q.log_prob(z0) - model.prior.log_prob(z0)).sum(dim=-1)
    torch.testing.assert_close(found.kl, ratio.mean(dim=0))


class Laplace(Gaussian):
    """A likelihood of one's own: the absolute error over the scale."""

    def log_prob(
        self, decoded: Tensor, x: Tensor, mask: Tensor, integral: Tensor | None = None
    ) -> Tensor:
        scale = self.log_scale.exp()
        each = -(x - decoded).abs() / scale - torch.log(2 * scale)
        return torch.where(mask, each, 0.0).sum(dim=(-2, -1))


def test_each_part_may_be_ones_own() -> None:
    """Encoder, field and decoder as plain functions, and another density: all are used."""
    weight = torch.randn(2, 3, dtype=DTYPE, requires_grad=True)
    rate, gain = (torch.tensor(v, dtype=DTYPE, requires_grad=True) for v in (0.7, 1.3))

    def encoder(data: Observations, t0: float) -> Normal:
        mean = data.x.mean(dim=1) @ weight
        return Normal(mean, torch.full_like(mean, 0.1))

    model = LatentODE(
        encoder, lambda t, z: -rate * z, lambda z: gain * z[..., :2], Laplace(0.5).to(DTYPE),
        latent=3, solver=Solver(rtol=1e-9, atol=1e-9),
    )  # fmt: skip
    x, t, mask = irregular()
    torch.manual_seed(1)
    bound = elbo(model, x, t, mask)
    torch.manual_seed(1)
    z0 = encoder(Observations(x, t, mask), 0.0).rsample((1,))[0]
    z = z0.unsqueeze(1) * torch.exp(-rate * t).unsqueeze(-1)
    wanted = model.likelihood.log_prob(gain * z[..., :2], x, mask)
    torch.testing.assert_close(bound.log_likelihood, wanted, rtol=1e-6, atol=1e-6)
    parts = weight, rate, gain
    pairs = zip(
        torch.autograd.grad(bound.log_likelihood.sum(), parts),
        torch.autograd.grad(wanted.sum(), parts),
        strict=True,
    )
    for found, by_hand in pairs:
        torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=1e-6)
    shapes = [model.sample(5, t[0]).shape, model.predict(x, t, mask, at=t[0]).shape]
    assert shapes == [(5, 6, 2), (4, 6, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_are_those_of_the_data(dtype: torch.dtype) -> None:
    """Posterior, prior, path, samples and predictions; times may have another dtype."""
    model = small_model().to(dtype)
    x, t, mask = irregular()
    q, at = model.posterior(x.to(dtype), t, mask), torch.linspace(0, 2, 7)
    z = model.trajectory(q.sample((5,)), t)
    found = [
        q.mean, q.stddev, model.prior.mean, z, model.sample(9, at),
        model.predict(x.to(dtype), t, mask, at=at), elbo(model, x.to(dtype), t, mask).value(),
    ]  # fmt: skip
    shapes = [(4, 3), (4, 3), (3,), (5, 4, 6, 3), (9, 7, 2), (4, 7, 2), (4,)]
    assert [tuple(each.shape) for each in found] == shapes
    assert {each.dtype for each in found} == {dtype}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_gets_a_gradient(encoder: str) -> None:
    """Encoder, field, decoder and noise, through one bound."""
    model, (x, t, mask) = small_model(encoder, Gaussian(0.3, learned=True)), irregular()
    elbo(model, x, t, mask).value().sum().backward()
    without = [
        name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    assert without == []


TIGHT = {"rtol": 1e-9, "atol": 1e-9}
SOLVERS = {
    "per sample": Solver(**TIGHT),
    "on the union": Solver(coupling="shared", **TIGHT),
    "on another backend": Solver(backend="torchdiffeq", **TIGHT),
    "by the adjoint": Solver(gradient="adjoint", **TIGHT),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_bound_and_gradient_do_not_depend_on_who_solves(solver: str) -> None:
    """Per-sample grids, the union of all times, another backend, another gradient."""
    if SOLVERS[solver].backend == "torchdiffeq":
        pytest.importorskip("torchdiffeq")

    def gradient(settings: Solver) -> Tensor:
        model, (x, t, mask) = small_model(solver=settings), irregular()
        torch.manual_seed(1)
        bound = elbo(model, x, t, mask).value().sum()
        found = torch.autograd.grad(bound, list(model.parameters()))
        return torch.cat([bound.reshape(1), *(g.flatten() for g in found)])

    wanted = gradient(Solver(method="dopri5", rtol=1e-11, atol=1e-11))
    torch.testing.assert_close(
        gradient(SOLVERS[solver]), wanted, rtol=0.0, atol=1e-6 * wanted.detach().norm().item()
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gradient_to_the_times_is_that_of_a_difference(solver: str) -> None:
    """On a union of times as well, where two series share one, and at t0 itself."""
    if SOLVERS[solver].backend == "torchdiffeq":
        pytest.importorskip("torchdiffeq")
    model, (x, t, mask) = small_model(solver=SOLVERS[solver]), irregular()
    t[1] = t[0]
    t[2, 0] = 0.0
    mask[1:3, 0] = True

    def value(t: Tensor) -> Tensor:
        torch.manual_seed(1)
        return elbo(model, x, t, mask).value().sum()

    (g,) = torch.autograd.grad(value(t.requires_grad_()), t)
    for b, i in ((0, 3), (1, 0), (2, 0)):
        step = torch.zeros_like(g)
        step[b, i] = 1e-5
        difference = (-value(t.detach() + 2 * step) + 4 * value(t.detach() + step)
                      - 3 * value(t.detach())) / 2e-5  # fmt: skip
        assert g[b, i].item() == pytest.approx(difference.item(), rel=1e-3, abs=1e-3)


def test_series_with_times_of_their_own_take_steps_of_their_own() -> None:
    """The native backend solves no union of times; told to share, it does."""
    x, t, mask = irregular()
    own, shared = small_model(), small_model(solver=Solver(coupling="shared"))
    elbo(own, x, t, mask)
    elbo(shared, x, t, mask)
    assert own.stats is not None
    assert own.stats.solver.coupling == "per_sample"
    assert own.stats.forward.n_steps.shape == (4,)
    assert shared.stats is not None
    assert shared.stats.solver.coupling == "shared"


def test_a_backend_that_cannot_is_refused_where_that_was_asked_for() -> None:
    """A written coupling is honoured or refused, never degraded."""
    pytest.importorskip("torchdiffeq")
    x, t, mask = irregular()
    solver = Solver(backend="torchdiffeq", coupling="per_sample")
    with pytest.raises(Unsupported, match="per_sample"):
        elbo(small_model(solver=solver), x, t, mask)


def test_a_path_holds_at_any_times_in_any_order() -> None:
    """z' = -z, after t0, before it, at it, for every leading shape."""
    model = decay(Fixed(0.0, 1.0))
    z0 = torch.randn(3, 4, 1, dtype=DTYPE)
    for t in (
        torch.tensor([2.0, 0.0, 0.5, 2.0]),
        torch.tensor([-1.0, -0.5]),
        torch.zeros(1),
        torch.rand(4, 5) * torch.tensor([[1.0], [2.0], [0.0], [3.0]]),
    ):
        wanted = z0.unsqueeze(-2) * torch.exp(-t.to(DTYPE)).unsqueeze(-1)
        torch.testing.assert_close(model.trajectory(z0, t), wanted, rtol=1e-6, atol=1e-6)


def test_a_prediction_is_decoded_from_the_posterior_mean() -> None:
    """Between, at and beyond the data."""
    model, (x, t, mask) = small_model(), irregular()
    at = torch.tensor([0.0, 0.5, 3.0])
    wanted = model.decoder(model.trajectory(model.posterior(x, t, mask).mean, at))
    torch.testing.assert_close(model.predict(x, t, mask, at=at), wanted)


def test_samples_have_the_moments_of_the_model() -> None:
    """z0 ~ N(0, 1), z' = -z: variance exp(-2 t) + noise^2 at every time."""
    torch.manual_seed(0)
    series = decay(Fixed(0.0, 1.0)).sample(20_000, TIMES)
    wanted = torch.exp(-2 * TIMES) + 0.25
    torch.testing.assert_close(series.var(dim=0)[:, 0], wanted, rtol=0.05, atol=0.0)
    torch.testing.assert_close(series.mean(dim=0), torch.zeros(3, 1, dtype=DTYPE), rtol=0,
                               atol=0.03)  # fmt: skip


def test_an_encoder_may_be_shown_a_part_of_the_data() -> None:
    """The rest does not reach the posterior, and counts in the likelihood."""
    x, t, mask = irregular()
    model, part = small_model(solver=Solver(rtol=1e-8, atol=1e-8)), mask.clone()
    part[:, 3:] = False
    torch.manual_seed(1)
    found = elbo(model, x, t, mask, given=part)
    q = model.posterior(x, t, part)
    torch.manual_seed(1)
    path = model.path(q.rsample((1,)), t).z
    fit = model.likelihood.log_prob(model.decoder(path), x, mask)[0]
    torch.testing.assert_close(found.log_likelihood, fit, rtol=1e-5, atol=1e-5)
    wanted = kl_divergence(q, model.prior).sum(dim=-1)
    torch.testing.assert_close(found.kl, wanted)
    torch.manual_seed(1)  # beyond the mask there is nothing to be shown
    more = elbo(model, x, t, mask, given=part.any(dim=2) | ~mask.any(dim=2))
    torch.testing.assert_close(more.value(), found.value())
    with pytest.raises(InvalidProblem, match="`given` must be bool"):
        elbo(model, x, t, mask, given=part[:2])


def test_annealing_grows_to_one_and_stays() -> None:
    """Linearly."""
    assert [annealed(step, 4, 0.5) for step in (0, 2, 4, 9)] == [0.5, 0.75, 1.0, 1.0]
    with pytest.raises(InvalidProblem, match="`step` must not be negative"):
        annealed(-1, 4)
