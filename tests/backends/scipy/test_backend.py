"""What the SciPy backend refuses, and how it calls f."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, ODEProblem, Solver, Unsupported, odeint, solve
from ctflow.backends.protocol import Tolerances
from ctflow.backends.scipy import ScipyBackend
from tests.backends.scipy.cases import METHODS, NEWTON, ONE, scipy
from tests.backends.torchdiffeq.cases import solved
from tests.checks import check
from tests.problems import decay, swing

pytest.importorskip("scipy")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"method": "tsit5"}, "'tsit5' is not one of dopri5, bosh3, dop853, adams"),
        ({"method": "BDF"}, "'BDF' is not one of"),
        ({"step": 0.1}, "`step`"),
        ({"coupling": "per_sample"}, "per_sample"),
        ({"gradient": "direct"}, "gradient='direct' is not adjoint"),
        ({"gradient": "checkpointed"}, "gradient='checkpointed' is not adjoint"),
        ({"backward": Tolerances(1e-3, 1e-3, "seminorm")}, "seminorm"),
    ],
)
def test_what_it_cannot_honour_it_refuses_by_name(settings: dict[str, Any], word: str) -> None:
    """Before any work."""
    with pytest.raises(Unsupported, match=word):
        solve(ODEProblem(decay, torch.ones(2), [0.0, 1.0]), Solver("scipy", **settings))


def test_times_of_each_sample_are_refused() -> None:
    """With the name of who can."""
    problem = ODEProblem(decay, torch.ones(2), torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    with pytest.raises(Unsupported, match=r"one grid for all.*backend='native'"):
        solve(problem, Solver("scipy", coupling="per_sample", gradient="adjoint"))


@pytest.mark.parametrize("method", NEWTON)
def test_a_jacobian_too_large_is_refused(method: str) -> None:
    """With the methods that need none."""
    with pytest.raises(Unsupported, match=r"dense Jacobian.*'adams' and 'dop853'"):
        odeint(decay, torch.ones(5000), [0.0, 1.0], backend="scipy", method=method)


@pytest.mark.parametrize("ends", [(0.3, 1.7), (1.7, 0.3)])
@pytest.mark.parametrize("method", METHODS)
def test_f_is_never_evaluated_outside_the_interval(method: str, ends: tuple[float, float]) -> None:
    """Neither forward nor backward, although multistep methods like to step past the end."""
    seen: list[float] = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return swing.f(t, y)

    y0 = ONE.clone().requires_grad_()
    odeint(f, y0, ends, solver=scipy(method))[-1].sum().backward()
    check(min(seen) >= 0.3 and max(seen) <= 1.7, f"{min(seen)} to {max(seen)}")
    at_the_end = sum(t == ends[1] for t in seen)
    check(at_the_end < len(seen) / 4, f"{at_the_end} of {len(seen)} times moved to the end")


@pytest.mark.parametrize("method", METHODS)
def test_the_counts_are_those_of_f(method: str) -> None:
    """Every call, none twice; accepted and rejected steps make up the attempts."""
    n_calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        return torch.sin(9 * t) * y

    y0 = ONE.clone().requires_grad_()
    solution = solved(ODEProblem(f, y0, [0.0, 0.3, 2.0]), scipy(method, 1e-5))
    forward, before = solution.stats.forward, n_calls
    check(int(forward.n_f_evals) == n_calls, f"{forward} for {n_calls}")
    check(int(forward.n_steps) == int(forward.n_accepted + forward.n_rejected), f"{forward}")
    check(solution.stats.step_times.shape == (1, int(forward.n_accepted) + 1), "step times")
    check(solution.stats.backward is None, "counts of a pass that has not run")
    solution.y[-1].sum().backward()
    backward = solution.stats.backward
    check(backward is not None and int(backward.n_f_evals) == n_calls - before, f"{backward}")


def test_attempts_that_failed_are_known_of_most_methods() -> None:
    """A jump of f must be found by rejections."""
    for method in ("dopri5", "bosh3", "dop853", "adams"):
        f = lambda t, y: (t > 0.5).to(y) - y  # noqa: E731
        counts = solved(ODEProblem(f, ONE, [0.0, 2.0]), scipy(method)).stats.forward
        check(int(counts.n_rejected) > 0, f"{method}: {counts}")


@pytest.mark.gpu
def test_a_state_on_a_gpu_is_copied_with_one_warning() -> None:
    """The first time in a process; the result is on the device."""
    y0 = torch.ones(2, device="cuda", dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for method in METHODS:
            y = odeint(decay, y0, [0.0, 1.0], solver=scipy(method))
            y[-1].sum().backward()
            check(y.is_cuda, f"{y.device}")
    check(len(caught) == 1 and "copied" in str(caught[0].message), f"{caught}")


def test_settings_are_plain_and_comparable() -> None:
    """A backend object in a Solver is frozen, as the Solver is."""
    check(hash(Solver(ScipyBackend())) == hash(Solver(ScipyBackend("blocks"))), "hash")
    with pytest.raises(InvalidProblem, match="`norm` must be one of 'blocks', 'whole'"):
        ScipyBackend(norm="max")
