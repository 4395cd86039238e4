"""A SciPy solve that fails says so as a value, and prints nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ctflow import ODEProblem, Solution, SolveFailed, Status, Unsupported, odeint, solve
from tests.backends.scipy.cases import METHODS, ONE, scipy
from tests.checks import check, check_close
from tests.problems import FLOAT, blow_up, decay

pytest.importorskip("scipy")


def _failed(solution: Solution, status: Status) -> None:
    found = Status(int(solution.status))
    check(found == status, f"{found.name} for {status.name}")
    check(bool(solution.y[-1].isnan().all()), f"{solution.y}")
    check(len(solution.stops) == 1 and not solution.y.requires_grad, f"{solution.stops}")


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_that_blows_up_stops_where_it_does(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The outputs before are there, the others NaN; SciPy's own words are not printed."""
    y0 = ONE.clone().requires_grad_()
    solution = solve(ODEProblem(blow_up, y0, [0.0, 0.5, 2.0]), scipy(method, 1e-6))
    _failed(solution, Status.STEP_TOO_SMALL)
    check_close(solution.y[1], 2 * ONE, rtol=1e-4)
    check(abs(solution.stops[0].t - 1) < 1e-3, f"{solution.stops}")
    check(capfd.readouterr() == ("", ""), "something was printed")


@pytest.mark.parametrize("method", METHODS)
def test_dynamics_that_end_are_not_finite(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    """y falls through 0 at t = 2 - ln 3, beyond which the root is of a negative number.

    t is the integral of dy / (sqrt(y) + 1/2): 2 (1 - u) - ln(3 / (1 + 2 u)) with u = sqrt(y).
    """
    f = lambda t, y: -torch.sqrt(y) - 0.5  # noqa: E731
    half = 1 - math.log(1.5)  # when y = 1/4
    solution = solve(ODEProblem(f, ONE, [0.0, half, 2.5]), scipy(method, 1e-6))
    _failed(solution, Status.NON_FINITE)
    check_close(solution.y[1], 0.25 * ONE, rtol=1e-3)
    check(abs(solution.stops[0].t - (2 - math.log(3))) < 1e-3, f"{solution.stops}")
    check(capfd.readouterr() == ("", ""), "something was printed")


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_dynamics_that_are_nan_never_give_a_result(method: str, start: float) -> None:
    """LSODA would go on with NaN as its state."""
    f = lambda t, y: torch.where(t >= start, torch.nan, -y)  # noqa: E731
    _failed(solve(ODEProblem(f, ONE, [0.0, 1.0]), scipy(method, 1e-6)), Status.NON_FINITE)


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_a_trial_step_alone_is_overcome(method: str) -> None:
    """Where a smaller step avoids it the solve goes on: y stays above 0.1."""
    f = lambda t, y: torch.where(y > 0.099, -5 * (y - 0.1), torch.nan)  # noqa: E731
    y = odeint(f, ONE, [0.0, 1.0], solver=scipy(method, 1e-6))
    check_close(y[-1], ONE * (0.1 + 0.9 * torch.exp(torch.tensor(-5.0)).double()), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_limit_of_steps_holds(method: str) -> None:
    """And SolveFailed names it."""
    f = lambda t, y: torch.cos(50 * t) * y  # noqa: E731
    solution = solve(ODEProblem(f, ONE, [0.0, 100.0]), scipy(method, max_steps=20))
    _failed(solution, Status.MAX_STEPS)
    counts = solution.stats.forward
    check(20 <= int(counts.n_steps) < 40, f"{counts}")
    with pytest.raises(SolveFailed, match=f"MAX_STEPS .*scipy, {method}"):
        odeint(f, ONE, [0.0, 100.0], solver=scipy(method, max_steps=20))


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("method", METHODS)
def test_what_f_raises_comes_out_as_it_is(method: str, error: BaseException) -> None:
    """The very object, also through the C code of LSODA and VODE."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        if t > 0.3:
            raise error
        return -y

    with pytest.raises(type(error)) as caught:
        odeint(f, ONE, [0.0, 1.0], solver=scipy(method))
    check(caught.value is error, f"{caught.value!r}")


def test_a_state_beyond_the_range_of_its_dtype_is_a_failure() -> None:
    """float64 inside can hold what float16 cannot."""
    y0 = torch.zeros(1, dtype=torch.float16)
    f = lambda t, y: torch.full_like(y, 6e4)  # noqa: E731
    solution = solve(ODEProblem(f, y0, [0.0, 1.0, 2.0]), "scipy")
    _failed(solution, Status.NON_FINITE)
    check(bool(solution.y[1].isfinite()), f"{solution.y}")


@pytest.mark.parametrize("method", ["lsoda", "adams"])
def test_a_solve_inside_f_by_the_same_method_is_refused(method: str) -> None:
    """SciPy's code for it keeps one function for each thread; another method may do it."""

    def nested(inner: str) -> Tensor:
        f = lambda t, y: -odeint(decay, y, [0.0, 1.0], solver=scipy(inner))[-1]  # noqa: E731
        return odeint(f, ONE, [0.0, 1.0], solver=scipy(method))[-1]

    with pytest.raises(Unsupported, match="not reentrant"):
        nested(method)
    exact = torch.exp(-torch.exp(torch.tensor(-1.0, dtype=FLOAT)))
    for inner in ("dopri5", "lsoda" if method == "adams" else "adams"):
        check_close(nested(inner), exact * ONE, rtol=1e-5)


# Torch itself scripts its forward-mode decompositions, and has deprecated scripting.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize("moved", ["y0", "t", "rate"])
def test_forward_mode_and_transforms_are_refused(moved: str) -> None:
    """NumPy would take every tangent for zero."""

    def end(x: Tensor) -> Tensor:
        inputs = {"y0": ONE, "t": torch.tensor([0.0, 1.0]).double(), "rate": 0.5 * ONE}
        inputs[moved] = inputs[moved] * x
        rate = inputs["rate"]
        return odeint(lambda t, y: -rate * y, inputs["y0"], inputs["t"], backend="scipy")[-1]

    with pytest.raises(Unsupported, match="forward mode"), forward_ad.dual_level():
        end(forward_ad.make_dual(ONE, ONE))
    with pytest.raises(Unsupported, match=r"torch\.func"):
        torch.func.jvp(end, (ONE,), (ONE,))
