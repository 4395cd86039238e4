"""Poisson processes: the integral comes from the solve that gives the path."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, ODEProblem, Solution, Solver
from ctflow.backends import Backend, Feature, get
from ctflow.backends.places import tensors_in
from ctflow.latent import Gaussian, Joint, LatentODE, PoissonProcess, RNNEncoder, elbo, pad
from tests.latent.parts import DTYPE, small_model

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@dataclass(frozen=True)
class Counting:
    """The native backend, and how often it was asked to solve."""

    inner: Backend = field(default_factory=lambda: get("native"))
    solves: list[Solver] = field(default_factory=list, compare=False)
    problems: list[ODEProblem] = field(default_factory=list, compare=False)
    name: str = "counting"

    @property
    def features(self) -> frozenset[Feature]:
        return self.inner.features

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        return self.inner.refuse(problem, solver)

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        self.solves.append(solver)
        self.problems.append(problem)
        return self.inner.solve(problem, solver)


def events(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Two sequences of events on [0, 2] for each series; the last series has none."""
    torch.manual_seed(2)
    times = [2 * torch.rand(5 - b, dtype=DTYPE).sort().values for b in range(batch)]
    marks = [torch.randint(0, 2, (len(t), 2)).to(DTYPE) for t in times]
    x, t, mask = pad(times, marks)
    return x, t, mask


def test_path_and_integral_come_from_one_call_of_the_solver() -> None:
    """Whatever the number of series, samples, sequences and windows."""
    backend = Counting()
    windows = [(0.0, 0.5), (0.7, 2.0)]
    model = small_model(likelihood=PoissonProcess(windows), solver=Solver(backend=backend))
    x, t, mask = events()
    inside = (t < 0.5) | (t > 0.7)
    elbo(model, x, t, mask & inside, n_samples=3).value().sum().backward()
    assert len(backend.solves) == 1


def test_the_solver_is_handed_decoder_and_rate_and_not_the_model() -> None:
    """What changes in it with every solve is no part of the problem: compiled programs are kept."""
    backend = Counting()
    model = small_model(likelihood=PoissonProcess((0.0, 2.0)), solver=Solver(backend=backend))
    elbo(model, *events())
    (problem,) = backend.problems
    reached = {id(tensor) for tensor, _ in tensors_in(problem.f, problem.running_cost)}
    assert {id(p) for p in model.decoder.parameters()} <= reached  # pyright: ignore[reportFunctionMemberAccess]
    assert not {id(p) for p in model.encoder.parameters()} & reached  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("coupling", ["per_sample", "shared"])
def test_the_integral_is_that_of_a_fine_quadrature(coupling: str) -> None:
    """Of each sequence, over two windows, for each series and sample."""
    windows = [(0.0, 0.5), (0.7, 2.0)]
    solver = Solver(coupling=coupling, **TIGHT)  # pyright: ignore[reportArgumentType]
    model = small_model(likelihood=PoissonProcess(windows), solver=solver)
    z0, (_, t, _) = torch.randn(2, 3, 3, dtype=DTYPE), events()
    path = model.path(z0, t)
    wanted = torch.zeros(2, 3, 2, dtype=DTYPE)
    for start, end in windows:
        fine = torch.linspace(start, end, 2001, dtype=DTYPE)
        rate = model.decoder(model.trajectory(z0, fine)).exp()
        wanted += torch.trapezoid(rate, fine, dim=-2)
    assert path.integral is not None
    torch.testing.assert_close(path.integral, wanted, rtol=1e-6, atol=1e-6)


