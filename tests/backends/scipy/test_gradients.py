"""The adjoint on SciPy's solvers loses no gradient, and says what it doubts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import ODEProblem, SolveFailed, Unsupported, odeint
from ctflow.backends.scipy import ScipyBackend
from ctflow.errors import GradientWarning
from tests.backends.scipy.cases import METHODS, NEWTON, ONE, TOL, WITHIN, scipy
from tests.backends.torchdiffeq.cases import solved
from tests.checks import check, check_close, check_relative
from tests.problems import FLOAT, decay

pytest.importorskip("scipy")

EXACT = -torch.exp(torch.tensor(-0.6, dtype=FLOAT))  # d/dw of exp(-w) at w = 0.6


class _Attribute(nn.Module):
    """Keeps a computed tensor as an attribute, which is no parameter."""

    def __init__(self, rate: Tensor) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


def _by_closure(rate: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: -rate * y


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("capture", [_Attribute, _by_closure])
@pytest.mark.parametrize("is_leaf", [True, False])
def test_captured_tensors_get_their_gradient(
    capture: Callable[[Tensor], Callable[[Tensor, Tensor], Tensor]], is_leaf: bool, method: str
) -> None:
    """Leaves, and tensors with a history of their own."""
    w = torch.tensor(0.6 if is_leaf else 0.3, dtype=FLOAT, requires_grad=True)
    y = odeint(capture(w if is_leaf else 2 * w), ONE, [0.0, 1.0], solver=scipy(method))
    (found,) = torch.autograd.grad(y[-1].sum(), w)
    check_close(found, EXACT * (1 if is_leaf else 2), rtol=WITHIN[method] * TOL)


def test_the_backward_pass_sees_the_tensors_of_the_forward_pass() -> None:
    """Although the attribute holds another one by then, which it keeps."""
    w = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    f, other = _Attribute(2 * w), torch.tensor(7.0, dtype=FLOAT)
    y = odeint(f, ONE, [0.0, 1.0], solver=scipy())
    f.rate = other
    (found,) = torch.autograd.grad(y[-1].sum(), w)
    check_close(found, 2 * EXACT, rtol=WITHIN["dopri5"] * TOL)
    check(f.rate is other, "the attribute was not put back")


@pytest.mark.parametrize("wanted", [True, False])
def test_a_branch_taken_late_is_refused(wanted: bool) -> None:
    """A tensor made anew each time, which nothing else holds; alone, or beside a known one."""
    w = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    y0 = ONE.clone().requires_grad_(wanted)

    with pytest.raises(Unsupported, match="its gradient would be lost"):
        odeint(_hidden(w), y0, [0.0, 1.0], solver=scipy())[-1].sum().backward()


def _hidden(w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Dynamics that reach w where no walk over attributes and closures can."""

    class Secret:
        __slots__ = ("get",)

    secret = Secret()
    secret.get = (lambda x: lambda: x)(w)
    return lambda t, y: -y if t < 0.5 else -y * secret.get()


def test_backward_may_run_again_while_the_graph_is_kept() -> None:
    """The same numbers."""
    y0 = ONE.clone().requires_grad_()
    y = odeint(decay, y0, [0.0, 1.0], solver=scipy("adams"))
    first, second = (torch.autograd.grad(y[-1].sum(), y0, retain_graph=True)[0] for _ in range(2))
    check_close(first, second, rtol=0)


@pytest.mark.parametrize("leaf", ["y0", "w", "t"])
def test_a_second_differentiation_raises(leaf: str) -> None:
    """The backward pass is not recorded, and says so instead of giving zero."""
    leaves = {
        "y0": ONE.clone().requires_grad_(),
        "w": torch.tensor(0.6, dtype=FLOAT, requires_grad=True),
        "t": torch.tensor([0.0, 1.0], dtype=FLOAT, requires_grad=True),
    }
    y = odeint(_by_closure(leaves["w"]), leaves["y0"], leaves["t"], solver=scipy())
    (first,) = torch.autograd.grad((y[-1] ** 2).sum(), leaves[leaf], create_graph=True)
    with pytest.raises(Unsupported, match="second time"):
        torch.autograd.grad(first.sum(), leaves["y0"])


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_that_starts_at_zero_has_its_gradient(method: str) -> None:
    """The integral of sin^2(20 t) along a path that says nothing of it (arXiv 2009.09457)."""
    theta = torch.zeros((), dtype=FLOAT, requires_grad=True)
    times = torch.tensor([0.0, 3.0], dtype=FLOAT)
    y = odeint(
        lambda t, y: theta * torch.sin(20 * t) ** 2 - 0.1 * y, ONE, times, solver=scipy(method)
    )
    (found,) = torch.autograd.grad(y[-1].sum(), theta)
    s = torch.linspace(0, 3, 300_001, dtype=FLOAT)
    exact = torch.trapezoid(torch.sin(20 * s) ** 2 * torch.exp(-0.1 * (3 - s)), s)
    check_close(found, exact, rtol=WITHIN[method] * TOL)


@pytest.mark.parametrize("method", ["dopri5", "adams"])
def test_unused_parameters_do_not_loosen_the_tolerance(method: str) -> None:
    """Unless the whole vector is one norm, as in the paper's software."""
    y0 = torch.tensor([1.0, -0.5], dtype=FLOAT, requires_grad=True)
    unused = torch.zeros(5_000, dtype=FLOAT, requires_grad=True)

    def cost(backend: str | ScipyBackend, params: tuple[Tensor, ...]) -> int:
        problem = ODEProblem(lambda t, y: torch.sin(3 * t) * y.flip(0), y0, [0.0, 3.0], params)
        solution = solved(problem, scipy(method), backend=backend)
        solution.y[-1].sum().backward()
        counts = solution.stats.backward
        check(counts is not None, "no counts")
        return int(counts.n_f_evals)

    alone, beside, whole = (
        cost("scipy", ()),
        cost("scipy", (unused,)),
        cost(ScipyBackend(norm="whole"), (unused,)),
    )
    check(abs(beside - alone) <= 0.2 * alone, f"{alone} and {beside} evaluations")
    check(whole < beside, f"{whole} and {beside} evaluations")


