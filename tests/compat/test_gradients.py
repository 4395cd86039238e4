"""Gradients through solves that programs written for torchdiffeq take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctflow import Unsupported
from ctflow.compat.torchdiffeq import odeint, odeint_adjoint
from tests.compat.fields import BOTH, DOUBLE, GRID, IMPLICIT, Network, start, times

_METHODS = ("dopri8", "dopri5", "tsit5", "bosh3", *GRID, *IMPLICIT)
_TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _gradients(
    interface: Callable[..., Any], t: Tensor, field: Network | None = None, **settings: object
) -> list[Tensor | None]:
    """Gradients of y0, t and both weights for one loss on all outputs."""
    field, y0 = field or Network(), start()
    y = interface(field, y0, t, **settings)
    (y**2).sum().backward()
    return [y0.grad, t.grad, field.first.grad, field.second.grad, field.unused.grad]


@pytest.mark.parametrize(
    ("interface", "method"),
    [
        ("odeint", "dopri5"),
        ("odeint", "dopri8"),
        ("odeint_adjoint", "dopri5"),
        ("odeint_adjoint", "dopri8"),
        ("odeint_adjoint", "scipy_solver"),  # where torchdiffeq's odeint has no gradient
    ],
)
def test_gradients_are_those_of_torchdiffeq(interface: str, method: str) -> None:
    """Of the state, the times and the parameters; both at tight tolerance."""
    theirs, mine = (
        _gradients(getattr(lib, interface), times(grad=True), method=method, **_TIGHT)
        for lib in BOTH
    )
    for a, b in zip(theirs[:4], mine[:4], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("method", _METHODS)
def test_direct_gradients_are_those_of_the_steps(method: str) -> None:
    """Finite differences on the same steps; the times are constants here."""
    options = {} if method in _METHODS[:4] else {"step_size": 0.25}
    field = Network()

    def end(y0: Tensor, first: Tensor) -> Tensor:
        own = torch.func.functional_call  # the weights as an input
        return odeint(
            lambda t, y: own(field, {"first": first}, (t, y)),
            y0, times(3, 1.0), method=method, options=options, rtol=1e-6, atol=1e-10,
        )[1:]  # fmt: skip

    inputs = (start(), field.first.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(end, inputs, eps=1e-5, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("method", ["rk4", "explicit_adams", "gl4", "bosh3"])
def test_the_adjoint_agrees_with_the_direct_gradient(method: str) -> None:
    """With small steps both are the gradient of the solution."""
    options = None if method == "bosh3" else {"step_size": 0.02}
    if method == "explicit_adams":  # at its highest order it is unstable on the way back
        options = {"step_size": 0.02, "max_order": 5}
    settings = {"method": method, "options": options, "rtol": 1e-8, "atol": 1e-9}
    direct, adjoint = (
        _gradients(f, times(3, 1.0, grad=True), **settings) for f in (odeint, odeint_adjoint)
    )
    for a, b in zip(direct[:4], adjoint[:4], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_gradients_of_times_are_right_where_steps_are_given() -> None:
    """torchdiffeq's are zero at times that lie on the grid."""
    t = times(3, 1.0, grad=True)
    settings: dict[str, Any] = {"method": "rk4", "options": {"step_size": 0.02}}
    odeint(Network(), start(), t, **settings)[-1].sum().backward()
    exact = times(3, 1.0, grad=True)
    odeint(Network(), start(), exact, rtol=1e-11, atol=1e-11)[-1].sum().backward()
    torch.testing.assert_close(t.grad, exact.grad, rtol=1e-6, atol=1e-7)


def test_parameters_that_are_not_reached_get_zeros_from_the_adjoint() -> None:
    """As in torchdiffeq; through the solver they get none."""
    *_, unused = _gradients(odeint_adjoint, times())
    assert torch.equal(unused, torch.zeros_like(unused))
    assert _gradients(odeint, times())[-1] is None


def test_the_adjoint_finds_what_adjoint_params_leaves_out() -> None:
    """torchdiffeq gives no gradient there, without a word."""
    field = Network()
    y = odeint_adjoint(lambda t, y: field(t, y), start(), times(), adjoint_params=(field.first,))
    y[-1].sum().backward()
    assert field.second.grad is not None
    expected = _reference(field, start())
    torch.testing.assert_close(field.second.grad, expected[1], rtol=1e-4, atol=1e-5)


def test_a_tensor_with_a_history_gets_its_gradient_once() -> None:
    """A weight that is computed from another, kept as an attribute."""
    scale = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)

    class Scaled(nn.Module):
        def __init__(self, rate: Tensor) -> None:
            super().__init__()
            self.rate = rate

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate * y

    y = odeint_adjoint(Scaled(2 * scale), torch.ones(1, dtype=DOUBLE), times(2, 1.0))
    y[-1].sum().backward()
    torch.testing.assert_close(
        scale.grad, -2 * torch.exp(-torch.ones(()).double()), rtol=1e-5, atol=0
    )


