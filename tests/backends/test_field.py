"""What f does to its input, to its output and to itself is checked while it is integrated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import InvalidProblem, Solver, odeint
from tests.checks import check_relative
from tests.problems import FLOAT, decay

Y0 = torch.tensor([1.0, -0.5], dtype=FLOAT)
TIMES = [0.0, 1.0]
every = pytest.mark.parametrize("gradient", ["direct", "checkpointed", "adjoint"])
modes = pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__
)


def changes_its_input(t: Tensor, y: Tensor) -> Tensor:
    """Multiplies in place."""
    return y.mul_(-1.0)


def changes_a_view_of_its_input(t: Tensor, y: Tensor) -> Tensor:
    """Writes one element."""
    y[0] = 0.0
    return -y


class Reuses:
    """Returns one and the same buffer every time."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(2, dtype=FLOAT)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.buffer.copy_(-y.detach())


@modes
@every
@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize("f", [changes_its_input, changes_a_view_of_its_input])
def test_a_field_that_changes_its_input_is_refused(
    f: Callable[..., Tensor], wants: bool, gradient: str, mode: Callable[..., object]
) -> None:
    """Whatever is recorded, also where torch itself would not notice."""
    y0 = Y0.clone().requires_grad_(wants)
    with mode(), pytest.raises(InvalidProblem, match=r"must not change its input.*out-of-place"):
        odeint(f, y0, TIMES, gradient=gradient)


@modes
@every
def test_a_field_that_overwrites_its_result_is_refused(
    gradient: str, mode: Callable[..., object]
) -> None:
    """The stages of a step would all be the last one."""
    f = Reuses()
    with mode(), pytest.raises(InvalidProblem, match=r"a new tensor each time.*`out=`, `copy_`"):
        odeint(f, Y0, TIMES, gradient=gradient)


@every
@modes
def test_a_field_may_return_one_constant_or_its_input(
    gradient: str, mode: Callable[..., object]
) -> None:
    """Neither is changed, so neither is refused."""
    constant = torch.tensor([1.0, 2.0], dtype=FLOAT)
    with mode():
        line = odeint(lambda t, y: constant, Y0, TIMES, gradient=gradient)
        growth = odeint(lambda t, y: y, Y0, TIMES, gradient=gradient)
    check_relative(line[-1], Y0 + constant, rtol=1e-12)
    check_relative(growth[-1], Y0 * torch.e, rtol=1e-6)


def dropped_out(gradient: str, method: str) -> Tensor:
    """The last state under dropout, from a small state, whose noise a weight multiplies."""
    torch.manual_seed(0)
    weight = torch.ones(2, dtype=FLOAT, requires_grad=True)
    solver = Solver(method=method, step=0.25, gradient=gradient)
    return odeint(
        lambda t, y: -weight * nn.functional.dropout(y, 0.5), Y0 * 1e-6, TIMES, solver=solver
    )[-1]


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_noise_is_noticed_when_steps_are_redone(method: str) -> None:
    """The gradient would be that of other noise."""
    with pytest.raises(InvalidProblem, match=r"same value twice.*dropout.*'direct'"):
        dropped_out("checkpointed", method).sum().backward()


def test_direct_keeps_the_noise_that_was_drawn() -> None:
    """It is what the message recommends."""
    dropped_out("direct", "rk4").sum().backward()


@every
def test_a_field_that_differentiates_needs_enable_grad(gradient: str) -> None:
    """Without it, where gradients are off, the message asks for it; with it the solve is right."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -torch.autograd.grad((0.5 * y * y).sum(), y)[0]

    def careful(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.requires_grad_() if y.is_leaf else y
            return -torch.autograd.grad((0.5 * y * y).sum(), y, create_graph=True)[0]

    with torch.no_grad(), pytest.raises(InvalidProblem, match="enable_grad"):
        odeint(f, Y0, TIMES, gradient=gradient)
    y0 = Y0.clone().requires_grad_()
    y = odeint(careful, y0, TIMES, gradient=gradient)[-1]
    check_relative(
        torch.autograd.grad(y.sum(), y0)[0], torch.full((2,), torch.e**-1, dtype=FLOAT), rtol=1e-6
    )


@every
def test_the_state_of_an_inner_derivative_leaves_no_mark(gradient: str) -> None:
    """f calls requires_grad_ on its input; y0 and the result keep what they were under no_grad."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return -torch.autograd.grad((0.5 * y * y).sum(), y)[0]

    with torch.no_grad():
        y = odeint(f, Y0, TIMES, gradient=gradient)
    assert not y.requires_grad
    assert not Y0.requires_grad


@every
def test_modes_without_gradients_give_the_same_bits(gradient: str) -> None:
    """no_grad, inference_mode and a recorded solve agree; none leaks into the next."""
    layer = nn.Linear(2, 2).double()
    results = []
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            y = odeint(lambda t, y: torch.tanh(layer(y)), Y0, [0.0, 0.3, 1.0], gradient=gradient)
        results.append(y.detach().clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    y.sum().backward()
    assert layer.weight.grad is not None


ADAPTIVE = [(name, None) for name in ("bosh3", "dopri5", "tsit5")]
FIXED = [(name, 0.3) for name in ("euler", "midpoint", "rk4", "bosh3", "dopri5", "tsit5")]


@pytest.mark.parametrize(("method", "part"), ADAPTIVE + FIXED)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, -2.0), (0.1, 0.1 + 1e-9)])
@every
def test_f_is_never_asked_outside_the_interval(
    method: str, part: float | None, ends: tuple[float, float], gradient: str
) -> None:
    """Neither before t0 nor beyond t1, forward or backward, at the first step or the last."""
    seen = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t.item())
        return decay(t, y) * (1 + t)

    y0, t = Y0.clone().requires_grad_(), torch.tensor(ends, dtype=FLOAT, requires_grad=True)
    step = None if part is None else part * abs(ends[1] - ends[0])
    y = odeint(f, y0, t, solver=Solver(method=method, step=step, gradient=gradient))
    y.sum().backward()
    assert min(ends) <= min(seen) <= max(seen) <= max(ends)
    assert seen[0] == ends[0]
