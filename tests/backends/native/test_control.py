"""The controls judge steps by their error, and are no part of the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, ODEProblem, Solver, Status, solve
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import Adaptive, Fixed, OnGrid, Span
from ctflow.backends.native.methods import IMPLICIT, METHODS
from ctflow.backends.native.step import Step, rk_step
from tests.backends.native.stubs import SeenField
from tests.problems import FLOAT, decay

DOPRI5, E = METHODS["dopri5"], METHODS["dopri5"].e or ()
CONTROL = Adaptive(rtol=1e-3, atol=1e-3)


def step_with_error(*errors: float) -> Step:
    """A step of length 1 for each sample, whose error estimate is so many tolerances.

    Both ends are 0, so the tolerance is atol; only the first stage is not zero.
    """
    zero = torch.zeros(len(errors), 1, dtype=FLOAT)
    k = torch.tensor(errors, dtype=FLOAT).unsqueeze(1) * CONTROL.atol / E[0]
    t0 = torch.zeros(len(errors), dtype=FLOAT)
    return Step(t0, t0 + 1, zero, zero, zero + 1, (k, *[zero] * 6))


def judged(*errors: float) -> tuple[list[bool], list[float], list[bool]]:
    """Verdict on such a step whose size was wanted to be 1."""
    ones = torch.ones(len(errors), dtype=FLOAT)
    accepted, size, finite, _ = CONTROL.judge(DOPRI5, step_with_error(*errors), ones)
    return accepted.tolist(), size.tolist(), finite.tolist()


def test_a_step_counts_up_to_its_tolerance() -> None:
    """At 0.999 tolerances it does, at 1.001 it does not."""
    accepted, _, finite = judged(0.999, 1.001)
    assert accepted == [True, False]
    assert finite == [True, True]


def test_the_next_size_follows_hairers_formula() -> None:
    """0.9 error^(-1/5), never above 10, never below 0.2, whether the step counts or not."""
    _, size, _ = judged(0.1, 0.0, 0.99, 2.0, 1e9)
    wanted = [0.9 * 0.1**-0.2, 10.0, 0.9 * 0.99**-0.2, 0.9 * 2.0**-0.2, 0.2]
    assert size == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_shortened(bad: float) -> None:
    """It is not accepted, and the next is a fifth of it; the neighbour is judged by itself."""
    accepted, size, finite = judged(bad, 0.0)
    assert (accepted, finite) == ([False, True], [False, True])
    assert size == pytest.approx([0.2, 10.0])


def test_the_error_is_measured_against_the_larger_end() -> None:
    """Relative to the state after the step where it has grown."""
    step = step_with_error(2.0)
    grown = step._replace(y1=torch.full_like(step.y1, 1.5))
    ones = torch.ones(1, dtype=FLOAT)
    assert not CONTROL.judge(DOPRI5, step, ones).accepted.item()
    assert CONTROL.judge(DOPRI5, grown, ones).accepted.item()


def first_size(t1: float, y0: list[float], f0: list[float]) -> tuple[float, list[list[float]]]:
    """Size of the first step under dy/dt = 1, and where f was asked."""
    field = SeenField()
    t = torch.zeros(1, dtype=FLOAT), torch.tensor([t1], dtype=FLOAT)
    span = Span(*t, torch.sign(t[1]))
    y, f = (torch.tensor([x], dtype=FLOAT) for x in (y0, f0))
    size, n_probes = CONTROL.first(field, DOPRI5, span, y, f)
    assert n_probes == len(field.times) == 1
    return size.item(), field.times


@pytest.mark.parametrize("t1", [5.0, 1e-3, 1e-9, -5.0, -1e-9])
@pytest.mark.parametrize("y0", [[1.0, 2.0], [0.0, 0.0], [1e-9, 1e6]])
def test_the_first_step_and_its_probe_stay_inside(t1: float, y0: list[float]) -> None:
    """However short the interval, in either direction; and the step is longer than nothing."""
    size, [[probe]] = first_size(t1, y0, [1.0, 1.0])
    assert 0 < size <= abs(t1)
    assert 0 < probe / t1 <= 1


@pytest.mark.parametrize("f0", [0.0, 1e100, 1e-300])
def test_the_first_step_is_finite_and_positive_for_any_slope(f0: float) -> None:
    """None, very steep, hardly any."""
    size, _ = first_size(1.0, [1.0, 1.0], [f0, f0])
    assert 0 < size <= 1


def first_of_growth(method: str, rate: float, atol: float = 1e-9) -> tuple[float, Step]:
    """Size of the first step of  y' = rate y,  y(0) = 1, and the step."""
    tableau, control = METHODS[method], Adaptive(rtol=0.0, atol=atol)
    one, zero = torch.ones(1, 1, dtype=FLOAT), torch.zeros(1, dtype=FLOAT)
    span = Span(zero, zero + 1e6, zero + 1)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return rate * y

    size, n_probes = control.first(field, tableau, span, one, rate * one)
    assert n_probes == 1
    return size.item(), rk_step(field, tableau, zero, size, one, rate * one)


