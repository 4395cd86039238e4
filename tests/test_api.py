"""The functions users call: one argument swaps the solver, a failure is raised or returned."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import ctflow
from ctflow import (
    BackendUnavailable,
    InvalidProblem,
    ODEProblem,
    SolveFailed,
    Solver,
    Unsupported,
    odeint,
    solve,
)
from ctflow.backends import get
from ctflow.testing.routes import prompt
from tests.checks import check_relative
from tests.problems import FLOAT, blow_up, decay

Y0 = torch.tensor([1.0, -0.5], dtype=FLOAT)
T = torch.tensor([0.0, 0.4, 1.0], dtype=FLOAT)
EXACT = Y0 * torch.exp(-T)[:, None]


@pytest.mark.parametrize("backend", prompt())
@pytest.mark.parametrize("how", ["backend", "solver", "Solver", "object"])
def test_one_argument_swaps_the_backend(backend: str, how: str) -> None:
    """By name, by a Solver that names it, or as an object."""
    given: dict[str, dict[str, Any]] = {
        "backend": {"backend": backend},
        "solver": {"solver": backend},
        "Solver": {"solver": Solver(backend=backend)},
        "object": {"backend": get(backend)},
    }
    y = odeint(decay, Y0, T, **given[how])
    check_relative(y, EXACT, rtol=1e-6)


def test_keywords_replace_fields_of_the_solver() -> None:
    """The solver is the base; what is not given stays."""
    base = Solver(method="tsit5", rtol=1e-3, atol=1e-3, max_steps=3)
    with pytest.raises(SolveFailed, match=r"tsit5, rtol=1e-09, atol=0\.001"):
        odeint(blow_up, Y0 * 0.9, T, solver=base, rtol=1e-9)


def test_odeint_returns_the_state_at_every_time() -> None:
    """The structure of y0, times first, y0 itself at the first."""
    y = odeint(lambda t, y: {"a": -y["a"]}, {"a": Y0}, T)
    assert y["a"].shape == (3, 2)
    assert torch.equal(y["a"][0], Y0)


def test_time_may_run_down() -> None:
    """From 1 to 0 the decay grows."""
    check_relative(odeint(decay, Y0, T.flip(0))[-1], Y0 * torch.e, rtol=1e-6)


def test_args_reach_f_as_they_are() -> None:
    """Tensors in containers, and values that are none."""

    def f(t: Tensor, y: Tensor, args: dict[str, Any]) -> Tensor:
        return -y * args["rate"][0] * args["n"] if args["on"] else y

    y = odeint(f, Y0, T, args={"rate": [torch.tensor(0.5)], "n": 2, "on": True})
    check_relative(y, EXACT, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_dtype_is_integrated_at_its_own_tolerance(dtype: torch.dtype) -> None:
    """The result has the dtype of y0, whatever the dtype of t."""
    y = odeint(decay, Y0.to(dtype), T)
    assert y.dtype == dtype
    rtol = {torch.float64: 1e-7, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
    check_relative(y, EXACT, rtol=10 * rtol[dtype])


def test_a_failure_carries_what_was_reached() -> None:
    """SolveFailed has the partial solution that solve returns."""
    with pytest.raises(SolveFailed) as caught:
        odeint(blow_up, Y0, [0.0, 0.5, 2.0])
    carried = caught.value.solution
    assert isinstance(carried, ctflow.Solution)
    returned = solve(ODEProblem(blow_up, Y0, [0.0, 0.5, 2.0]))  # type: ignore[arg-type]
    assert torch.equal(carried.y.nan_to_num(), returned.y.nan_to_num())
    assert carried.y[1].isfinite().all()
    assert carried.y[2].isnan().all()


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown backend": ({"backend": "natvie"}, BackendUnavailable, "'natvie'.*'native'.*spelling"),
    "unknown solver": ({"solver": "natvie"}, BackendUnavailable, "'natvie'.*'native'.*spelling"),
    "solver of another type": ({"solver": 3}, InvalidProblem, "`solver` must be a Solver"),
    "backend of another type": ({"backend": 3}, InvalidProblem, "`backend` must be a name"),
    "a backend's class": ({"backend": type(get("native"))}, InvalidProblem, "not the class"),
    "unknown method": ({"method": "dopri6"}, Unsupported, "'dopri6' is not one of.*dopri5"),
    "no error estimate": ({"method": "rk4"}, Unsupported, r"'rk4'.*Solver\(step=...\)"),
    "unknown gradient": ({"gradient": "adjont"}, InvalidProblem, "'direct', 'adjoint', got"),
    "rtol below the dtype": ({"rtol": 1e-17}, InvalidProblem, r"`rtol`.*float64.*wider dtype"),
    "negative rtol": ({"rtol": -1.0}, InvalidProblem, "`rtol` must be finite"),
    "zero atol": ({"atol": 0.0}, InvalidProblem, "`atol` must be finite and positive"),
    "tensor as rtol": ({"rtol": torch.tensor(1e-3)}, InvalidProblem, "Pass a float"),
}


@pytest.mark.parametrize(("given", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_setting_that_cannot_be_honoured_is_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before f is called, with what to do."""

    def never(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("f was called")

    with pytest.raises(error, match=message):
        odeint(never, Y0, T, **given)


def test_solve_takes_a_problem() -> None:
    """Not a function; the message names odeint."""
    with pytest.raises(InvalidProblem, match=r"`problem` must be an ODEProblem.*odeint"):
        solve(decay)  # type: ignore[arg-type]


def test_per_sample_times_need_per_sample_steps() -> None:
    """[B, T] chooses them by itself, and contradicts coupling='shared'."""
    t = torch.stack([T, T + 1])
    assert solve(ODEProblem(decay, Y0, t)).stats.solver.coupling == "per_sample"
    with pytest.raises(InvalidProblem, match="which shared steps cannot follow"):
        solve(ODEProblem(decay, Y0, t), Solver(coupling="shared"))


@pytest.mark.parametrize("y0", [torch.tensor(1.0), (torch.ones(2), torch.ones(3))])
def test_per_sample_steps_need_a_batch(y0: Any) -> None:  # noqa: ANN401
    """In dimension 0 of every leaf."""
    with pytest.raises(InvalidProblem, match=r"per_sample' needs the batch as dimension 0"):
        odeint(decay, y0, T, solver=Solver(coupling="per_sample"))


def test_public_names_are_complete() -> None:
    """What __all__ lists exists, sorted, and nothing of it is a module."""
    assert list(ctflow.__all__) == sorted(ctflow.__all__)
    assert not any(isinstance(getattr(ctflow, name), type(sys)) for name in ctflow.__all__)
