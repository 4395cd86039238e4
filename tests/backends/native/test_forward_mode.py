"""Forward mode and torch.func transforms are right, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ctflow import Solver, Unsupported, odeint
from tests.checks import check_close

# Torch itself scripts its forward-mode decompositions, and has deprecated scripting.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

Y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)


def _end(y: Tensor, t: Tensor, gradient: str = "direct") -> Tensor:
    return odeint(lambda _, y: -y, y, t, gradient=gradient)[-1]  # pyright: ignore


def _times() -> Tensor:
    return torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_the_jacobian_of_the_initial_state_is_right_in_both_modes() -> None:
    """Through autograd's own graph every transform works."""
    exact = torch.eye(2, dtype=torch.float64) * torch.exp(torch.tensor(-1.0).double())
    for transform in (torch.func.jacfwd, torch.func.jacrev):
        check_close(transform(lambda y: _end(y, _times()))(Y0), exact, rtol=1e-6, atol=1e-9)


def bend(t: Tensor, y: Tensor) -> Tensor:
    """Van der Pol's equation for states [2] or [B, 2], at a rate that depends on time."""
    a, b = y.unbind(-1)
    return torch.stack([b, (1 - a * a) * b * (1 + t.reshape(-1)[0].sin()) - a], dim=-1)


SOLVERS = [
    Solver(rtol=1e-2, atol=1e-2, gradient="direct"),
    Solver(rtol=1e-2, atol=1e-2, gradient="direct", controller="pi", step_t=(0.5,)),
    Solver(rtol=1e-2, atol=1e-2, gradient="direct", method="dop853"),
    Solver(rtol=1e-2, atol=1e-2, gradient="direct", coupling="per_sample"),
    Solver(step=0.3, method="rk4", gradient="direct"),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_no_tangent_leaks_through_the_control(solver: Solver) -> None:
    """At a loose tolerance both modes differentiate the same steps: they agree to rounding."""
    rate = torch.tensor(0.7, dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.3], [2.0, -0.5]], dtype=torch.float64)

    def outputs(y: Tensor, rate: Tensor) -> Tensor:
        return odeint(lambda t, y: rate * bend(t, y), y, [0.0, 1.3, 3.0], solver=solver)

    for i in (0, 1):
        forward, reverse = (
            transform(outputs, argnums=i)(y0, rate)
            for transform in (torch.func.jacfwd, torch.func.jacrev)
        )
        check_close(forward, reverse, rtol=1e-11, atol=1e-12)


def test_second_derivatives_agree_in_every_order_of_the_modes() -> None:
    """Forward over reverse, reverse over reverse, forward over forward."""
    rate = torch.tensor(0.7, dtype=torch.float64)

    def end(rate: Tensor) -> Tensor:
        return odeint(lambda t, y: rate * bend(t, y), Y0, [0.0, 2.0], rtol=1e-2, atol=1e-2,
                      gradient="direct")[-1].sum()  # fmt: skip

    fwd, rev = torch.func.jacfwd, torch.func.jacrev
    wanted = rev(rev(end))(rate)
    for one, other in ((fwd, rev), (rev, fwd), (fwd, fwd)):
        check_close(one(other(end))(rate), wanted, rtol=1e-10)


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
@pytest.mark.parametrize("moved", ["y0", "t", "rate"])
def test_gradients_outside_the_graph_refuse_transforms(gradient: str, moved: str) -> None:
    """In both modes, whatever is differentiated; they name the gradient method that can."""
    one = torch.tensor(1.0, dtype=torch.float64)

    def end(x: Tensor) -> Tensor:
        inputs = {"y0": Y0, "t": _times(), "rate": one}
        inputs[moved] = inputs[moved] * x
        return odeint(lambda _, y: -inputs["rate"] * y, inputs["y0"], inputs["t"],
                      gradient=gradient)[-1]  # pyright: ignore  # fmt: skip

    for transform in (torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(Unsupported, match="take gradient='direct'"):
            transform(end)(one)
    with forward_ad.dual_level(), pytest.raises(Unsupported, match="take gradient='direct'"):
        end(forward_ad.make_dual(one, one))


@pytest.mark.parametrize("moved", ["y0", "rate"])
def test_where_the_gradient_is_left_open_it_is_one_that_can(moved: str) -> None:
    """Also where only what `f` reads is differentiated, which no argument shows."""
    one = torch.tensor(1.0, dtype=torch.float64)

    def end(x: Tensor) -> Tensor:
        inputs = {"y0": Y0, "rate": one}
        inputs[moved] = inputs[moved] * x
        return odeint(lambda _, y: -inputs["rate"] * y, inputs["y0"], _times())[-1]

    exact = torch.exp(-one) * (Y0 if moved == "y0" else -Y0)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        check_close(transform(end)(one), exact, rtol=1e-6, atol=1e-9)
