"""Theorem 1 and appendix A: the density that a flow reports is the density of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from ctflow import Solver
from ctflow.backends.protocol import Gradient
from ctflow.dynamics import MLP, ConcatSquashLinear
from ctflow.flows import (
    ContinuousFlow,
    Divergence,
    Exact,
    GatedPlanar,
    HamiltonianField,
    Planar,
    PotentialField,
    log_density,
)

Make = Callable[[int], nn.Module]
FLOAT = torch.float64
TIGHT = Solver(rtol=1e-10, atol=1e-12)


def standard(dim: int) -> Independent:
    """The standard normal distribution in `dim` dimensions."""
    return Independent(Normal(torch.zeros(dim, dtype=FLOAT), torch.ones(dim, dtype=FLOAT)), 1)


def mlp(dim: int) -> nn.Module:
    """A network of z and t with fixed weights."""
    torch.manual_seed(0)
    return MLP(dim, (10,), layer=ConcatSquashLinear).double()


def planar(dim: int, units: int = 6) -> nn.Module:
    """A gated planar field with fixed weights that moves points by about one."""
    torch.manual_seed(1)
    field = GatedPlanar(dim, units).double()
    with torch.no_grad():
        field.planar.u.mul_(4.0)
    return field


def points(n: int, dim: int) -> Tensor:
    """Points [n, dim]."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(2), dtype=FLOAT)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("make", [mlp, planar])
def test_the_log_determinant_is_that_of_the_flow_map(make: Make, dim: int) -> None:
    """Brute force: the determinant of the map's Jacobian, by autograd through the solve."""
    flow = ContinuousFlow(standard(dim), make(dim), solver=TIGHT)
    for x in points(3, dim):
        jacobian = torch.autograd.functional.jacobian(
            lambda row: flow.trajectory(row[None], (1.0, 0.0))[-1, 0], x
        )
        found = log_density(flow, x[None])
        change = found.value - flow.base.log_prob(found.z)
        assert abs(float(change.detach() - jacobian.det().abs().log())) < 1e-7


def test_a_linear_field_has_the_gaussian_of_its_matrix_exponential() -> None:
    """z' = A z carries N(0, 1) to N(0, e^A e^A^T), and the log-determinant is tr A."""
    a = torch.tensor([[0.3, -1.2], [0.8, -0.5]], dtype=FLOAT)
    flow = ContinuousFlow(standard(2), lambda t, z: z @ a.t(), solver=TIGHT)
    e = torch.linalg.matrix_exp(a)
    wanted = MultivariateNormal(torch.zeros(2, dtype=FLOAT), e @ e.t())
    x = points(20, 2)
    assert torch.allclose(flow.log_prob(x), wanted.log_prob(x), rtol=0, atol=1e-8)
    log_det = flow.transform.log_abs_det_jacobian(x, flow.transform(x))
    assert torch.allclose(log_det, a.trace().expand(20), rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [mlp, planar])
def test_the_liouville_equation_holds(make: Make) -> None:
    """dp/dt = - sum_i d(f_i p)/dz_i at fixed points; the residual falls as the square of h."""
    field = make(2)
    flow = ContinuousFlow(standard(2), field, solver=Solver(rtol=1e-10, atol=1e-12))
    x, t = points(4, 2), torch.tensor(0.6, dtype=FLOAT)

    def residual(h: float) -> float:
        shift = h * torch.eye(2, dtype=FLOAT)
        p = {s: flow.at(float(t) + s).log_prob(x).exp() for s in (-h, h)}
        total = (p[h] - p[-h]) / (2 * h)
        now = flow.at(float(t))
        for i in range(2):
            ahead, behind = x + shift[i], x - shift[i]
            flux = field(t, ahead)[:, i] * now.log_prob(ahead).exp()
            back = field(t, behind)[:, i] * now.log_prob(behind).exp()
            total = total + (flux - back) / (2 * h)
        return float(total.detach().norm())

    coarse, fine = residual(0.08), residual(0.04)
    assert 3.4 < coarse / fine < 4.6
    assert residual(0.01) < 1e-3


