"""Fields with structure keep what their structure keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, Solver, odeint
from ctflow.dynamics import Augment, HamiltonianField, ODEBlock, SecondOrderField
from tests.checks import check_close

FLOAT = torch.float64
TIGHT = Solver(rtol=1e-9, atol=1e-9)


class Energy(nn.Module):
    """A random smooth energy of two places and two momenta."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        return self.net(torch.cat([q, p], dim=1))[:, 0] + 0.5 * p.square().sum(1)


@pytest.fixture
def field() -> HamiltonianField:
    """Motion under that energy."""
    torch.manual_seed(0)
    return HamiltonianField(Energy()).double()


def test_the_energy_is_kept_along_every_path(field: HamiltonianField) -> None:
    """To ten tolerances, whatever the energy is."""
    start = torch.randn(5, 2, dtype=FLOAT), torch.randn(5, 2, dtype=FLOAT)
    q, p = odeint(field, start, [0.0, 2.0, 5.0], solver=TIGHT)
    energies = torch.stack([field.energy(q[i], p[i]) for i in range(3)])
    check_close(energies, energies[:1].expand(3, -1), rtol=1e-8, atol=1e-8)


def test_volumes_are_kept(field: HamiltonianField) -> None:
    """The determinant of the flow's Jacobian is 1."""

    def flow(z: Tensor) -> Tensor:
        start = z[:2][None], z[2:][None]
        q, p = odeint(field, start, [0.0, 2.0], solver=Solver(rtol=1e-9, gradient="direct"))
        return torch.cat([q[-1, 0], p[-1, 0]])

    z = torch.tensor([0.3, -0.5, 1.0, 0.2], dtype=FLOAT)
    jacobian = torch.autograd.functional.jacobian(flow, z)
    assert abs(float(torch.linalg.det(jacobian)) - 1) < 1e-7


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
def test_a_hamiltonian_layer_learns(field: HamiltonianField, gradient: str) -> None:
    """Its energy's parameters get gradients in every way."""
    block = ODEBlock(field, solver=Solver(rtol=1e-6, atol=1e-6, gradient=gradient))
    q, p = block((torch.ones(2, 2, dtype=FLOAT), torch.zeros(2, 2, dtype=FLOAT)))
    (q.square().sum() + p.sum()).backward()
    grads = [p.grad for name, p in field.named_parameters() if name != "energy.net.2.bias"]
    assert all(float(grad.norm()) > 0 for grad in grads)


def test_a_second_order_field_is_motion_under_a_force() -> None:
    """A spring: x = cos t, v = -sin t."""
    spring = SecondOrderField(lambda t, x, v: -x)
    start = torch.ones(1, 1, dtype=FLOAT), torch.zeros(1, 1, dtype=FLOAT)
    t = torch.tensor([0.0, 1.0, 3.0], dtype=FLOAT)
    x, v = odeint(spring, start, t, solver=TIGHT)
    check_close(x[:, 0, 0], t.cos(), rtol=0.0, atol=1e-7)
    check_close(v[:, 0, 0], -t.sin(), rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("state", [torch.zeros(2, 4), (torch.zeros(2, 1), torch.zeros(2, 2))])
def test_a_state_that_is_no_pair_is_refused(state: object) -> None:
    """With the pair that is wanted."""
    with pytest.raises(InvalidProblem, match=r"Integrate \(q, p\)"):
        SecondOrderField(lambda t, x, v: -x)(torch.tensor(0.0), state)


def test_an_energy_that_is_no_number_a_sample_is_refused() -> None:
    """A sum over the batch would couple samples; a vector has no gradient."""
    pair = torch.ones(2, 3), torch.ones(2, 3)
    with pytest.raises(InvalidProblem, match="one value for each sample"):
        HamiltonianField(lambda q, p: q * p)(torch.tensor(0.0), pair)


def test_augmenting_adds_zeros_behind() -> None:
    """Features or channels; the data stay, and gradients pass."""
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = Augment(5)(x)
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, :3], x)
    assert float(y[:, 3:].detach().abs().max()) == 0
    with pytest.raises(InvalidProblem, match="positive integer"):
        Augment(0)
    with pytest.raises(InvalidProblem, match=r"must be \[B, D"):
        Augment(1)(torch.zeros(3))
