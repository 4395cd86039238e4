"""The adjoint through torchdiffeq loses no gradient, and says what it cannot do."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ctflow import SolveFailed, Tolerances, Unsupported, odeint
from tests.backends.torchdiffeq.cases import TDQ, TOL
from tests.checks import check, check_close
from tests.problems import FLOAT, decay

ADJOINT = replace(TDQ, gradient="adjoint")
ONE = torch.ones(1, dtype=FLOAT)
EXACT = -torch.exp(torch.tensor(-0.6, dtype=FLOAT))  # d/dw of exp(-2 w) at w = 0.3, halved below


class _Attribute(nn.Module):
    """Keeps a computed tensor as an attribute, which is no parameter."""

    def __init__(self, rate: Tensor) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


def _by_closure(rate: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: -rate * y


def _by_default(rate: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def f(t: Tensor, y: Tensor, *, rates: dict[str, Tensor] = {"a": rate}) -> Tensor:  # noqa: B006
        return -rates["a"] * y

    return f


@pytest.mark.parametrize("capture", [_Attribute, _by_closure, _by_default])
@pytest.mark.parametrize("is_leaf", [True, False])
def test_captured_tensors_get_their_gradient(
    capture: Callable[[Tensor], Callable[[Tensor, Tensor], Tensor]], is_leaf: bool
) -> None:
    """Leaves, and tensors with a history of their own."""
    w = torch.tensor(0.6 if is_leaf else 0.3, dtype=FLOAT, requires_grad=True)
    y = odeint(capture(w if is_leaf else 2 * w), ONE, [0.0, 1.0], solver=ADJOINT)
    (found,) = torch.autograd.grad(y[-1].sum(), w)
    check_close(found, EXACT * (1 if is_leaf else 2), rtol=10 * TOL)


def test_computed_args_get_their_gradient() -> None:
    """In any nesting, beside values that are no tensors."""
    w = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    args = {"rates": [2 * w], "name": "decay"}
    y = odeint(lambda t, y, args: -args["rates"][0] * y, ONE, [0.0, 1.0], args=args, solver=ADJOINT)
    (found,) = torch.autograd.grad(y[-1].sum(), w)
    check_close(found, 2 * EXACT, rtol=10 * TOL)


def test_the_backward_pass_sees_the_tensors_of_the_forward_pass() -> None:
    """Although the attribute holds another one by then, which it keeps."""
    w = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    f, other = _Attribute(2 * w), torch.tensor(7.0, dtype=FLOAT)
    y = odeint(f, ONE, [0.0, 1.0], solver=ADJOINT)
    f.rate = other
    (found,) = torch.autograd.grad(y[-1].sum(), w)
    check_close(found, 2 * EXACT, rtol=10 * TOL)
    check(f.rate is other, "the attribute was not put back")


def test_a_branch_taken_late_is_refused_or_right() -> None:
    """A tensor first used halfway is found where it is kept; a new one each time cannot be."""
    w = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    y0 = ONE.clone().requires_grad_()
    late = odeint(lambda t, y: -y if t < 0.5 else -w * y, y0, [0.0, 1.0], solver=ADJOINT)
    (found,) = torch.autograd.grad(late[-1].sum(), w)
    check_close(found, -0.5 * late[-1, 0].detach(), rtol=1e-4)  # f jumps
    hidden = iter([w] * 10_000)
    y = odeint(lambda t, y: -y if t < 0.5 else -next(hidden) * y, y0, [0.0, 1.0], solver=ADJOINT)
    with pytest.raises(Unsupported, match="had not used at the start"):
        y[-1].sum().backward()


def test_backward_may_run_again_while_the_graph_is_kept() -> None:
    """With the same result; and not after it was freed."""
    w = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    loss = odeint(_by_closure(2 * w), ONE, [0.0, 1.0], solver=ADJOINT)[-1].sum()
    grads = [torch.autograd.grad(loss, w, retain_graph=retain)[0] for retain in (True, True, False)]
    assert grads[0] == grads[1] == grads[2]
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, w)


@pytest.mark.parametrize("leaf", ["y0", "w", "t"])
def test_a_second_differentiation_raises(leaf: str) -> None:
    """Of any first gradient; torchdiffeq alone drops it without a word."""
    leaves = {
        "y0": ONE.clone().requires_grad_(),
        "w": torch.tensor(0.3, dtype=FLOAT, requires_grad=True),
        "t": torch.tensor([0.0, 1.0], dtype=FLOAT, requires_grad=True),
    }
    y = odeint(_by_closure(leaves["w"]), leaves["y0"], leaves["t"], solver=ADJOINT)
    (first,) = torch.autograd.grad((y[-1] ** 2).sum(), leaves[leaf], create_graph=True)
    with pytest.raises(Unsupported, match="second time"):
        torch.autograd.grad(first.sum(), leaves[leaf])


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_a_solve_leaves_nothing_behind(gradient: str) -> None:
    """Nothing of it waits for the garbage collector."""

    def alive_after() -> list[bool]:
        context = 2 * torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
        f, y0 = _Attribute(context), ONE.clone().requires_grad_()
        t = torch.tensor([0.0, 0.5, 1.0], dtype=FLOAT, requires_grad=True)
        y = odeint(f, y0, t, solver=replace(TDQ, gradient=gradient))
        y.sum().backward()
        watched = [weakref.ref(x) for x in (y, f, context, y0, t)]
        del f, y0, t, y, context
        return [ref() is not None for ref in watched]

    gc.collect()
    gc.disable()
    try:
        assert alive_after() == [False] * 5
    finally:
        gc.enable()


def test_a_backward_solve_that_stops_raises() -> None:
    """With its own limit, time, tolerances, and a way out."""
    y0 = ONE.clone().requires_grad_()
    solver = replace(ADJOINT, rtol=1e-3, atol=1e-3, max_steps=30, backward=Tolerances(1e-12, 1e-12))
    y = odeint(lambda t, y: -20 * y, y0, [0.0, 1.0], solver=solver)
    with pytest.raises(SolveFailed, match=r"backward pass .*MAX_STEPS.*\[1, 0\] after 30 .*1e-12"):
        y[-1].sum().backward()


def test_a_derivative_that_is_not_finite_raises() -> None:
    """The square root has none at zero, where the state stays."""
    y0 = torch.zeros(1, dtype=FLOAT, requires_grad=True)
    y = odeint(lambda t, y: torch.sqrt(y.abs()), y0, [0.0, 1.0], solver=ADJOINT)
    with pytest.raises(SolveFailed, match="NON_FINITE"):
        y[-1].sum().backward()


def test_backward_tolerances_are_those_of_the_backward_solve() -> None:
    """Tight ones take more steps, and the forward solve does not change."""

    def n_steps(backward: Tolerances | None) -> int:
        seen: list[float] = []

        def f(t: Tensor, y: Tensor) -> Tensor:
            seen.append(float(t))
            return -y * y

        y0 = ONE.clone().requires_grad_()
        y = odeint(f, y0, [0.0, 1.0], solver=replace(ADJOINT, rtol=1e-4, backward=backward))
        seen.clear()
        y[-1].sum().backward()
        return len(seen)

    check(n_steps(Tolerances(1e-10, 1e-12)) > 2 * n_steps(Tolerances(1e-4, 1e-6)), "not tighter")
    assert n_steps(Tolerances(1e-4, TOL)) == n_steps(None)


def test_the_size_of_the_loss_does_not_change_the_accuracy() -> None:
    """The adjoint is linear: its absolute tolerance is meant for a gradient of size one."""
    grads: list[Tensor] = []
    for size in (1.0, 1e-8, 1e8):
        w = torch.tensor(0.6, dtype=FLOAT, requires_grad=True)
        y = odeint(_by_closure(w), ONE, [0.0, 1.0], solver=ADJOINT)
        grads.append(torch.autograd.grad(size * y[-1].sum(), w)[0] / size)
    check_close(torch.stack(grads), EXACT.expand(3), rtol=10 * TOL)


def test_a_gradient_that_is_not_finite_gives_nan() -> None:
    """As autograd would, so that a loss scaler can see it."""
    y0 = ONE.clone().requires_grad_()
    y = odeint(decay, y0, [0.0, 1.0], solver=ADJOINT)
    (y[-1].sum() * torch.inf).backward()
    check(bool(y0.grad is not None and y0.grad.isnan().all()), f"{y0.grad}")


def test_constant_dynamics_have_a_gradient() -> None:
    """torchdiffeq alone cannot differentiate an f without a graph."""
    y0 = ONE.clone().requires_grad_()
    odeint(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], solver=ADJOINT).sum().backward()
    assert y0.grad is not None
    assert y0.grad.tolist() == [2.0]


def test_a_changed_output_does_not_change_the_backward_pass() -> None:
    """torchdiffeq keeps the outputs for it; what is handed out is a copy."""
    y0 = ONE.clone().requires_grad_()
    y = odeint(decay, y0, [0.0, 1.0], solver=ADJOINT)
    y[0].detach().mul_(0)
    (found,) = torch.autograd.grad(y[-1].sum(), y0)
    check_close(found, torch.exp(-ONE), rtol=10 * TOL)


def test_complex_parameters_are_refused() -> None:
    """torchdiffeq's adjoint would take them for real ones."""
    w = torch.tensor(1j, dtype=torch.complex128, requires_grad=True)
    with pytest.raises(Unsupported, match="complex"):
        odeint(lambda t, y: (w * y).imag, ONE, [0.0, 1.0], solver=ADJOINT)


def test_a_gradient_hook_runs_once() -> None:
    """On the states, on y0 and on a captured leaf, though f is evaluated many times."""
    w, y0 = (torch.tensor(x, dtype=FLOAT, requires_grad=True) for x in (0.6, 1.0))
    y0.register_hook(lambda g: 2 * g)
    y = odeint(_by_closure(w), y0, [0.0, 1.0], solver=ADJOINT)
    y.register_hook(lambda g: 3 * g)
    y[-1].backward()
    assert y0.grad is not None
    check_close(y0.grad, -6 * EXACT, rtol=10 * TOL)
    w.grad = None
    w.register_hook(lambda g: 2 * g)
    odeint(_by_closure(w), ONE, [0.0, 1.0], solver=ADJOINT)[-1].backward()
    check_close(w.grad, 2 * EXACT, rtol=10 * TOL)
