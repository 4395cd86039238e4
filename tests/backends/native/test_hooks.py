"""What users hang on tensors is run once and in its place, and a backward pass leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, Unsupported, odeint, solve
from tests.checks import check_relative
from tests.problems import FLOAT

Y0 = torch.tensor([1.0, -0.5], dtype=FLOAT)
TIMES = torch.tensor([0.0, 1.0], dtype=FLOAT)
RTOL = 1e-7
every = pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])


def weight() -> Tensor:
    """A leaf [2] that wants a gradient."""
    return torch.tensor([0.7, -0.7], dtype=FLOAT, requires_grad=True)


def end(f: Callable[..., Any], gradient: str, args: Any = None) -> Tensor:  # noqa: ANN401
    """The state at the last time."""
    return odeint(f, Y0, TIMES, args=args, gradient=gradient, rtol=RTOL, atol=RTOL)[-1]


@every
@pytest.mark.parametrize("place", ["closure", "args", "module"])
def test_a_hook_on_a_leaf_sees_the_whole_gradient_once(place: str, gradient: str) -> None:
    """Though the backward pass of a solve differentiates by the leaf at every step."""
    layer = nn.Linear(2, 2, bias=False).double()
    w = layer.weight if place == "module" else weight()
    f, args = {
        "closure": (lambda t, y: w * y, None),
        "args": (lambda t, y, a: a["w"] * y, {"w": w}),
        "module": (lambda t, y: layer(y), None),
    }[place]
    (plain,) = torch.autograd.grad(end(f, gradient, args).sum(), w)
    seen: list[Tensor] = []
    w.register_hook(lambda g: seen.append(g.clone()) or 0.5 * g)
    (halved,) = torch.autograd.grad(end(f, gradient, args).sum(), w)
    assert len(seen) == 1
    assert torch.equal(seen[0], plain)
    assert torch.equal(halved, 0.5 * plain)


@every
def test_a_hook_on_a_computed_tensor_sees_the_whole_gradient_once(gradient: str) -> None:
    """And what it makes of it goes on to the tensor's source; retain_grad works too."""
    w = weight()
    context = 1.0 * w
    context.retain_grad()
    context.register_hook(lambda g: 0.5 * g)
    y = end(lambda t, y: context * y, gradient)
    y.sum().backward()
    check_relative((w.grad, context.grad), (0.5 * y.detach(),) * 2, rtol=10 * RTOL)


class Slotted:
    """An object without a dict."""

    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.value * y


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
@pytest.mark.parametrize("late", [True, False], ids=["hooked before backward", "before the solve"])
def test_a_hook_on_a_leaf_that_cannot_be_replaced_is_refused(late: bool, gradient: str) -> None:
    """It would run at every step."""
    w = weight()
    if not late:
        w.register_hook(lambda g: 0.5 * g)

    def whole() -> None:
        y = end(Slotted(w), gradient)
        w.register_hook(lambda g: 0.5 * g)
        y.sum().backward()

    with pytest.raises(Unsupported, match=r"hooked tensor of shape \[2\].*`args=`.*'direct'"):
        whole()


@every
def test_a_complex_parameter_gets_its_gradient(gradient: str) -> None:
    """dz/dt = w z turns and stretches: z(1) = z0 exp(w), of which the real part is the loss."""
    w = torch.tensor(0.3 + 0.5j, dtype=torch.complex128, requires_grad=True)
    z0 = torch.view_as_complex(Y0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.view_as_real(w * torch.view_as_complex(y))

    (found,) = torch.autograd.grad(end(f, gradient)[0], w)
    (exact,) = torch.autograd.grad((z0 * torch.exp(w)).real, w)
    check_relative(torch.view_as_real(found), torch.view_as_real(exact), rtol=10 * RTOL)


@every
def test_a_refused_backward_pass_puts_everything_back(gradient: str) -> None:
    """An attribute holds what it held, and the next solve is right."""

    class Field:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            self.broken = False

        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            if self.broken:
                raise KeyError("on purpose")
            return self.value * y

    w = weight()
    field = Field(1.0 * w)
    kept, y = field.value, end(field, gradient)
    field.broken = gradient != "direct"
    if field.broken:
        with pytest.raises(KeyError, match="on purpose"):
            y.sum().backward(retain_graph=True)
    field.broken = False
    assert field.value is kept
    y.sum().backward()
    check_relative(w.grad, y.detach(), rtol=10 * RTOL)


@every
@pytest.mark.parametrize("wants", ["y0", "t", "args", "w"])
def test_any_single_input_may_be_the_only_one_that_wants_a_gradient(
    wants: str, gradient: str
) -> None:
    """For dy/dt = w y + u from t0 to t1."""
    y0, t, u, w = Y0.clone(), TIMES.clone(), torch.zeros(2, dtype=FLOAT), weight().detach()
    leaf = {"y0": y0, "t": t, "args": u, "w": w}[wants].requires_grad_()
    solver = Solver(gradient=gradient, rtol=RTOL, atol=RTOL)
    y = solve(ODEProblem(lambda t, y, a: w * y + a, y0, t, args=u), solver).y[-1]
    (found,) = torch.autograd.grad(y.sum(), leaf)
    growth = torch.exp(w.detach())
    slope = w.detach() * Y0 * growth
    exact = {
        "y0": growth,
        "t": torch.stack([-slope.sum(), slope.sum()]),
        "w": Y0 * growth,
        "args": (growth - 1) / w.detach(),
    }[wants]
    check_relative(found, exact, rtol=10 * RTOL)
