"""A solve draws its probes once, keeps them to its end and in its gradient, and stays unbiased."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ctflow import Solver
from ctflow.backends.protocol import Gradient
from ctflow.dynamics import MLP
from ctflow.flows import ContinuousFlow, Divergence, Hutchinson, HutchPlusPlus, Rates
from ctflow.flows.divergence import Field

FLOAT = torch.float64


def standard(dim: int = 2) -> Independent:
    """The standard normal distribution."""
    return Independent(Normal(torch.zeros(dim, dtype=FLOAT), torch.ones(dim, dtype=FLOAT)), 1)


def mlp(dim: int = 2) -> nn.Module:
    """A network with fixed weights."""
    torch.manual_seed(0)
    return MLP(dim, (8,)).double()


def points(n: int, dim: int = 2) -> Tensor:
    """Points [n, dim]."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(2), dtype=FLOAT)


class Watched:
    """A divergence whose noise is written down."""

    def __init__(self, inner: Divergence) -> None:
        self.inner, self.drawn, self.seen = inner, list[Tensor](), list[Tensor]()

    def draw(self, field: Field, z: Tensor) -> Tensor | None:
        """The inner one's, kept."""
        noise = cast("Tensor", self.inner.draw(field, z))
        self.drawn.append(noise)
        return noise

    def rates(self, field: Field, z: Tensor, noise: Tensor | None) -> Rates:
        """The inner one's."""
        self.seen.append(cast("Tensor", noise).detach())
        return self.inner.rates(field, z, noise)


@pytest.mark.parametrize("inner", [Hutchinson(2), HutchPlusPlus(1, 2, "gaussian")], ids=repr)
@pytest.mark.parametrize(
    ("backend", "gradient"),
    [
        ("native", "direct"),
        ("native", "checkpointed"),
        ("native", "adjoint"),
        ("torchdiffeq", "direct"),
        ("torchdiffeq", "adjoint"),
        ("scipy", "adjoint"),
    ],
)
def test_every_evaluation_of_a_solve_has_the_same_probes(
    inner: Divergence, backend: str, gradient: Gradient
) -> None:
    """Those that were drawn once before it, forwards and backwards; another solve has others."""
    watched = Watched(inner)
    solver = Solver(backend, gradient=gradient, rtol=1e-4, atol=1e-4)
    flow = ContinuousFlow(standard(), mlp(), divergence=watched, solver=solver)
    flow.log_prob(points(5)).sum().backward()
    (drawn,) = watched.drawn
    assert len(watched.seen) > 6
    assert all(torch.equal(noise.reshape(drawn.shape), drawn) for noise in watched.seen)
    flow.log_prob(points(5))
    assert len(watched.drawn) == 2
    assert not torch.equal(watched.drawn[1], drawn)


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
def test_the_gradient_is_that_of_the_estimate(gradient: Gradient) -> None:
    """A backward pass that drew anew would differ by the estimator's spread."""

    def of(kind: Gradient) -> Tensor:
        field = mlp()
        solver = Solver(gradient=kind, rtol=1e-9, atol=1e-9)
        flow = ContinuousFlow(standard(), field, divergence=Hutchinson(), solver=solver)
        torch.manual_seed(5)
        loss = flow.log_prob(points(5)).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(field.parameters()))])

    assert torch.allclose(of(gradient), of("direct"), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "strategy",
    [
        Hutchinson(1, "rademacher", seed=1),
        Hutchinson(3, "gaussian", seed=2),
        HutchPlusPlus(1, 1, seed=3),
        HutchPlusPlus(1, 2, "gaussian", seed=4),
    ],
    ids=repr,
)
def test_the_log_density_of_a_solve_is_unbiased(strategy: Divergence) -> None:
    """Of one point, over probes: the mean is the exact one within four standard errors."""
    field, n = mlp(3), 3000
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.7)
    fixed = Solver(method="rk4", step=0.25)
    # The same point in all that counts: its last digits are the key of its probes.
    x = points(1, 3) + 1e-9 * points(n, 3)
    with torch.no_grad():
        exact = ContinuousFlow(standard(3), field, solver=fixed).log_prob(x[:1])
        flow = ContinuousFlow(standard(3), field, divergence=strategy, solver=fixed)
        found = flow.log_prob(x)
    error = float(found.std()) / n**0.5
    assert error > 1e-4
    assert abs(float(found.mean() - exact)) < 4 * error
