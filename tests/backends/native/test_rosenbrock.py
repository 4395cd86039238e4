"""Rodas5P satisfies its own algebra, is L-stable, and converges at the orders it claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, Solver, odeint
from ctflow.backends.native.implicit import rosenbrock_step
from ctflow.backends.native.interpolate import evaluate
from ctflow.backends.native.methods import IMPLICIT, METHODS
from ctflow.backends.native.step import Step, combine
from ctflow.backends.trees import Tree, trees
from tests.checks import check_relative
from tests.problems import FLOAT, limit_cycle

RODAS5P = IMPLICIT["rodas5p"]
Y0 = torch.tensor([0.2, 0.1], dtype=FLOAT)
EMBEDDED = [b - e for b, e in zip(RODAS5P.b, RODAS5P.e, strict=True)]
STEPS = [0.12, 0.1, 0.08, 0.06]


def elementary(tree: Tree) -> list[float]:
    """Weights of a tree by recursion, apart from the code that the method checks itself with.

    Hairer, Wanner II, section IV.7: below a node with one branch stands beta, else alpha.
    """
    rows = RODAS5P.standard.beta if len(tree) == 1 else RODAS5P.standard.alpha
    found = [1.0] * RODAS5P.stages
    for branch in tree:
        below = elementary(branch)
        parts = [math.fsum(x * y for x, y in zip(row, below, strict=False)) for row in rows]
        found = [x * y for x, y in zip(found, parts, strict=True)]
    return found


def density(tree: Tree) -> tuple[int, int]:
    """Number of nodes and gamma of a tree."""
    parts = [density(branch) for branch in tree]
    n = 1 + sum(order for order, _ in parts)
    return n, n * math.prod(value for _, value in parts)


def misses(weights: Sequence[float], order: int, value: float = 1.0) -> float:
    """How far weights are from the conditions of one order, the largest of all trees."""
    own = RODAS5P.untransformed(weights)
    pairs = [(elementary(tree), density(tree)[1]) for tree in trees(order)]
    return max(
        abs(math.fsum(x * y for x, y in zip(own, v, strict=True)) - value / g) for v, g in pairs
    )


@pytest.mark.parametrize(
    ("weights", "order"), [(RODAS5P.b, 5), (EMBEDDED, 4)], ids=["solution", "embedded"]
)
def test_every_condition_holds_to_rounding_up_to_the_order_and_no_further(
    weights: Sequence[float], order: int
) -> None:
    """Steinebach 2023: a method of order 5 with an embedded one of order 4."""
    residuals = [misses(weights, n) for n in range(1, order + 2)]
    assert max(residuals[:-1]) < 2e-14
    assert residuals[-1] > 1e-3


@pytest.mark.parametrize("s", [0.3, 0.8])
def test_the_interpolant_is_of_order_4_and_no_higher(s: float) -> None:
    """Every tree, with s^order in place of 1."""
    residuals = [misses(RODAS5P.weights(s), n, s**n) for n in range(1, 6)]
    assert max(residuals[:-1]) < 1e-13
    assert residuals[-1] > 1e-4


def test_the_interpolant_meets_both_ends() -> None:
    """Weights are 0 at the start and b at the end."""
    assert RODAS5P.weights(0.0) == (0.0,) * 8
    assert RODAS5P.weights(1.0) == pytest.approx(RODAS5P.b, abs=1e-13)


@pytest.mark.parametrize("weights", [RODAS5P.b, EMBEDDED], ids=["solution", "embedded"])
def test_it_is_l_stable(weights: Sequence[float]) -> None:
    """|R| <= 1 on the imaginary axis, its poles in the right half-plane, and R(infinity) = 0.

    By the maximum principle |R| <= 1 then holds in the whole left half-plane. Hairer, Wanner II,
    sections IV.3 and IV.7; the embedded solution has it too (Steinebach 2023).
    """
    sizes = [abs(RODAS5P.stability(complex(0, 10 ** (k / 50)), weights)) for k in range(-200, 400)]
    assert max(sizes) <= 1 + 1e-12
    assert RODAS5P.gamma > 0
    assert abs(RODAS5P.stability(-1e8, weights)) < 1e-6


def test_the_stability_function_is_exp_to_the_order() -> None:
    """R(z) - exp(z) falls as z^6 or faster."""
    small, large = (abs(RODAS5P.stability(z) - math.exp(z)) for z in (0.05, 0.1))
    assert math.log2(large / small) > 5.8


def test_stages_lie_inside_the_step() -> None:
    """So f is never asked outside the step."""
    assert all(0.0 <= c <= 1.0 for c in RODAS5P.c)


@pytest.mark.parametrize("i", range(1, 8))
@pytest.mark.parametrize("part", ["a", "m"])
def test_a_mistyped_coefficient_is_noticed(part: str, i: int) -> None:
    """Any row with its last coefficient off by 1e-9."""
    rows = [list(row) for row in getattr(RODAS5P, part)]
    rows[i][-1] += 1e-9
    with pytest.raises(InvalidProblem, match=r"'rodas5p' must have (row|the order|an)"):
        replace(RODAS5P, **{part: tuple(map(tuple, rows))})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"c": RODAS5P.c[:-1]}, "lengths"),
        ({"gamma": -0.2}, "a positive gamma"),
        ({"d": (*RODAS5P.d[:-1], 0.1)}, "row 7 of m"),
        ({"order": 6}, "the order condition"),
        ({"error_order": 5}, "an embedded solution"),
        ({"dense_order": 5}, "an interpolant of order 5"),
    ],
    ids=str,
)
def test_a_contradiction_is_refused_by_what_it_breaks(
    changes: dict[str, object], complaint: str
) -> None:
    """The message names the method and the condition."""
    with pytest.raises(InvalidProblem, match=f"'rodas5p' must have .*{complaint}"):
        replace(RODAS5P, **changes)  # pyright: ignore[reportArgumentType]


def test_names_are_keys_and_none_is_explicit_too() -> None:
    """A method is found under one name."""
    assert all(name == method.name for name, method in IMPLICIT.items())
    assert not IMPLICIT.keys() & METHODS.keys()


def slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Slope of log error over log step by least squares."""
    x, e = (torch.tensor(v, dtype=FLOAT).log() for v in (sizes, errors))
    return float(((x - x.mean()) * (e - e.mean())).sum() / ((x - x.mean()) ** 2).sum())


