"""Flow matching regresses the velocity of its paths, and its minimiser carries base to data."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from ctflow import Solver
from ctflow.errors import InvalidProblem
from ctflow.flows import (
    ContinuousFlow,
    FreeForm,
    conditional_transport,
    linear_path,
    matching_loss,
    pair_by_transport,
)

FLOAT = torch.float64


def pairs(n: int) -> tuple[Tensor, Tensor]:
    """Base samples and data, [n, 2] each."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, 2, generator=g, dtype=FLOAT)
    return z, torch.randn(n, 2, generator=g, dtype=FLOAT) * 0.5 + 3


@pytest.mark.parametrize("path", [linear_path, conditional_transport(0.1)])
def test_the_velocity_is_the_derivative_of_the_place(path: object) -> None:
    """And the ends are the base and, up to the width that is left, the data."""
    z, x = pairs(6)
    t = torch.full((6, 1), 0.3, dtype=FLOAT)
    ahead, behind, here = path(z, x, t + 1e-6), path(z, x, t - 1e-6), path(z, x, t)
    assert torch.allclose((ahead.z - behind.z) / 2e-6, here.velocity, rtol=1e-8)
    assert torch.equal(path(z, x, 0 * t).z, z)
    left = 0.0 if path is linear_path else 0.1
    assert torch.allclose(path(z, x, 0 * t + 1).z, x + left * z)


def test_the_pairing_is_the_cheapest() -> None:
    """Against every permutation."""
    z, x = pairs(6)
    cost = torch.cdist(z, x).square()
    best = min(float(cost[range(6), list(order)].sum()) for order in permutations(range(6)))
    assert abs(float((z - x[pair_by_transport(z, x)]).square().sum()) - best) < 1e-10


def test_the_loss_of_the_true_field_between_gaussians_is_the_least() -> None:
    """The marginal velocity in closed form: no field does better, and a worse one is seen."""
    z, _ = pairs(40_000)
    x = 3 + 0.5 * pairs(40_000)[0].flip(0)

    def true(t: Tensor, y: Tensor) -> Tensor:
        variance = (1 - t) ** 2 + 0.25 * t**2
        return 3 + (0.25 * t - (1 - t)) / variance * (y - 3 * t)

    def loss(shift: float) -> float:
        g = torch.Generator().manual_seed(1)
        return float(matching_loss(lambda t, y: true(t, y) + shift, z, x, generator=g))

    least = loss(0.0)
    # E |x - z|^2 given the place: 2 * integral of 0.25 / ((1 - t)^2 + 0.25 t^2) dt = pi / 2.
    assert abs(least - torch.pi / 2) < 0.05
    assert abs(loss(0.2) - least - 2 * 0.2**2) < 0.02
    assert abs(loss(-0.2) - least - 2 * 0.2**2) < 0.02


COMPILED = pytest.param("compiled", marks=[pytest.mark.compiler, pytest.mark.slow])


@pytest.mark.parametrize("backend", ["native", "torchdiffeq", "scipy", COMPILED])
def test_the_true_field_carries_the_base_to_the_data(backend: str) -> None:
    """Under any backend `ContinuousFlow` has the data's log-density, exactly, and its samples."""

    def true(t: Tensor, y: Tensor) -> Tensor:
        variance = (1 - t) ** 2 + 0.25 * t**2
        return 3 + (0.25 * t - (1 - t)) / variance * (y - 3 * t)

    base = Independent(Normal(torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)), 1)
    flow = ContinuousFlow(base, true, solver=Solver(backend, rtol=1e-9, atol=1e-9))
    data = MultivariateNormal(torch.full((2,), 3.0, dtype=FLOAT), 0.25 * torch.eye(2, dtype=FLOAT))
    x = data.sample((50,))
    assert torch.allclose(flow.log_prob(x), data.log_prob(x), rtol=0, atol=1e-7)
    torch.manual_seed(0)
    z = base.sample((50,))
    torch.manual_seed(0)
    assert torch.allclose(flow.sample((50,)), 3 + 0.5 * z, rtol=0, atol=1e-7)


def test_transport_pairs_make_straighter_paths() -> None:
    """The least loss that any field can have is smaller: paths cross less."""
    torch.manual_seed(0)

    def trained(paired: bool) -> float:
        torch.manual_seed(1)
        field, losses = FreeForm(2, (32,)), []
        optimiser = torch.optim.Adam(field.parameters(), lr=1e-2)
        for _ in range(150):
            z = torch.randn(128, 2)
            x = torch.randn(128, 2) * 0.3 + 2 * torch.randn(128, 1).sign()
            loss = matching_loss(field, z, x[pair_by_transport(z, x)] if paired else x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        return sum(losses[-30:]) / 30

    assert trained(True) < 0.3 * trained(False)


def test_a_context_reaches_the_field() -> None:
    """One row for each pair."""
    z, x = pairs(5)
    field = FreeForm(2, (4,), context=3).double()
    assert matching_loss(field, z, x, context=torch.ones(5, 3, dtype=FLOAT)) > 0


def test_shapes_that_differ_are_refused() -> None:
    """Before anything is broadcast by accident."""
    z, x = pairs(4)
    with pytest.raises(InvalidProblem, match=r"one shape, got \[4, 2\] and \[4, 1\]"):
        matching_loss(lambda t, y: y, z, x[:, :1])
    with pytest.raises(InvalidProblem, match="must have one shape"):
        pair_by_transport(z, x[:2])
    with pytest.raises(InvalidProblem, match="`sigma` must be at least 0 and less than 1, got 1"):
        conditional_transport(1.0)


def test_a_field_of_another_shape_is_refused() -> None:
    """One column would be taken away from each of the two."""
    z, x = pairs(4)
    with pytest.raises(InvalidProblem, match=r"must return a velocity like z.* got .*\[4, 1\]"):
        matching_loss(lambda t, y: y[:, :1], z, x)


def test_data_that_are_not_finite_are_not_paired() -> None:
    """There is no cheapest of them."""
    z, x = pairs(4)
    x[1, 0] = torch.nan
    with pytest.raises(InvalidProblem, match="`z` and `x` must be finite"):
        pair_by_transport(z, x)