EXPLICIT = [name for name, method in METHODS.items() if method.e is not None]


@pytest.mark.parametrize("method", EXPLICIT)
def test_the_first_steps_error_is_a_tenth_of_what_is_allowed(method: str) -> None:
    """Of an exponential, whose derivatives are what they are taken to be: next, a longer step."""
    k = 1 + (
        METHODS[method].order
        if METHODS[method].error_order is None
        else METHODS[method].error_order
    )
    atol = 10.0 ** -min(2 * k, 13)  # so tight that no step is as long as 1 / 3
    size, step = first_of_growth(method, 1.0, atol)
    control, tableau = Adaptive(rtol=0.0, atol=atol, grow=1e3), METHODS[method]
    verdict = control.judge(tableau, step, torch.tensor([size], dtype=FLOAT))
    ratio = (verdict.size.item() / (size * control.safety)) ** -k
    assert verdict.accepted.item()
    assert size < 0.33
    assert 0.05 < ratio < 0.2


@pytest.mark.parametrize("method", EXPLICIT)
def test_the_first_step_is_at_most_a_third_of_the_time_scale(method: str) -> None:
    """At a tolerance that would allow a longer one."""
    assert first_of_growth(method, 2.0, 1.0)[0] == pytest.approx(1 / 6)


@pytest.mark.parametrize("method", EXPLICIT)
def test_the_first_step_does_not_depend_on_the_unit_of_time(method: str) -> None:
    """A thousand times as fast, a thousandth as long."""
    assert 1e3 * first_of_growth(method, 1e3)[0] == pytest.approx(first_of_growth(method, 1.0)[0])


@pytest.mark.parametrize(("given", "size"), [(0.01, 0.1), (0.2, 0.2), (3.0, 0.5)])
def test_a_given_first_step_is_within_the_limits(given: float, size: float) -> None:
    """The adjoint's is what the forward solve found, or a share of it."""
    control = Adaptive(rtol=1e-6, atol=1e-6, least=0.1, most=0.5, first_size=given)
    one, zero = torch.ones(1, 1, dtype=FLOAT), torch.zeros(1, dtype=FLOAT)
    span = Span(zero, zero + 1, zero + 1)
    found, n_probes = control.first(decay, METHODS["dopri5"], span, one, -one)
    assert n_probes == 0
    assert found.item() == size


def first_of_a_straight_start(atol: float) -> float:
    """Size of the first step of  y' = 1,  y(0) = 3."""
    zero, three = torch.zeros(1, dtype=FLOAT), torch.full((1, 1), 3.0, dtype=FLOAT)
    control, span = Adaptive(rtol=0.0, atol=atol), Span(zero, zero + 1e6, zero + 1)
    size, _ = control.first(SeenField(), DOPRI5, span, three, torch.ones_like(three))
    return size.item()


def test_a_start_that_is_straight_says_nothing_of_what_comes() -> None:
    """Where y'' = 0 by chance the rate is |y'| / |y|: as of an exponential that has this one."""
    assert first_of_a_straight_start(3e-6) == pytest.approx(
        first_of_growth("dopri5", 1 / 3, 1e-6)[0]
    )


