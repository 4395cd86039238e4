"""Discrete planar layers are bijections with the determinant they report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution

from ctflow.errors import InvalidProblem
from ctflow.flows import PlanarLayers

FLOAT = torch.float64


def layers(n: int, scale: float = 2.0) -> PlanarLayers:
    """Layers whose unconstrained u would not be invertible."""
    torch.manual_seed(3)
    made = PlanarLayers(2, n).double()
    with torch.no_grad():
        made.u.normal_(std=scale)
        made.b.normal_()
    return made


def points(n: int) -> Tensor:
    """Points [n, 2]."""
    return 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT)


@pytest.mark.parametrize("n", [1, 8, 32])
def test_pulling_back_is_the_inverse(n: int) -> None:
    """To twelve digits, in both orders."""
    made, z = layers(n), points(200)
    with torch.no_grad():
        x, _ = made.push(z)
        back = made.pull(x)
        again, _ = made.push(made.pull(z))
    assert bool(((made.w * made.u).sum(dim=1) < -1).any() or n == 1)  # the constraint was needed
    assert torch.allclose(back, z, rtol=0, atol=1e-10)
    assert torch.allclose(again, z, rtol=0, atol=1e-10)


def test_the_log_determinant_is_that_of_the_map() -> None:
    """By brute force."""
    made, z = layers(6), points(5)
    _, found = made.push(z)
    for row, log_det in zip(z, found.detach(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: made.push(r)[0], row)
        assert abs(float(jacobian.det().log() - log_det)) < 1e-11


def test_gradients_pass_through_the_inverse() -> None:
    """That of the inverse map with respect to points and weights, by finite differences."""
    made, x = layers(3, 0.5), points(4).requires_grad_()
    inputs = (x, made.w, made.u, made.b)
    found = torch.autograd.grad(made.pull(x).square().sum(), inputs)
    for tensor, gradient in zip(inputs, found, strict=True):
        direction, h = torch.ones_like(tensor), 1e-5
        with torch.no_grad():
            tensor.add_(h * direction)
            above = made.pull(x).square().sum()
            tensor.sub_(2 * h * direction)
            below = made.pull(x).square().sum()
            tensor.add_(h * direction)
        difference = float(above - below) / (2 * h)
        assert abs(float(gradient.sum()) - difference) < 1e-6 * (1 + abs(difference))


@pytest.mark.parametrize("turned", [False, True])
def test_the_transform_makes_a_distribution(turned: bool) -> None:
    """For sampling and, turned round, for maximum likelihood; it integrates to one."""
    base = Independent(Normal(torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)), 1)
    made = layers(4, 0.5)
    flow = TransformedDistribution(base, made.transform.inv if turned else made.transform)
    side = torch.linspace(-9, 9, 181, dtype=FLOAT)
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(side, side)).exp().sum() * 0.1**2
        x = flow.sample((50,))
    assert abs(float(mass) - 1) < 0.01
    assert torch.isfinite(x).all()


def test_a_part_of_the_layers_can_be_asked_for() -> None:
    """One part after the other is the whole; no layer is the identity."""
    made, z = layers(4), points(3)
    first, second = slice(None, 3), slice(3, None)
    between, early = made.push(z, first)
    end, late = made.push(between, second)
    whole, log_det = made.push(z)
    assert torch.equal(end, whole)
    assert torch.allclose(early + late, log_det, rtol=1e-12)
    assert torch.allclose(made.pull(end, second), between, rtol=0, atol=1e-10)
    assert torch.equal(made.push(z, slice(0, 0))[0], z)


def test_no_layers_are_refused() -> None:
    """And no variables."""
    with pytest.raises(InvalidProblem, match="`n_layers` must be a positive integer, got 0"):
        PlanarLayers(2, 0)