@pytest.mark.parametrize("make", [mlp, planar])
def test_the_density_integrates_to_one(make: Make) -> None:
    """On a grid that holds it, within one per cent."""
    solver = Solver(rtol=1e-6, atol=1e-8, coupling="shared")
    flow = ContinuousFlow(standard(2), make(2), solver=solver)
    side = torch.linspace(-7, 7, 71, dtype=FLOAT)
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(side, side)).exp().sum() * 0.2**2
    assert abs(float(mass) - 1) < 0.01


def test_a_hamiltonian_field_preserves_volume() -> None:
    """Its log-determinant is zero, and so is that of the map's Jacobian, by brute force."""
    torch.manual_seed(0)
    halves = [nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(2)]
    field = HamiltonianField(*halves, n_position=2).double()
    flow = ContinuousFlow(standard(4), field, solver=TIGHT)
    x = points(4, 4)
    found = log_density(flow, x)
    change = (found.value - flow.base.log_prob(found.z)).detach()
    assert float(change.abs().max()) < 1e-12
    jacobian = torch.autograd.functional.jacobian(
        lambda row: flow.trajectory(row[None], (0.0, 1.0))[-1, 0], x[0]
    )
    assert abs(float(jacobian.det()) - 1) < 1e-7


def test_the_sign_of_equation_10_is_that_of_theorem_1() -> None:
    """Units that push outwards (u . w > 0) spread the density: it falls along the path."""
    field = Planar(2, 1).double()
    with torch.no_grad():
        field.w.copy_(torch.tensor([[1.0, 0.0]]))
        field.u.copy_(torch.tensor([[0.5, 0.0]]))
        field.b.zero_()
    flow = ContinuousFlow(standard(2), field, solver=TIGHT)
    z, log_prob = torch.zeros(1, 2, dtype=FLOAT), -math.log(2 * math.pi)
    # At the fixed point z = 0 the divergence is u . w = 1/2 throughout.
    assert abs(float(flow.log_prob(z).detach()) - (log_prob - 0.5)) < 1e-9


@pytest.mark.parametrize("make", [mlp, planar, lambda dim: PotentialField(dim).double()])
def test_forward_then_inverse_is_the_identity(make: Make) -> None:
    """To ten times the tolerance; the log-determinants cancel."""
    flow = ContinuousFlow(standard(3), make(3), solver=Solver(rtol=1e-8, atol=1e-8))
    z = points(10, 3)
    x = flow.transform(z)
    forward = flow.transform.log_abs_det_jacobian(z, x)
    back = flow.transform.inv(x.clone())
    backward = flow.transform.inv.log_abs_det_jacobian(x, back)
    assert torch.allclose(back, z, rtol=0, atol=1e-7)
    assert torch.allclose(forward, -backward, rtol=0, atol=1e-7)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("divergence", [None, Exact(), Exact("forward")], ids=repr)
def test_the_gradient_of_the_likelihood_is_its_finite_difference(
    gradient: Gradient, divergence: Divergence | None
) -> None:
    """On a frozen grid (fixed steps), along random directions, for parameters and for data."""
    field, x = planar(2), points(4, 2).requires_grad_()
    fixed = Solver(method="rk4", step=0.25, gradient=gradient)
    flow = ContinuousFlow(standard(2), field, divergence=divergence, solver=fixed)
    inputs = [x, *field.parameters()]
    found = torch.autograd.grad(flow.log_prob(x).sum(), inputs)
    g = torch.Generator().manual_seed(5)
    for tensor, gradient_of in zip(inputs, found, strict=True):
        direction = torch.randn(tensor.shape, generator=g, dtype=FLOAT)
        sides = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                tensor.add_(h * direction)
                sides.append(float(flow.log_prob(x).sum()))
                tensor.sub_(h * direction)
        difference = (sides[0] - sides[1]) / 2e-5
        scale = float(gradient_of.norm() * direction.norm()) + 1e-3
        assert abs(float((gradient_of * direction).sum()) - difference) < 1e-7 * scale


def test_the_adjoint_has_the_gradient_of_the_others() -> None:
    """At a tight tolerance, all parameters together."""
    field, x = planar(2), points(5, 2)

    def gradient(method: Gradient) -> Tensor:
        solver = Solver(rtol=1e-10, atol=1e-12, gradient=method)
        loss = ContinuousFlow(standard(2), field, solver=solver).log_prob(x).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(field.parameters()))])

    direct, adjoint = gradient("direct"), gradient("adjoint")
    assert float((direct - adjoint).norm()) < 1e-7 * float(direct.norm())
