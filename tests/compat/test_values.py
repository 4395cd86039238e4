"""The states that programs written for torchdiffeq get back."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem
from ctflow.compat.torchdiffeq import odeint, odeint_adjoint
from tests.compat.fields import ADAPTIVE, BOTH, DOUBLE, GRID, IMPLICIT, Network, State, start, times

_LOOSE = {"fehlberg2": 1e-5, "adaptive_heun": 1e-5}


@pytest.mark.parametrize("method", ADAPTIVE)
def test_an_adaptive_method_agrees_with_torchdiffeq_to_its_tolerance(method: str) -> None:
    """Interpolants differ by name, and torchdiffeq's of low order by more than the tolerance."""
    tol = _LOOSE.get(method, 1e-7)
    theirs, mine = (
        lib.odeint(Network(), start(), times(), rtol=tol, atol=tol, method=method) for lib in BOTH
    )
    end = odeint(Network(), start(), times(), rtol=1e-12, atol=1e-12)
    error = (mine - end).abs().max()
    assert error <= max(30 * tol, 1.5 * float((theirs - end).detach().abs().max()))


def test_dopri5_takes_the_steps_of_torchdiffeq() -> None:
    """As many evaluations, but for the last step, which theirs takes beyond the end."""
    fields = [Network() for _ in BOTH]
    for lib, field in zip(BOTH, fields, strict=True):
        lib.odeint(field, start(), times(), rtol=1e-8, atol=1e-8)
    theirs, mine = (field.n_calls for field in fields)
    assert abs(theirs - mine) <= 6  # one step


@pytest.mark.parametrize(
    ("method", "options"),
    [(m, o) for m in GRID for o in (None, {"step_size": 0.05})]
    + [(m, {"step_size": 0.3}) for m in GRID if "adams" not in m],  # whose last step is shorter
)
@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_a_method_on_a_grid_repeats_torchdiffeq(
    method: str, options: dict[str, Any] | None, interp: str
) -> None:
    """To rounding, between grid points too, where its own steps are all of one size."""
    more = {**(options or {}), "interp": interp}
    theirs, mine = (
        lib.odeint(Network(), start(), times(), method=method, options=more, rtol=1e-3, atol=1e-3)
        for lib in BOTH
    )
    tol = 5e-3 if method == "implicit_adams" else 1e-9  # its iteration ends at the tolerance
    torch.testing.assert_close(mine, theirs, rtol=tol, atol=tol)


