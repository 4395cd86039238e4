"""Costs along the path, and the random end of time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ctflow import Solver
from ctflow.errors import InvalidProblem
from ctflow.flows import (
    ContinuousFlow,
    Exact,
    Hutchinson,
    Planar,
    jacobian,
    kinetic,
    log_density,
    random_end,
)

FLOAT = torch.float64
TIGHT = Solver(rtol=1e-9, atol=1e-9)


def standard() -> Independent:
    """The standard normal distribution in the plane."""
    return Independent(Normal(torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)), 1)


@pytest.mark.parametrize("backend", ["native", "torchdiffeq", "scipy"])
@pytest.mark.parametrize("divergence", [None, Exact(), Exact("forward")], ids=repr)
def test_costs_are_those_of_the_path(backend: str, divergence: Exact | None) -> None:
    """Against the integrals along stored paths; with a closed-form trace as well."""
    torch.manual_seed(0)
    field = Planar(2, 5).double()
    solver = Solver(backend=backend, rtol=1e-8, atol=1e-8)
    flow = ContinuousFlow(
        standard(), field, divergence=divergence, running_costs=[kinetic, jacobian], solver=solver
    )
    x = torch.randn(3, 2, dtype=FLOAT)
    found = log_density(flow, x)
    t = torch.linspace(1, 0, 201, dtype=FLOAT)
    rates = [Exact().rates(lambda z: field(t, z), z, None) for z in flow.trajectory(x, t)]
    for column, cost in enumerate((kinetic, jacobian)):
        along = torch.stack([cost(place) for place in rates])
        wanted = torch.trapezoid(along, dx=1 / 200, dim=0)
        assert torch.allclose(found.costs[:, column], wanted, rtol=1e-4)


def test_costs_have_gradients() -> None:
    """RNODE's loss: log-density and both costs, from one solve."""
    field = Planar(2, 5).double()
    flow = ContinuousFlow(standard(), field, running_costs=[kinetic, jacobian], solver=TIGHT)
    found = log_density(flow, torch.randn(3, 2, dtype=FLOAT))
    loss = (0.01 * found.costs.sum(dim=1) - found.value).mean()
    gradients = torch.autograd.grad(loss, list(field.parameters()))
    assert all(float(g.norm()) > 0 for g in gradients)


def test_a_penalty_on_speed_lowers_speed() -> None:
    """Training with it ends at a smaller transport cost."""

    def cost_after(weight: float) -> float:
        torch.manual_seed(0)
        field = Planar(2, 8)
        base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        solver = Solver(method="rk4", step=0.25, coupling="shared", gradient="direct")
        flow = ContinuousFlow(base, field, running_costs=[kinetic], solver=solver)
        optimiser = torch.optim.Adam(field.parameters(), lr=0.02)
        x = torch.randn(64, 2) * 0.5 + 1
        for _ in range(40):
            found = log_density(flow, x)
            loss = (weight * found.costs[:, 0] - found.value).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return float(found.costs.detach().mean())

    assert cost_after(1.0) < 0.7 * cost_after(0.0)


def test_hutchinson_gives_the_jacobian_cost_without_more_products() -> None:
    """Unbiased: the mean over many equal fields is the squared norm."""
    matrix = torch.tensor([[0.2, -0.7], [0.4, 0.1]], dtype=FLOAT)
    flow = ContinuousFlow(
        standard(),
        lambda t, z: z @ matrix.t(),
        divergence=Hutchinson(seed=1),
        running_costs=[jacobian],
        solver=Solver(method="rk4", step=0.5),
    )
    costs = log_density(flow, torch.randn(4000, 2, dtype=FLOAT)).costs[:, 0]
    wanted = float(matrix.square().sum())
    assert abs(float(costs.mean()) - wanted) < 4 * float(costs.std()) / 4000**0.5


def test_a_cost_of_another_shape_is_refused() -> None:
    """One number for each sample."""

    def total(rates: object) -> Tensor:
        return torch.zeros((), dtype=FLOAT)

    flow = ContinuousFlow(standard(), Planar(2, 2).double(), running_costs=[total])
    with pytest.raises(InvalidProblem, match="one value for each sample, got shape"):
        log_density(flow, torch.zeros(3, 2, dtype=FLOAT))


def test_the_end_of_time_moves_within_its_width() -> None:
    """Uniformly, with the generator's seed; the start stays, and so does the dtype of a tensor."""
    g = torch.Generator().manual_seed(0)
    ends = torch.stack([random_end((0.0, 1.0), 0.5, g) for _ in range(2000)])
    assert torch.equal(ends[:, 0], torch.zeros(2000, dtype=FLOAT))
    assert abs(float(ends[:, 1].mean()) - 1) < 4 * 0.5 / 3**0.5 / 2000**0.5
    assert float((ends[:, 1] - 1).abs().max()) < 0.5
    assert torch.equal(random_end(torch.tensor([0.0, 1.0]), 0.0), torch.tensor([0.0, 1.0]))
    again = random_end((0.0, 1.0), 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(again, ends[0])


def test_an_end_that_could_pass_the_start_is_refused() -> None:
    """The interval would turn round."""
    with pytest.raises(InvalidProblem, match=r"less than the length of the interval 1, got 1\.5"):
        random_end((0.0, 1.0), 1.5)
