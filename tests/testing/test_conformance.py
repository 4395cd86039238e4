"""`run_backend_conformance`: right backends pass, each broken one fails on its own fault."""

from __future__ import annotations

import pytest

from ctflow import ODEProblem, Solution, Solver
from ctflow.backends import available
from ctflow.backends.registry import names
from ctflow.testing import CheckFailed, inspect_backend, run_backend_conformance
from ctflow.testing.trials import random_recipe
from tests.testing.broken_backends import BROKEN, DIRECT, Solve, Wrapped, nan_gradient, program

INSTALLED = [name for name in available() if name != "compiled"]  # it compiles for minutes
ALSO = {
    "wrong b in the tableau": {"precision", "between_steps", "methods", "structures"},
    "low-order interpolant": {"methods", "structures"},
    "NaN with status OK": {"max_steps"},
    "mutated y0": {"closed_form", "precision", "between_steps", "structures", "methods"},
    "dropped context": {"late_branch", "second_order"},
    "unguarded late branch": {"second_order"},
    "detached second order": {"late_branch"},
    "dropped args": {"second_order"},
    "truncated quadrature": {"second_order"},
    "coupled samples sold as per-sample": {"sample_times"},
}
"""What a fault breaks beside the demand that names it."""


@pytest.mark.parametrize("name", INSTALLED)
def test_every_installed_backend_conforms(name: str) -> None:
    """In every combination that it declares; a new one joins by being installed."""
    report = run_backend_conformance(name, examples=3)
    assert not report.having("skipped"), str(report)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.skipif("compiled" not in names(), reason="there is no compiled backend here")
def test_the_compiled_backend_conforms() -> None:
    """With one program for each field, structure and gradient: minutes of compiling."""
    run_backend_conformance("compiled", examples=24, kinds=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_every_installed_backend_conforms_on_a_thousand_problems(name: str) -> None:
    """Random fields, structures, batches, grids and directions."""
    run_backend_conformance(name, examples=1000, seed=10_000)


def test_the_wrapper_of_the_broken_ones_is_not_what_fails() -> None:
    """With no fault added it conforms."""
    assert run_backend_conformance(Wrapped("sound", features=DIRECT), examples=2).ok


def test_a_backend_that_runs_no_python_of_f_conforms() -> None:
    """What counts calls and notes times asks by values instead, in a few kinds of problems."""
    assert run_backend_conformance(Wrapped("sound", program, DIRECT), examples=6, kinds=2).ok


def test_examples_of_few_kinds_differ_in_numbers_only() -> None:
    """Structure, field, argument and inner outputs are those of the kind."""
    drawn = [random_recipe(seed, batched=True, kind=3) for seed in range(20)]
    kinds = {(r.form, r.structure, r.forced, len(r.times) > 2) for r in drawn}
    assert len(kinds) == 1
    assert len({r.times for r in drawn}) == 20
    assert {r.batch for r in drawn} == {2, 3}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_backend_fails_on_the_demand_that_names_its_fault(fault: str) -> None:
    """On that one, and beside it at most on what follows from it."""
    make, demand = BROKEN[fault]
    with pytest.raises(CheckFailed) as caught:
        run_backend_conformance(make(), examples=0)
    report = caught.value.report
    assert demand in report.failed, str(report)  # pyright: ignore
    assert set(report.failed) - {demand} <= ALSO.get(fault, set()), str(report)  # pyright: ignore


def test_a_gradient_that_is_no_number_is_wrong() -> None:
    """No comparison with NaN is true, and none that it is too large."""
    report = inspect_backend(Wrapped("broken", nan_gradient, DIRECT), examples=8)
    assert report.failed == ("random_problems",), str(report)
    assert "[broken direct shared]" in report.failures[0].what


def test_what_a_backend_raises_on_a_random_problem_is_the_finding() -> None:
    """Whatever it is, with the problem."""

    def raising(solve: Solve, problem: ODEProblem, solver: Solver) -> Solution:
        if isinstance(problem.y0, list):
            raise RuntimeError("no lists")
        return solve(problem, solver)

    report = inspect_backend(Wrapped("broken", raising, DIRECT), examples=8)
    assert report.failed == ("random_problems",), str(report)
    assert report.failures[0].what.startswith("RuntimeError: no lists")
    assert "structure='nested'" in report.failures[0].example


def test_the_report_names_route_and_cause() -> None:
    """So that the author knows where to look."""
    text = str(inspect_backend(BROKEN["dropped args"][0](), examples=0))
    assert "FAILED gradient_args: there is none [broken direct shared]" in text
    assert "usual cause:" in text
