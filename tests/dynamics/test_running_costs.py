"""Running costs are what their formulas say, with gradients, in any solve."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, ODEProblem, Solver, solve
from ctflow.dynamics import (
    MLP,
    ConcatSquashLinear,
    ConvField,
    JacobianNorm,
    KineticEnergy,
    ODEBlock,
    Sum,
    TaylorNorm,
    rademacher_like,
)
from tests.checks import check_close, check_relative

FLOAT = torch.float64


def wave(t: Tensor, y: Tensor) -> Tensor:
    """The field of y = y0 + sin(2 t) for every start."""
    return 2 * torch.cos(2 * t) * torch.ones_like(y)


@pytest.mark.parametrize(("order", "factor"), [(1, 2.0), (2, -4.0), (3, -8.0), (4, 16.0)])
@pytest.mark.parametrize("shape", [(), (3, 1)], ids=["shared", "per-sample"])
def test_a_taylor_norm_is_the_square_of_a_time_derivative(
    order: int, factor: float, shape: tuple[int, ...]
) -> None:
    """Of sin(2 t), through the dependence on time."""
    t = torch.full(shape, 0.3, dtype=FLOAT)
    turned = math.cos(0.6) if order % 2 else math.sin(0.6)
    cost = TaylorNorm(wave, order)(t, torch.randn(3, 5, dtype=FLOAT))
    check_close(cost, torch.full((3,), (factor * turned) ** 2, dtype=FLOAT), rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_taylor_norm_sees_the_dependence_on_the_state(order: int) -> None:
    """y' = a y has the derivatives a^K y, for pairs too, and with `args`."""
    y = (torch.tensor([[2.0]], dtype=FLOAT), torch.tensor([[3.0, 0.0]], dtype=FLOAT))

    def growth(t: Tensor, y: tuple[Tensor, ...], rate: float) -> tuple[Tensor, ...]:
        return tuple(rate * leaf for leaf in y)

    cost = TaylorNorm(growth, order)(torch.tensor(0.0, dtype=FLOAT), y, 1.5)
    check_close(cost, torch.tensor([1.5 ** (2 * order) * 13 / 3], dtype=FLOAT), rtol=1e-10)


def test_the_jacobian_norm_is_right_on_average() -> None:
    """Over all signs of the noise it is the mean of squares of the Jacobian's columns."""
    torch.manual_seed(0)
    field = MLP(3, (7,)).double()
    y, t = torch.randn(1, 3, dtype=FLOAT), torch.tensor(0.0, dtype=FLOAT)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=FLOAT)] * 3)
    cost = JacobianNorm(field, signs)(t, y.expand(8, 3))
    jacobian = torch.autograd.functional.jacobian(lambda y: field(t, y), y)
    check_close(cost.mean(), jacobian.square().sum() / 3, rtol=1e-10)


def test_rademacher_noise_is_fair_and_of_the_same_kind() -> None:
    """-1 and 1 alone, mean 0, and no gradient."""
    torch.manual_seed(0)
    noise = rademacher_like(torch.zeros(10_000, requires_grad=True, dtype=FLOAT))
    assert (noise.dtype, noise.requires_grad) == (FLOAT, False)
    assert noise.abs().unique().tolist() == [1.0]
    assert abs(float(noise.mean())) < 0.05


def costs_of(field: nn.Module, x: Tensor) -> dict[str, object]:
    """Every cost, for one field."""
    noise = rademacher_like(x)
    kinetic, jacobian = KineticEnergy(field), JacobianNorm(field, noise)
    return {
        "kinetic": kinetic,
        "jacobian": jacobian,
        "taylor 2": TaylorNorm(field, 2),
        "taylor 3": TaylorNorm(field, 3),
        "rnode": Sum((kinetic, jacobian), (0.5, 0.25)),
    }


@pytest.mark.parametrize("name", ["kinetic", "jacobian", "taylor 2", "taylor 3", "rnode"])
@pytest.mark.parametrize(
    ("coupling", "gradient"), [("shared", "adjoint"), ("per_sample", "checkpointed")]
)
def test_the_gradient_of_an_integrated_cost_is_that_of_a_sum_over_the_path(
    name: str, coupling: str, gradient: str
) -> None:
    """For the parameters and the start, in any gradient method."""
    torch.manual_seed(0)
    field, x = MLP(2, (5,), layer=ConcatSquashLinear).double(), torch.randn(3, 2, dtype=FLOAT)
    x.requires_grad_()
    cost = costs_of(field, x)[name]
    solver = Solver(rtol=1e-7, atol=1e-7, gradient=gradient, coupling=coupling)
    total = ODEBlock(field, solver=solver).solve(x, running_cost=cost).cost[-1].sum()
    found = torch.autograd.grad(total, (x, *field.parameters()), allow_unused=True)
    nodes = torch.linspace(0, 1, 41, dtype=FLOAT)  # Simpson's rule on a path solved for directly
    path = solve(ODEProblem(field, x, nodes), Solver(rtol=1e-7, atol=1e-7, gradient="direct")).y
    values = torch.stack([cost(t, y) for t, y in zip(nodes, path, strict=True)]).sum(1)
    weights = torch.tensor([1.0, *[4.0, 2.0] * 19, 4.0, 1.0], dtype=FLOAT) / 120
    expected = (weights * values).sum()
    wanted = torch.autograd.grad(expected, (x, *field.parameters()), allow_unused=True)
    check_close(total, expected, rtol=1e-5)
    blank = [torch.zeros_like(p) for p in (x, *field.parameters())]
    check_relative(_filled(found, blank), _filled(wanted, blank), rtol=1e-4)


def _filled(found: tuple[Tensor | None, ...], blank: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(zero if g is None else g for g, zero in zip(found, blank, strict=True))


@pytest.mark.parametrize("name", ["kinetic", "jacobian", "taylor 2", "taylor 3"])
def test_a_convolutional_field_has_every_cost(name: str) -> None:
    """Group normalisations and convolutions are differentiable often enough."""
    torch.manual_seed(0)
    field, x = ConvField(2, activation=nn.Tanh), torch.randn(2, 2, 3, 3)
    block = ODEBlock(field, solver=Solver(method="euler", step=0.5, gradient="direct"))
    block.solve(x, running_cost=costs_of(field, x)[name]).cost[-1].sum().backward()
    grads = [p.grad for name, p in field.named_parameters() if "weight" in name]
    assert all(float(grad.norm()) > 0 for grad in grads)


def test_wrong_settings_are_refused() -> None:
    """With what to do instead."""
    with pytest.raises(InvalidProblem, match="must be a positive integer"):
        TaylorNorm(wave, 0)
    with pytest.raises(InvalidProblem, match="one for each cost"):
        Sum((KineticEnergy(wave),), ())
    with pytest.raises(InvalidProblem, match="must have the shape of the state"):
        JacobianNorm(wave, torch.ones(2, 3))(torch.tensor(0.0), torch.ones(2, 4))
