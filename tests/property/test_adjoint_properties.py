"""The continuous adjoint is right by its tolerance; over long times it is right, or it warns."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from ctflow import Solver, Tolerances
from ctflow.cli.checkout import load_script
from ctflow.errors import GradientWarning
from tests.checks import check_close, check_relative
from tests.property.strategies import trials
from tests.property.trial import PARTS, Choices, gradient_of, make_trial, reference

drift = load_script(Path(__file__).parents[2], "adjoint_drift")
tolerances = st.sampled_from([1e-6, 1e-7, 1e-8, 1e-9])
couplings = st.sampled_from(["shared", "per_sample"])


def adjoint(choices: Choices, tol: float, coupling: Any) -> Solver:  # noqa: ANN401
    """The adjoint at one tolerance; a step size for each sample only where there are samples."""
    own = coupling if choices.batch is not None else "shared"
    return Solver(gradient="adjoint", rtol=tol, atol=tol, coupling=own)


@settings(max_examples=30)
@given(choices=trials(), tol=tolerances, coupling=couplings)
def test_the_gradient_is_right_by_the_tolerance(
    choices: Choices, tol: float, coupling: str
) -> None:
    """For every dynamics, state, grid, direction, coupling and loss, with L T up to 5."""
    trial = make_trial(choices)
    with warnings.catch_warnings():  # it may doubt what is right by a loose tolerance only
        warnings.simplefilter("ignore", GradientWarning)
        found = gradient_of(trial, adjoint(choices, tol, coupling))
    check_relative(found, reference(choices), rtol=trial.amplified(tol))


@settings(max_examples=15)
@given(choices=trials(), tol=tolerances, norm=st.sampled_from(["full", "seminorm"]))
def test_the_backward_tolerance_is_its_own(choices: Choices, tol: float, norm: Any) -> None:  # noqa: ANN401
    """After a forward pass at 1e-11 the backward one alone makes the error, in either norm."""
    trial = make_trial(choices)
    tight = adjoint(choices, 1e-11, "per_sample")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        found = gradient_of(trial, replace(tight, backward=Tolerances(tol, tol, norm)))
    check_relative(found, reference(choices), rtol=trial.amplified(tol))


@settings(max_examples=20)
@given(choices=trials(), coupling=couplings)
def test_the_start_time_obeys_algorithm_two(choices: Choices, coupling: str) -> None:
    """dL/dt0 = -a(t0+) . f(t0, y0), whatever the loss looks at."""
    trial = make_trial(replace(choices, wanted=PARTS))
    found = gradient_of(trial, adjoint(choices, 1e-10, coupling))
    names = [name for name, part in trial.parts.items() for _ in part]
    whole = [x for name, x in zip(names, found, strict=True) if name == "y0"]
    problem, y0 = trial.problem, trial.parts["y0"]
    a = whole
    if 0 in trial.entries:  # less what the loss saw of output 0 itself
        weights = pytree.tree_leaves(trial.weights)
        a = [x - w - 0.2 * y for x, w, y in zip(whole, weights, y0, strict=True)]
    with torch.no_grad():
        slopes = pytree.tree_leaves(problem.f(problem.t[0], problem.y0, problem.args))
    wanted = -sum((x * s).sum() for x, s in zip(a, slopes, strict=True))
    check_close(found[-1][0], torch.as_tensor(wanted).detach(), rtol=1e-8, atol=1e-8)


def right_or_warned(
    found: Tensor, wanted: Tensor, steps: Tensor, n_warnings: int, limit: float
) -> None:
    """Raise if a gradient is off by more than a limit without a warning.

    Off is what lies away both from the true gradient and from that of the steps taken at this
    tolerance: what the forward pass lost is nothing that the adjoint could know.
    """
    if n_warnings == 0:
        off = min(drift.distance(found, wanted), drift.distance(found, steps))
        if not off < limit:
            raise AssertionError(f"relative error {off:.1e} without a warning")


@settings(max_examples=3)
@given(choices=trials(longest=9.0).filter(lambda c: abs(c.times[-1] - c.times[0]) > 5),
       tol=st.sampled_from([1e-5, 1e-6, 1e-7]), coupling=couplings)  # fmt: skip
def test_beyond_five_lifetimes_it_is_right_or_warns(
    choices: Choices, tol: float, coupling: str
) -> None:
    """The same problems over longer times.

    No warning is owed for what the tolerance itself makes, up to where a warning is due whatever
    made the error: the threshold lies between 1e-3 and 1e-2 (docs/adjoint.md).
    """
    trial = make_trial(choices)
    solver = adjoint(choices, tol, coupling)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gradient_of(trial, solver)
    steps = gradient_of(trial, replace(solver, gradient="checkpointed"))
    parts = (torch.cat([x.reshape(-1) for x in g]) for g in (found, reference(choices), steps))
    right_or_warned(*parts, len(caught), max(1e-3, min(trial.amplified(tol), drift.WRONG)))


@settings(max_examples=8)
@given(
    name=st.sampled_from(sorted(drift.PROBLEMS)),
    share=st.floats(0.1, 1.0),
    tol=st.sampled_from([1e-5, 1e-6, 1e-7]),
    seed=st.integers(0, 100),
)
def test_on_hard_problems_it_is_right_or_warns(
    name: str, share: float, tol: float, seed: int
) -> None:
    """Stable, oscillating, chaotic and stiffening ones, over any time; right is 1e-2 here.

    The threshold of the warning lies between 1e-3 and 1e-2, and on such problems errors do too.
    """
    problem = drift.PROBLEMS[name]
    horizon = share * problem.longest
    solvers = [Solver(gradient="adjoint", rtol=tol, atol=tol),
               Solver(rtol=1e-10, atol=1e-10), Solver(rtol=tol, atol=tol)]  # fmt: skip
    results = [drift.gradient_of(problem, horizon, solver, seed) for solver in solvers]
    n_warnings = len(results[0][1].gradient_report.messages)
    right_or_warned(*(g for g, _ in results), n_warnings, drift.WRONG)