def test_a_computed_tensor_may_be_kept_in_parts() -> None:
    """As splines keep their coefficients, of which only the whole is in `adjoint_params`."""
    knots = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    whole = 2 * knots

    class Spline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", whole[:1])
            self.register_buffer("high", whole[1:])

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.low + t * self.high + 0 * y

    y0 = torch.zeros(1, dtype=DOUBLE)
    odeint_adjoint(Spline(), y0, times(2, 1.0), adjoint_params=(whole,))[-1].sum().backward()
    torch.testing.assert_close(knots.grad, torch.tensor([2.0, 1.0], dtype=DOUBLE))


def test_a_norm_of_the_adjoint_gets_torchdiffeqs_tuple() -> None:
    """(t, *y, *adjoint, *parameters' adjoints), in their own shapes."""
    seen: set[tuple[tuple[int, ...], ...]] = set()
    field = Network()

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        seen.add(tuple(tuple(part.shape) for part in parts))
        return torch.stack([part.abs().max() for part in parts]).max()

    def pair(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return field(t, y[0]), -y[1]

    y0 = (start(), torch.ones(4, dtype=DOUBLE))
    y = odeint_adjoint(
        pair, y0, times(2), adjoint_params=(field.first,), adjoint_options={"norm": norm}
    )
    y[0].sum().backward()
    assert seen == {((), (2, 3), (4,), (2, 3), (4,), (3, 8))}


def test_the_seminorm_saves_steps() -> None:
    """And leaves the gradient right to its tolerance."""
    counts: list[int] = []
    for norm in (None, "seminorm"):
        field = Network()
        options = {} if norm is None else {"norm": norm}
        y = odeint_adjoint(field, start(), times(2), rtol=1e-8, atol=1e-8, adjoint_options=options)
        before = field.n_calls
        y.sum().backward()
        counts.append(field.n_calls - before)
    assert counts[1] <= counts[0]


def test_the_backward_solve_may_have_a_method_of_its_own() -> None:
    """Forward dopri5, backward rk4 with steps of its own size."""
    settings: dict[str, Any] = {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.02}}
    mixed = _gradients(odeint_adjoint, times(3, 1.0), **settings)
    exact = _gradients(odeint, times(3, 1.0), **_TIGHT)
    for a, b in zip(exact[2:4], mixed[2:4], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_second_derivatives_go_through_the_steps() -> None:
    """Of `odeint` on Runge-Kutta methods; the adjoint refuses, where torchdiffeq is silent."""

    def cube(t: Tensor, y: Tensor) -> Tensor:
        return -(y**3)

    y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    end = odeint(cube, y0, times(2, 1.0), **_TIGHT)[-1].sum()  # y0 / sqrt(1 + 2 y0^2)
    (first,) = torch.autograd.grad(end, y0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y0)
    torch.testing.assert_close(first.item(), 3**-1.5, rtol=1e-6, atol=0)
    torch.testing.assert_close(second.item(), -6 * 3**-2.5, rtol=1e-6, atol=0)
    end = odeint_adjoint(cube, y0, times(2, 1.0))[-1].sum()
    (first,) = torch.autograd.grad(end, y0, create_graph=True)
    with pytest.raises(Unsupported, match="second time"):
        first.sum().backward()


def test_the_adjoint_goes_back_under_the_autocast_of_the_way_forth() -> None:
    """As in torchdiffeq; casts of parameters that autocast keeps are not taken for others."""
    found: list[Tensor] = []
    for lib in BOTH:
        field, y0 = nn.Linear(2, 2), torch.ones(3, 2, requires_grad=True)
        with torch.no_grad():
            field.weight.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = lib.odeint_adjoint(
                lambda t, y, field=field: field(y).float(), y0, torch.tensor([0.0, 1.0]),
                method="rk4", options={"step_size": 0.25}, adjoint_params=tuple(field.parameters()),
            )  # fmt: skip
        y[-1].sum().backward()
        found.append(y0.grad)
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-2)


def test_transforms_go_through_odeint_and_are_refused_elsewhere() -> None:
    """By name; torchdiffeq's adaptive solvers fail deep inside."""
    y0, t = torch.ones(2, dtype=DOUBLE), times(2, 1.0)
    jacobian = torch.func.jacrev(lambda y0: odeint(lambda t, y: -y, y0, t)[-1])(y0)
    torch.testing.assert_close(jacobian, torch.exp(-t[-1]) * torch.eye(2).double())
    with pytest.raises(Unsupported, match=r"torch\.func"):
        torch.func.jacrev(lambda y0: odeint_adjoint(lambda t, y: -y, y0, t)[-1])(y0)
    with pytest.raises(Unsupported, match=r"torch\.func"):
        torch.func.jacrev(lambda y0: odeint(lambda t, y: -y, y0, t, method="gl4")[-1])(y0)


def _reference(field: Network, y0: Tensor) -> tuple[Tensor, ...]:
    y = odeint(field, y0, times(), **_TIGHT)
    return torch.autograd.grad(y[-1].sum(), (field.first, field.second))