@pytest.mark.parametrize(("method", "order"), [
    ("implicit_euler", 1), ("implicit_midpoint", 2), ("trapezoid", 2), ("sdirk2", 2),
    ("trbdf2", 2), ("radauIIA3", 3), ("gl4", 4), ("radauIIA5", 5), ("gl6", 6),
    ("explicit_adams", 3), ("implicit_adams", 4), ("heun3", 3),
])  # fmt: skip
def test_halving_the_steps_shows_the_order(method: str, order: int) -> None:
    """On an equation that depends on time, which torchdiffeq's gl4 gets wrong."""
    exact = odeint(Network(), start(), times(2), rtol=1e-13, atol=1e-13)[-1]
    errors: list[float] = []
    for n in (16, 32):
        options = {"step_size": 2.0 / n}
        if "adams" in method:  # the predictor has one value of the past less than `max_order`
            options["max_order"] = order + (method == "explicit_adams")
        tight = {"rtol": 1e-13, "atol": 1e-14}
        y = odeint(Network(), start(), times(2), method=method, options=options, **tight)[-1]
        errors.append(float((y - exact).detach().abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.6


def test_adams_keeps_its_order_on_an_uneven_grid() -> None:
    """torchdiffeq uses the coefficients of equal steps there, whose error does not fall."""
    fine = odeint(Network(), start(), times(2), rtol=1e-13, atol=1e-13)[-1]

    def error(lib: ModuleType, n: int) -> float:
        grid = 2 * torch.linspace(0, 1, n, dtype=DOUBLE) ** 1.5
        options = {"grid_constructor": lambda f, y0, t: grid, "max_order": 6}
        y = lib.odeint(Network(), start(), times(2), method="explicit_adams", options=options)
        return float((y[-1] - fine).detach().abs().max())

    theirs, mine = ((error(lib, 65), error(lib, 129)) for lib in BOTH)
    assert math.log2(mine[0] / mine[1]) > 4.5
    assert math.log2(theirs[0] / theirs[1]) < 2.5


@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams", "trapezoid"])
def test_a_tuple_comes_back_as_a_tuple(method: str) -> None:
    """Each part has the times in front of its own shape."""

    def pair(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return y[1], -y[0]

    y0 = (torch.ones(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE))
    found = odeint(pair, y0, times(4), method=method, options=_fine(method))
    assert isinstance(found, tuple)
    assert [x.shape for x in found] == [(4, 3), (4, 3)]
    torch.testing.assert_close(found[0][:, 0], torch.cos(times(4)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "scipy_solver"])
def test_time_may_run_down_in_any_dtype(method: str, dtype: torch.dtype) -> None:
    """Shape and dtype are those of torchdiffeq."""
    t = times(4).flip(0).to(dtype)
    y0 = start().detach().to(dtype)
    field = Network().to(dtype)
    theirs, mine = (
        lib.odeint(field, y0, t, method=method, options=_fine(method), rtol=1e-6, atol=1e-6)
        for lib in BOTH
    )
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_one_time_alone_needs_no_solve(interface: Callable[..., Any]) -> None:
    """It is the initial state, with its gradient."""
    field, y0 = Network(), start()
    y = interface(field, y0, times()[:1])
    y.sum().backward()
    assert field.n_calls == 0
    assert torch.equal(y, y0.detach()[None])
    assert torch.equal(y0.grad, torch.ones_like(y0))


def test_complex_states_are_solved() -> None:
    """dy/dt = i y turns."""
    y = odeint(lambda t, y: 1j * y, torch.ones(2, dtype=torch.complex128), times(3))
    torch.testing.assert_close(y[-1, 0].angle(), times(3)[-1], rtol=1e-5, atol=1e-6)


def test_tolerances_may_differ_from_part_to_part() -> None:
    """A loose one for the fast part saves steps, as in torchdiffeq."""

    def apart(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0], 30 * torch.cos(30 * t) * torch.ones_like(y[1])

    y0 = (torch.ones(2, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE))
    counts: list[list[int]] = []
    for lib in BOTH:
        calls = [0]

        def counted(t: Tensor, y: State, calls: list[int] = calls) -> State:
            calls[0] += 1
            return apart(t, y)

        lib.odeint(counted, y0, times(2), rtol=(1e-8, 1e-1), atol=(1e-8, 1e3))
        loose = calls[0]
        lib.odeint(counted, y0, times(2), rtol=1e-8, atol=1e-8)
        counts.append([loose, calls[0] - loose])
    assert counts[1][0] < counts[1][1] / 2
    assert abs(counts[0][0] - counts[1][0]) <= 12  # two steps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y0": [torch.ones(2)]}, "`y0` must be a tensor or a tuple"),
        ({"t": [0.0, 1.0]}, "`t` must be a tensor"),
        ({"t": torch.tensor([0, 1])}, "floating dtype"),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, "strictly monotone"),
        ({"y0": torch.tensor([1.0, torch.nan])}, "finite"),
        ({"method": "dopri6"}, "`method` must be one of"),
        ({"rtol": -1.0}, "`rtol` must be finite"),
        ({"atol": 0.0}, "`atol` must be finite and positive"),
        ({"atol": torch.ones(5)}, "must fit the shape"),
        ({"rtol": (1e-3, 1e-3)}, "entry for each part"),
        ({"func": lambda t, y: y[:1]}, "must return the shape"),
        ({"func": lambda t, y: y.double()}, "must return the dtype"),
        ({"func": lambda t, y: y.mul_(2)}, "must not change its input"),
    ],
)
def test_what_means_nothing_is_refused(change: dict[str, Any], words: str) -> None:
    """torchdiffeq broadcasts or goes on for the last three."""
    good = {"func": lambda t, y: -y, "y0": torch.ones(2), "t": torch.tensor([0.0, 1.0])}
    call = good | change
    with pytest.raises(InvalidProblem, match=words):
        odeint(call.pop("func"), call.pop("y0"), call.pop("t"), **call)


def _fine(method: str) -> dict[str, Any] | None:
    return None if method in (*ADAPTIVE, "scipy_solver") else {"step_size": 0.02}


def test_every_name_of_torchdiffeq_is_answered() -> None:
    """And those of its development version."""
    from torchdiffeq._impl.odeint import SOLVERS

    from ctflow.compat.torchdiffeq.methods import NAMES

    assert set(SOLVERS) | set(IMPLICIT) | {"tsit5"} == set(NAMES)