def test_a_start_that_is_straight_steps_no_further_than_the_state_is_long() -> None:
    """|y| / |y'| is the limit where the tolerance would allow more."""
    assert first_of_a_straight_start(1.0) == pytest.approx(3.0)


def test_a_method_for_stiff_problems_begins_by_hairers_rule() -> None:
    """Its error is no power of the fastest rate, which only a slow state hides at the start."""
    zero = torch.zeros(1, dtype=FLOAT)
    rates, y0 = (torch.tensor([x], dtype=FLOAT) for x in ([-1e4, -1.0], [1e-4, 1.0]))
    span = Span(zero, zero + 1, zero + 1)
    size, _ = CONTROL.first(
        lambda t, y: rates * y, IMPLICIT["rodas5p"], span, y0, rates * y0
    )  # fmt: skip
    d2 = float((rates**2 * y0 / (CONTROL.rtol * y0 + CONTROL.atol)).pow(2).mean().sqrt())
    assert size.item() == pytest.approx((0.01 / d2) ** (1 / 5), rel=1e-6)


@pytest.mark.parametrize(("y0", "f"), [(0.0, 1e15), (1.0, 1e16), (1.0, 1e30), (1e-30, 1.0)])
def test_a_steep_start_in_single_precision_arrives_or_says_why_not(y0: float, f: float) -> None:
    """Where squares overflow in float32, the solve does not stand still."""
    problem = ODEProblem(lambda t, y: torch.full_like(y, f), torch.tensor([y0]), [0.0, 1.0])
    solution = solve(problem, Solver(max_steps=500))
    assert solution.status.tolist() != [Status.MAX_STEPS]


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_the_step_size_is_no_part_of_the_gradient(gradient: str) -> None:
    """The gradient on the frozen steps of a solve is the gradient of the solve, bit for bit."""
    found: list[Tensor] = []
    nodes = torch.zeros(1)
    for frozen in (False, True):
        y0 = torch.tensor([1.0, 0.3], dtype=FLOAT, requires_grad=True)
        backend = NativeBackend(control=OnGrid(nodes)) if frozen else "native"
        problem = ODEProblem(lambda t, y: -y * y * torch.cos(t), y0, [0.0, 2.0])
        solution = solve(problem, Solver(backend, rtol=1e-4, atol=1e-4, gradient=gradient))
        nodes = solution.stats.step_times[0]
        found.append(torch.autograd.grad(solution.y[-1].sum(), y0)[0])
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("step", [0.1, 0.3, 1.0, 5.0])
def test_fixed_steps_are_counted_from_the_start(step: float) -> None:
    """As many as fit, and one shorter where the rest is not a step."""
    solution = solve(ODEProblem(decay, torch.ones(1), [0.0, 1.0]), Solver(method="rk4", step=step))
    assert solution.stats.forward.n_steps.tolist() == [math.ceil(1.0 / step - 1e-9)]
    assert solution.stats.step_times[0, 1].item() == pytest.approx(min(step, 1.0))


def test_a_custom_control_replaces_the_settings() -> None:
    """Steps of 1/4 are taken although tolerances are set."""
    solver = Solver(NativeBackend(control=Fixed(0.25)), rtol=1e-12, atol=1e-12)
    assert solve(
        ODEProblem(decay, torch.ones(1, dtype=FLOAT), [0.0, 1.0]), solver
    ).stats.forward.n_steps.tolist() == [4]


@pytest.mark.parametrize("nodes", [torch.zeros(2, 2), torch.tensor([0.0, math.nan])])
def test_a_frozen_grid_holds_finite_times(nodes: Tensor) -> None:
    """Padding with NaN must be taken off first."""
    with pytest.raises(InvalidProblem, match=r"`nodes` must be \[K\] finite times"):
        OnGrid(nodes)


def test_a_method_without_error_estimate_cannot_adapt() -> None:
    """Also when the control is given by hand."""
    step = step_with_error(0.0)
    with pytest.raises(InvalidProblem, match=r"'rk4' has no error estimate.*Solver\(step=...\)"):
        CONTROL.judge(METHODS["rk4"], step, torch.ones(1, dtype=FLOAT))