def test_the_density_is_rates_at_events_less_the_integral() -> None:
    """For a rate known in closed form: log rate = z, z' = -1."""
    model = LatentODE(
        RNNEncoder(1, 1), lambda t, z: -torch.ones_like(z), nn.Identity(),
        PoissonProcess((0.0, 2.0)), latent=1, solver=Solver(**TIGHT),
    ).to(DTYPE)  # fmt: skip
    z0 = torch.tensor([[0.3], [1.0]], dtype=DTYPE)
    t = torch.tensor([[0.5, 1.5], [1.0, 0.0]], dtype=DTYPE)
    mask = torch.tensor([[True, True], [True, False]]).unsqueeze(-1)
    path = model.path(z0, t)
    found = model.likelihood.log_prob(path.z, mask.to(DTYPE), mask, path.integral)
    integral = z0[:, 0].exp() * (1 - torch.tensor(-2.0, dtype=DTYPE).exp())
    wanted = torch.stack([2 * z0[0, 0] - 2.0, z0[1, 0] - 1.0]) - integral
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_no_event_is_an_observation_too() -> None:
    """Its density is that of silence; its encoder says so or sees an event of count zero."""
    model = small_model(likelihood=PoissonProcess((0.0, 2.0)))
    x, t, mask = events()
    silent = elbo(model, torch.zeros_like(x), t, mask)
    path_only = model.path(model.posterior(torch.zeros_like(x), t, mask).mean, t)
    assert path_only.integral is not None
    assert bool((silent.log_likelihood < 0).all())
    assert bool((path_only.integral > 0).all())


def test_values_and_events_in_one_model() -> None:
    """Gaussian values and a Poisson process, with gradients to all that made them."""
    both = Joint([(Gaussian(0.3), 1), (PoissonProcess((0.0, 2.0)), 1)])
    model, (x, t, mask) = small_model(likelihood=both), events()
    elbo(model, x, t, mask).value().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


COMPILED = pytest.param("compiled", marks=[pytest.mark.compiler, pytest.mark.slow])


@pytest.mark.parametrize("backend", ["native", "torchdiffeq", COMPILED])
@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_gradients_do_not_depend_on_who_solves(backend: str, gradient: str) -> None:
    """The integral's gradient reaches encoder, field and rate alike."""
    pytest.importorskip("torchdiffeq" if backend == "torchdiffeq" else "torch")

    def found(settings: Solver) -> Tensor:
        model = small_model(likelihood=PoissonProcess((0.0, 2.0)), solver=settings)
        torch.manual_seed(1)
        bound = elbo(model, *events()).value().sum()
        parts = torch.autograd.grad(bound, list(model.parameters()))
        return torch.cat([g.flatten() for g in parts])

    wanted = found(Solver(gradient="checkpointed", rtol=1e-11, atol=1e-11))
    ours = found(Solver(backend=backend, gradient=gradient, rtol=1e-9, atol=1e-9))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(ours, wanted, rtol=0.0, atol=1e-6 * wanted.detach().norm().item())


def test_events_outside_the_windows_are_refused() -> None:
    """Nobody watched there."""
    model = small_model(likelihood=PoissonProcess((0.0, 1.0)))
    x, t, mask = events()
    with pytest.raises(InvalidProblem, match="events must lie inside the windows"):
        elbo(model, x, t, mask)


def test_a_window_before_the_latent_state_is_refused() -> None:
    """The path starts at t0."""
    with pytest.raises(InvalidProblem, match="`t0` must not lie after"):
        small_model(likelihood=PoissonProcess((0.0, 1.0)), t0=0.5)


def test_a_free_scale_of_the_rate_fits_the_number_of_events() -> None:
    """Where log-rates have a free constant, the best integral is the number of events exactly."""
    times = torch.tensor([0.1, 0.2, 0.4, 1.0, 1.9], dtype=DTYPE).unsqueeze(0)
    decoder = nn.Linear(2, 1).to(DTYPE)
    likelihood = PoissonProcess((0.0, 2.0))

    def turn(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[..., 1], -z[..., 0]], dim=-1)

    model = LatentODE(RNNEncoder(1, 2), turn, decoder, likelihood, latent=2).to(DTYPE)
    z0 = torch.tensor([[1.0, 0.0]], dtype=DTYPE)
    optimiser = torch.optim.LBFGS(decoder.parameters(), max_iter=60, line_search_fn="strong_wolfe")
    one = torch.ones(1, 5, 1, dtype=DTYPE)

    def loss() -> Tensor:
        optimiser.zero_grad()
        path = model.path(z0, times)
        value = -likelihood.log_prob(decoder(path.z), one, one > 0, path.integral).sum()
        value.backward()
        return value

    optimiser.step(loss)
    integral = model.path(z0, times).integral
    assert integral is not None
    assert float(integral.detach()) == pytest.approx(5.0, abs=1e-3)
