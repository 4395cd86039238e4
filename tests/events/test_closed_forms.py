"""Times and states of events, and their gradients, against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import Event, ODEProblem, Solver, Unsupported, odeint_event, solve
from tests.checks import check_close, check_relative
from tests.events.known import FLOAT, TIGHT, Ball, Neuron, oscillator

GRADIENTS = ["direct", "checkpointed", "adjoint"]


def leaf(*values: float) -> Tensor:
    """A parameter."""
    value = torch.tensor(values if len(values) > 1 else values[0], dtype=FLOAT)
    return value.requires_grad_()


def ball(height: Tensor | None = None) -> Ball:
    """A ball whose every number is a parameter."""
    return Ball(leaf(1.3) if height is None else height, leaf(9.81), leaf(0.8), leaf(0.1))


def parameters(known: Ball | Neuron) -> list[Tensor]:
    """Its parameters."""
    return list(vars(known).values())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_nth_bounce_and_its_gradient_are_right(gradient: Any) -> None:  # noqa: ANN401
    """Height, gravity, restitution and floor, through all bounces before."""
    known = ball()
    found = odeint_event(known, known.y0, [0.0, 10.0], known.bounce(6), gradient=gradient, **TIGHT)
    exact = known.times(6)
    check_close(found.t, exact, rtol=0.0, atol=1e-10)
    assert int(found.ended_by) == 0
    for n in (0, 2, 5):
        ours, theirs = (
            torch.autograd.grad(t[n], parameters(known), retain_graph=True,
                                allow_unused=True, materialize_grads=True)
            for t in (found.t, exact)
        )  # fmt: skip
        check_close(torch.stack(ours), torch.stack(theirs), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_states_at_events_are_right_with_their_gradients(gradient: Any) -> None:  # noqa: ANN401
    """Before the change, and after it: the floor, and the speed there."""
    known = ball()
    found = odeint_event(known, known.y0, [0.0, 10.0], known.bounce(3), gradient=gradient, **TIGHT)
    speed = torch.sqrt(2 * known.gravity * (known.height - known.floor))
    before = -speed * known.restitution ** torch.arange(3)
    exact = torch.stack([known.floor.expand(3), before], dim=1)
    after = torch.stack([known.floor.expand(3), -known.restitution * before], dim=1)
    for ours, theirs in ((found.y, exact), (found.y_after, after), (found.y_end, exact[-1])):
        check_close(ours, theirs, rtol=0.0, atol=1e-10)
        weights = torch.linspace(0.5, 2.0, ours.numel(), dtype=FLOAT).reshape(ours.shape)
        pair = [
            torch.autograd.grad((weights * x).sum(), parameters(known), retain_graph=True)
            for x in (ours, theirs)
        ]
        check_close(torch.stack(pair[0]), torch.stack(pair[1]), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_neurons_fire_when_they_should_each_in_its_own_time(gradient: Any) -> None:  # noqa: ANN401
    """Per sample: 2, 4, 1 and no events, padded; gradients of both functions' parameters too."""
    known = Neuron(leaf(1.5, 2.0, 1.2, 0.9), leaf(1.3), leaf(1.0), leaf(-0.2))
    solver = Solver(coupling="per_sample", gradient=gradient, rtol=1e-10, atol=1e-11)
    y0 = torch.zeros(4, 1, dtype=FLOAT)
    found = odeint_event(known, y0, [0.0, 4.0], known.fire(), solver=solver)
    exact = known.times(4)
    assert found.counts.tolist() == [2, 4, 1, 0]
    assert torch.equal(found.mask, exact <= 4.0)
    assert torch.equal(found.t.isnan(), ~found.mask)
    assert torch.equal(found.which, torch.where(found.mask, 0, -1))
    check_close(found.t[found.mask], exact[found.mask], rtol=0.0, atol=1e-9)
    weights = torch.linspace(0.5, 2.0, 7, dtype=FLOAT)
    ours, theirs = (
        torch.autograd.grad((weights * t[found.mask]).sum(), parameters(known))
        for t in (found.t, exact)
    )
    check_relative(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_event_times_have_the_gradient_of_the_start(gradient: Any) -> None:  # noqa: ANN401
    """dy/dt = -t y from t0: y halves at sqrt(t0^2 + 2 log 2)."""
    t0 = leaf(0.3)
    t = torch.stack([t0, 5 + 0 * t0])
    half = Event(lambda t, y: y[0] - 0.5)
    y0 = torch.ones(1, dtype=FLOAT)
    found = odeint_event(lambda t, y: -t * y, y0, t, half, gradient=gradient, **TIGHT)
    exact = torch.sqrt(t0**2 + 2 * torch.log(torch.tensor(2.0, dtype=FLOAT)))
    check_close(found.t[0], exact, rtol=0.0, atol=1e-9)
    pair = (torch.autograd.grad(x, t0)[0] for x in (found.t[0], exact))
    check_close(*pair, rtol=0.0, atol=1e-9)


def test_second_derivatives_through_bounces_are_right_with_direct_gradients() -> None:
    """The whole Hessian of the third bounce's time, three changes of the state on the way."""
    known = ball()
    found = odeint_event(known, known.y0, [0.0, 9.0], known.bounce(3), gradient="direct", **TIGHT)
    ours, theirs = (_hessian(t[-1], parameters(known)) for t in (found.t, known.times(3)))
    check_close(ours, theirs, rtol=0.0, atol=1e-8)


def _hessian(value: Tensor, wanted: list[Tensor]) -> Tensor:
    first = torch.autograd.grad(value, wanted, create_graph=True)
    rows = [
        torch.autograd.grad(g, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
        for g in first
    ]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("of_time", [False, True])
def test_second_derivatives_of_the_event_functions_own_parameters_are_right(of_time: bool) -> None:
    """A function of the state, and one of time alone, which no solve stands behind."""
    level = leaf(0.7)
    known, event = (
        (torch.asin(level), Event(lambda t, y: torch.sin(t) - level))
        if of_time
        else (-torch.log(level**2), Event(lambda t, y: y[0] - level**2))
    )
    y0 = torch.ones(1, dtype=FLOAT)
    found = odeint_event(lambda t, y: -y, y0, [0.0, 3.0], event, gradient="direct", **TIGHT)
    twice = []
    for value in (found.t[0], known):
        (first,) = torch.autograd.grad(value, level, create_graph=True)
        twice.append(torch.autograd.grad(first, level, create_graph=True)[0])
    check_close(*twice, rtol=0.0, atol=1e-8)
    with pytest.raises(Unsupported, match="not a third time"):
        torch.autograd.grad(twice[0], level)


@pytest.mark.parametrize("gradient", ["checkpointed", "adjoint"])
@pytest.mark.parametrize("of_time", [False, True])
def test_other_second_derivatives_are_refused(gradient: Any, of_time: bool) -> None:  # noqa: ANN401
    """Never a wrong number: not even where only the event function has a parameter."""
    level = leaf(0.7)
    event = Event(lambda t, y: (torch.sin(t) if of_time else y[0]) - level**2)
    y0 = torch.ones(1, dtype=FLOAT)
    found = odeint_event(lambda t, y: -y, y0, [0.0, 3.0], event, gradient=gradient)
    (first,) = torch.autograd.grad(found.t[0], level, create_graph=True)
    with pytest.raises(Unsupported, match="a second time"):
        torch.autograd.grad(first, level)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_both_directions_of_time_and_of_the_crossing(sign: float, direction: int) -> None:
    """sin t from 0: falls through zero at pi, rises at 2 pi; backwards the other way round."""
    event = Event(lambda t, y: y[0], direction=direction, terminal=False)
    y0 = torch.tensor([0.0, 1.0], dtype=FLOAT)
    found = odeint_event(oscillator, y0, [0.0, 7.0 * sign], event, **TIGHT)
    wanted = {0: [1, 2], -int(sign): [1], int(sign): [2]}[direction]
    exact = sign * torch.pi * torch.tensor(wanted, dtype=FLOAT)
    check_close(found.t, exact, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("method", ["bosh3", "tsit5", "vern7", "dopri8", "dop853"])
def test_every_method_finds_them_to_its_tolerance(method: str) -> None:
    """Those too whose last stage is not the next first, or whose interpolant has its own stages."""
    event = Event(lambda t, y: y[0], terminal=False)
    y0 = torch.tensor([0.0, 1.0], dtype=FLOAT)
    found = odeint_event(oscillator, y0, [0.0, 7.0], event, method=method, rtol=1e-7, atol=1e-7)
    exact = torch.pi * torch.tensor([1.0, 2.0], dtype=FLOAT)
    check_close(found.t, exact, rtol=0.0, atol=1e-6)
    assert float(found.y[:, 0].abs().max()) < 1e-13  # the state at an event is on it, to rounding


def test_fixed_steps_find_them_to_the_order_of_the_method() -> None:
    """Fourth order: half the step, a sixteenth of the error."""
    event = Event(lambda t, y: y[0])
    y0 = torch.tensor([1.0, 0.0], dtype=FLOAT)
    errors = [
        odeint_event(oscillator, y0, [0.0, 2.0], event, solver=Solver(method="rk4", step=h)).t
        - torch.pi / 2
        for h in (0.1, 0.05)
    ]
    assert 14 < float(errors[0] / errors[1]) < 18


def test_single_precision_finds_them_to_its_own_accuracy() -> None:
    """Time stays double inside."""
    y0 = torch.tensor([0.0, 1.0])
    found = odeint_event(oscillator, y0, [0.0, 7.0], Event(lambda t, y: y[0], terminal=False))
    exact = torch.pi * torch.tensor([1.0, 2.0], dtype=FLOAT)
    check_close(found.t, exact, rtol=0.0, atol=1e-4)
    assert found.y.dtype == torch.float32


def test_parameters_of_an_event_module_get_their_gradient_from_backward() -> None:
    """Nothing is declared; the field's parameters are found as ever."""
    torch.manual_seed(0)
    surface, field = torch.nn.Linear(2, 1).double(), torch.nn.Linear(2, 2).double()
    torch.nn.init.zeros_(surface.bias)  # a line through the origin, about which the state turns
    y0 = torch.tensor([1.0, 0.0], dtype=FLOAT)
    event = Event(lambda t, y: surface(y)[0])
    problem = ODEProblem(
        lambda t, y: oscillator(t, y) + 0.1 * field(y), y0, [0.0, 9.0], event=event
    )
    found = solve(problem, Solver(rtol=1e-10, atol=1e-10)).event
    assert found is not None
    found.t.sum().backward()
    with torch.no_grad():
        slope = (surface.weight[0] * problem.f(found.t[0], found.y[0])).sum()
        exact = -torch.cat([found.y[0], torch.ones(1, dtype=FLOAT)]) / slope
    assert surface.weight.grad is not None
    assert surface.bias.grad is not None
    ours = torch.cat([surface.weight.grad[0], surface.bias.grad])
    check_close(ours, exact, rtol=0.0, atol=1e-9)  # dt* = -dg / (dg/dy f)
    assert field.weight.grad is not None
    assert float(field.weight.grad.abs().min()) > 0