@pytest.mark.parametrize("method", ["adams", "radau"])
def test_the_size_of_the_loss_does_not_change_the_accuracy(method: str) -> None:
    """A tiny cotangent is solved for at size 1."""
    w = torch.tensor(0.6, dtype=FLOAT, requires_grad=True)
    y = odeint(_by_closure(w), ONE, [0.0, 1.0], solver=scipy(method))
    (found,) = torch.autograd.grad(1e-12 * y[-1].sum(), w)
    check_close(found, 1e-12 * EXACT, rtol=WITHIN[method] * TOL)


@pytest.mark.parametrize("method", METHODS)
def test_constant_dynamics_have_a_gradient(method: str) -> None:
    """Of the initial state, one; f reaches nothing."""
    y0 = ONE.clone().requires_grad_()
    y = odeint(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], solver=scipy(method))
    (found,) = torch.autograd.grad(y[-1].sum(), y0)
    check_close(found, ONE, rtol=1e-12)


@pytest.mark.parametrize("method", ["adams", "bdf"])
def test_complex_parameters_have_a_gradient(method: str) -> None:
    """By the convention of torch, for a rate that is a complex number's real part."""
    w = torch.tensor(0.6 + 0.2j, dtype=torch.complex128, requires_grad=True)
    y = odeint(lambda t, y: -(w * (1 + 1j)).real * y, ONE, [0.0, 1.0], solver=scipy(method))
    (found,) = torch.autograd.grad(y[-1].sum(), w)
    exact = -torch.exp(torch.tensor(-0.4, dtype=FLOAT)) * torch.tensor(1 - 1j)
    check_close(torch.view_as_real(found), torch.view_as_real(exact.to(w.dtype)), rtol=1e-5)


def test_a_gradient_that_is_not_finite_gives_nan() -> None:
    """And no endless solve."""
    y0 = ONE.clone().requires_grad_()
    y = odeint(decay, y0, [0.0, 1.0], solver=scipy("adams"))
    y.backward(torch.full_like(y, torch.nan))
    check(y0.grad is not None and bool(y0.grad.isnan().all()), f"{y0.grad}")


@pytest.mark.parametrize("method", ["adams", "dopri5", "bdf"])
def test_a_gradient_in_doubt_is_warned_of(method: str) -> None:
    """On Lorenz's equations, whose past cannot be found again."""
    y0 = torch.ones(3, dtype=FLOAT, requires_grad=True)

    def lorenz(t: Tensor, y: Tensor) -> Tensor:
        x, v, z = y.unbind()
        return torch.stack([10 * (v - x), x * (28 - z) - v, x * v - 8 / 3 * z])

    solution = solved(ODEProblem(lorenz, y0, [0.0, 2.0]), scipy(method, 1e-6))
    with pytest.warns(GradientWarning) as caught:
        solution.y[-1].sum().backward()
    messages = solution.gradient_report.messages
    check("in doubt" in messages[0] and len(messages) == len(caught), f"{messages}")


@pytest.mark.parametrize("method", ["adams", "dop853"])
def test_a_backward_solve_beyond_its_limit_raises(method: str) -> None:
    """The limit of steps is for the backward solve again."""
    w = torch.tensor(0.5, dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(_late(w), ONE, [0.0, 1.0])
    n_steps = int(solved(problem, scipy(method)).stats.forward.n_steps)
    y = solved(problem, scipy(method, max_steps=n_steps)).y
    with pytest.raises(SolveFailed, match="backward solve took its limit"):
        y[-1].sum().backward()


def _late(w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Dynamics whose adjoint alone oscillates: w is multiplied by something that is always zero."""
    return lambda t, y: -y + (w - 0.5) * y * torch.sin(300 * t)


@pytest.mark.parametrize("method", NEWTON)
def test_a_gradient_along_kinks_is_near(method: str) -> None:
    """Where the quadrature meets jumps of its integrand within a step."""
    w = torch.tensor([0.3, -0.4, 0.5], dtype=FLOAT, requires_grad=True)
    times = torch.tensor([0.0, 2.0], dtype=FLOAT)
    y = odeint(lambda t, y: torch.relu(t - 1 + w).sum() - y, ONE, times, solver=scipy(method, 1e-6))
    (found,) = torch.autograd.grad(y[-1].sum(), w)
    exact = 1 - torch.exp(-1 - w.detach())  # int of exp(-(2 - t)) from 1 - w to 2
    check_relative(found, exact, rtol=1e-4)


def test_a_quadrature_that_runs_out_of_pieces_is_warned_of() -> None:
    """Hundreds of jumps that the path itself does not feel, and a small limit."""
    theta = torch.zeros((), dtype=FLOAT, requires_grad=True)
    problem = ODEProblem(
        lambda t, y: theta * torch.sign(torch.sin(900 * t)) - 0.1 * y, ONE, [0.0, 1.0]
    )
    solution = solved(problem, scipy("bdf", max_steps=60))
    with pytest.warns(GradientWarning, match="error estimate of its quadrature"):
        solution.y[-1].sum().backward()
    check(solution.gradient_report.quadrature_error > 100, f"{solution.gradient_report}")