def one_step(h: float) -> Step:
    """A step of size h from t = 0.2."""
    start = torch.tensor([0.2], dtype=FLOAT)
    return rosenbrock_step(limit_cycle.f, RODAS5P, start, start + h, Y0[None])


@pytest.mark.parametrize("end", [1.2, -0.8])
def test_observed_order_is_within_three_tenths_of_nominal(end: float) -> None:
    """On a non-linear, time-dependent problem the error falls as h^5, in both directions."""
    t = torch.tensor([0.2, end], dtype=FLOAT)
    exact = limit_cycle.exact(t[1], t[0], Y0)
    sizes = [1.0 / n for n in (16, 20, 24, 32)]
    found = [odeint(limit_cycle.f, Y0, t, solver=Solver(method="rodas5p", step=h)) for h in sizes]
    errors = [float((y[-1] - exact).norm()) for y in found]
    assert slope(sizes, errors) == pytest.approx(5, abs=0.3)


def test_the_interpolant_converges_at_order_5_in_one_step() -> None:
    """Its local error at seven places falls as h^5."""
    fractions = torch.tensor([0.13, 0.29, 0.37, 0.5, 0.62, 0.81, 0.93], dtype=FLOAT)
    row, errors = torch.zeros(7, dtype=torch.int64), list[float]()
    for h in STEPS:
        times = 0.2 + fractions * h
        found = evaluate(RODAS5P, one_step(h), row, times)
        exact = limit_cycle.exact(times, torch.tensor([0.2], dtype=FLOAT), Y0)
        errors.append(float((found - exact).norm()))
    assert slope(STEPS, errors) == pytest.approx(5, abs=0.3)


def test_the_error_estimate_is_of_the_embedded_order_and_bounds_the_error() -> None:
    """It falls as h^5, and the solution is nearer to the truth than it says."""
    estimates: list[float] = []
    for h in STEPS:
        step = one_step(h)
        estimates.append(float((combine(RODAS5P.e, step.k) * step.h).norm()))
        start = torch.tensor([0.2], dtype=FLOAT)
        off = float((step.y1 - limit_cycle.exact(start + h, start, Y0)).norm())
        assert off < estimates[-1]
    assert slope(STEPS, estimates) == pytest.approx(5, abs=0.3)


def prothero_robinson(rate: float) -> float:
    """Error at t = 2 of  y' = -rate (y - sin t) + cos t,  at 20 steps."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -rate * (y - torch.sin(t)) + torch.cos(t)

    start = torch.zeros(1, dtype=FLOAT)
    y = odeint(f, start, [0.0, 2.0], solver=Solver(method="rodas5p", step=0.1))
    return abs(float(y[-1]) - math.sin(2.0))


@pytest.mark.parametrize("rate", [1e2, 1e4, 1e8])
def test_stiffness_does_not_spoil_accuracy(rate: float) -> None:
    """Prothero and Robinson's problem at steps far beyond any explicit method's stability."""
    assert prothero_robinson(rate) < 1e-6


def test_a_step_of_length_zero_keeps_the_state_bit_for_bit() -> None:
    """Nothing is divided by the step."""
    y0 = torch.tensor([[0.3, -0.7]], dtype=FLOAT)
    here = torch.tensor([0.4], dtype=FLOAT)
    step = rosenbrock_step(limit_cycle.f, RODAS5P, here, here, y0)
    assert torch.equal(step.y1, y0)


def test_the_error_of_a_solve_follows_its_tolerance() -> None:
    """Outputs inside steps too."""
    t = torch.linspace(0, 6, 100, dtype=FLOAT)
    y = odeint(limit_cycle.f, Y0, t, method="rodas5p", rtol=1e-6, atol=1e-8)
    check_relative(y, limit_cycle.exact(t, t[0], Y0), rtol=10 * 1e-6)
