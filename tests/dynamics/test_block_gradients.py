"""Gradients through `ODEBlock` are right, for all that can reach its output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctflow import Solver
from ctflow.dynamics import MLP, ConcatSquashLinear, ODEBlock
from tests.checks import check_close, check_relative

gradients = pytest.mark.parametrize("gradient", ["direct", "checkpointed"])


def block_and_input(gradient: str) -> tuple[ODEBlock, Tensor]:
    """A float64 layer with a fixed step, whose output is a smooth function of everything."""
    torch.manual_seed(0)
    field = MLP(2, (5,), layer=ConcatSquashLinear).double()
    solver = Solver(method="rk4", step=0.25, gradient=gradient)
    return ODEBlock(field, solver=solver), torch.randn(3, 2, dtype=torch.float64)


@gradients
def test_gradients_agree_with_finite_differences(gradient: str) -> None:
    """For the input, every parameter and every output time, on a fixed step grid."""
    block, x = block_and_input(gradient)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    inputs = [leaf.detach().requires_grad_() for leaf in (x, t, *block.parameters())]

    class Trajectory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.block.trajectory(x, t)

    layer = Trajectory()
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, t: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, named, (x, t))

    assert torch.autograd.gradcheck(call, inputs)


@gradients
def test_gradients_reach_args(gradient: str) -> None:
    """d/dr of exp(r) is exp(r)."""
    solver = Solver(rtol=1e-10, atol=1e-12, gradient=gradient)
    block = ODEBlock(lambda t, y, args: args["rate"] * y, solver=solver)
    rate = torch.tensor([[0.3], [-0.7]], dtype=torch.float64, requires_grad=True)
    block(torch.ones(2, 1, dtype=torch.float64), {"rate": rate}).sum().backward()
    check_close(rate.grad, rate.detach().exp(), rtol=1e-8)


@gradients
def test_gradients_reach_replaced_parameters_that_are_themselves_computed(gradient: str) -> None:
    """`functional_call` puts the old parameters back before the backward pass runs."""
    block, x = block_and_input(gradient)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    scaled = {name: scale * value.detach() for name, value in block.named_parameters()}
    torch.func.functional_call(block, scaled, (x,)).square().sum().backward()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(0.5)
    block(x).square().sum().backward()
    pairs = [(p.grad, 2.0 * p.detach()) for p in block.parameters()]
    expected = torch.stack([(grad * value).sum() for grad, value in pairs]).sum()
    check_relative(scale.grad, expected, rtol=1e-10)


@gradients
def test_a_failing_neighbour_does_not_change_the_result_of_a_sample(gradient: str) -> None:
    """The same gradient for sample 0, beside a neighbour a thousand times as fast."""
    solver = Solver(rtol=1e-8, atol=1e-10, gradient=gradient)
    block = ODEBlock(lambda t, y, rate: -rate * y, solver=solver)
    rate = torch.tensor([[0.5], [500.0]], dtype=torch.float64)
    alone, together = (torch.ones(n, 1).double().requires_grad_() for n in (1, 2))
    block(alone, rate[:1])[0].sum().backward()
    block(together, rate)[0].sum().backward()
    assert torch.equal(alone.grad[0], together.grad[0])
    assert together.grad[1] == 0


def test_the_layer_learns() -> None:
    """A few steps of gradient descent lower the loss."""
    torch.manual_seed(0)
    block = ODEBlock(MLP(2, (16,)))
    x = torch.randn(32, 2)
    target = torch.stack([x[:, 1], -x[:, 0]], dim=1)
    optimiser = torch.optim.Adam(block.parameters(), lr=0.03)
    losses: list[float] = []
    for _ in range(30):
        loss = (block(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
