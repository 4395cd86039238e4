"""Fields read what they are given, and are what their formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.utils.flop_counter import FlopCounterMode

from ctflow import Solver
from ctflow.errors import InvalidProblem
from ctflow.flows import ContinuousFlow, FreeForm, GatedPlanar, HyperPlanar, Planar, PotentialField

FLOAT = torch.float64


def points(n: int, dim: int) -> Tensor:
    """Points [n, dim]."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(2), dtype=FLOAT)


def test_planar_units_add_up() -> None:
    """Equation 9 for each unit, summed as in equation 10."""
    field, z = Planar(3, 4).double(), points(5, 3)
    wanted = sum(
        u * torch.tanh(z @ w + b).unsqueeze(1)
        for u, w, b in zip(field.u, field.w, field.b, strict=True)
    )
    assert torch.allclose(field(torch.zeros(()), z), wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", [Planar, GatedPlanar, HyperPlanar])
@pytest.mark.parametrize("times", [torch.tensor(0.3), torch.full((20, 1), 0.3)])
def test_the_trace_of_planar_units_costs_as_much_for_each(
    kind: type[Planar | GatedPlanar | HyperPlanar], times: Tensor
) -> None:
    """Twice the units, twice the products of velocity and trace: O(M), by torch's own count."""

    def products(n_units: int) -> int:
        field = kind(3, n_units)
        with FlopCounterMode(display=False) as counter:
            field.with_divergence(times, torch.zeros(20, 3))
        return counter.get_total_flops()

    first, second = products(16) - products(8), products(32) - products(16)
    assert second == 2 * first > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: GatedPlanar(2, 4),
        lambda: HyperPlanar(2, 4),
        lambda: PotentialField(2, 4),
        lambda: FreeForm(2, (4,)),
    ],
)
def test_a_time_for_each_sample_is_the_time_of_that_sample(make: type[nn.Module]) -> None:
    """[N, 1] under per-sample steps, 0-dim under shared ones."""
    torch.manual_seed(0)
    field = make().double()
    for parameter in field.parameters():
        nn.init.normal_(parameter)
    z, times = points(5, 2), torch.linspace(0, 1, 5, dtype=FLOAT)
    together = field(times.unsqueeze(1), z)
    alone = torch.cat([field(t, row[None]) for t, row in zip(times, z, strict=True)])
    assert torch.allclose(together, alone, rtol=1e-12)
    assert not torch.allclose(together, field(times[0], z))


def test_gates_lie_between_closed_and_open() -> None:
    """Their biases far to either side: no velocity, and that of the plain units."""
    field, z, t = GatedPlanar(2, 4).double(), points(5, 2), torch.tensor(0.5, dtype=FLOAT)
    last = field.gate[-1]
    with torch.no_grad():
        last.bias.fill_(-50.0)
        assert float(field(t, z).abs().max()) < 1e-15
        last.bias.fill_(50.0)
        assert torch.allclose(field(t, z), field.planar(t, z), rtol=1e-12)


def test_a_potential_field_is_minus_the_gradient_of_its_potential() -> None:
    """By autograd; its Jacobian is symmetric."""
    field, z, t = PotentialField(3, 6).double(), points(4, 3), torch.tensor(0.3, dtype=FLOAT)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(field.potential(t, z).sum(), z)
    assert torch.allclose(field(t, z), -gradient, rtol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda row: field(t, row[None])[0], z[0])
    assert torch.allclose(jacobian, jacobian.t(), rtol=0, atol=1e-14)


def test_a_free_form_flow_begins_at_the_identity() -> None:
    """Its last layer is zero."""
    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    flow = ContinuousFlow(base, FreeForm(2, (8,)), solver=Solver(method="rk4", step=0.5))
    x = torch.randn(4, 2)
    assert torch.equal(flow.log_prob(x), base.log_prob(x))


@pytest.mark.parametrize("context", [(), (torch.zeros(4, 2),)])
def test_a_context_of_another_width_is_refused(context: tuple[Tensor, ...]) -> None:
    """One that is missing, too."""
    with pytest.raises(InvalidProblem, match="`context` must have 3 features, got"):
        FreeForm(2, (8,), context=3)(torch.zeros(()), torch.zeros(4, 2), *context)
