"""`check_gradients`: do all gradients agree, with each other and with finite differences?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ctflow.api import as_solver
from ctflow.backends.native.control import OnGrid
from ctflow.backends.protocol import Solver
from ctflow.errors import CtflowError, SolveFailed, Unsupported
from ctflow.problem import ODEProblem
from ctflow.testing.asked import Asked, Gradient, Loss, infinite_if_nan
from ctflow.testing.reference import difference_along, frozen, growth, on_grid
from ctflow.testing.report import Finding, Report, reporting
from ctflow.testing.routes import every_solver, label, left_out

__all__ = ["SLACK", "check_gradients", "inspect_gradients"]

SLACK = 1e3
"""Tolerances that a gradient may be off beside the growth of errors. At outputs inside a step the
interpolant's error is controlled by nobody: gradients of dopri5, ours and others', were seen to be
190 tolerances off, at every tolerance."""
_MOST = 1e-2  # a gradient further off than this is wrong, whatever the tolerance


def check_gradients(
    problem: ODEProblem,
    solvers: Iterable[Solver | str] | None = None,
    *,
    loss: Loss | None = None,
    rtol: float = 1e-7,
    seed: int = 0,
) -> Report:
    """Raise unless every gradient of a problem agrees with the exact one.

    For y0, parameters, args and times: each gradient method of each installed backend against the
    gradient on a frozen grid of tight steps, and that against finite differences on the same grid.

    Args:
        problem: What is asked, in float64.
        solvers: Which to look at; None: each installed backend with each gradient it offers. One
            that compiles first is left out, and the report says so: it is taken where it is named,
            as in `every_solver(problem, ["native", "compiled"])`.
        loss: Scalar of the outputs that is differentiated; None: all of them, weighted at random.
        rtol: Tolerance of the solvers where they name none; theirs decides what is accepted.
        seed: Of the weights and directions.

    Returns:
        The report, where all agree.

    Raises:
        CheckFailed: If one does not; names the solver, the part and the difference.
        InvalidProblem: If the state is not float64.
        SolveFailed: If the reference cannot be solved.

    Cost:
        A solve and a backward pass for each solver, about ten at a tolerance of 1e-10.

    Example:
        >>> import torch
        >>> from ctflow import ODEProblem, Solver
        >>> y0 = torch.ones(2, dtype=torch.float64)
        >>> problem = ODEProblem(lambda t, y: torch.cos(t) * y, y0, [0.0, 0.5, 1.0])
        >>> check_gradients(problem, [Solver(gradient="adjoint")]).ok
        True
    """
    asked = Asked.of(problem, loss, seed)
    grid = frozen(asked.problem)
    reference = asked.gradient(on_grid(grid))
    grown = growth(asked.problem, reference.solution.y)
    findings = [_by_differences(asked, grid, part, reference, seed) for part in asked.parts]
    chosen = every_solver(asked.problem) if solvers is None else map(as_solver, solvers)
    for solver in chosen:
        given = solver.rtol is not None or solver.step is not None
        tolerant = solver if given else replace(solver, rtol=rtol, atol=solver.atol or rtol)
        findings.append(_of_solver(asked, tolerant, reference, grown))
    for name in left_out() if solvers is None else ():
        why = f"it compiles first; ask for it: every_solver(problem, [{name!r}])"
        findings.append(Finding(name, "skipped", why))
    report = Report(f"gradients with respect to {', '.join(asked.parts)}", tuple(findings))
    return report.raise_if_failed()


inspect_gradients = reporting(check_gradients)
"""The report of `check_gradients`, whatever it says; takes its arguments."""


def _by_differences(
    asked: Asked, grid: OnGrid, part: str, reference: Gradient, seed: int
) -> Finding:
    """The reference against finite differences of the same steps."""
    name = f"finite differences of {part}"
    try:
        by_difference, by_autograd = difference_along(asked, grid, part, seed)
    except SolveFailed as error:
        what = f"a little beside the problem its solve fails: {' '.join(str(error).split())}"
        return Finding(name, "failed", what, cause="a root or a pole: see `check_dynamics`.")
    off = abs(by_difference - by_autograd) / max(reference.norm, 1e-12)
    if off <= 1e-5:  # differences resolve 1e-10; the closed form of times is the equation's own
        return Finding(name, "passed")
    return Finding(
        name,
        "failed",
        f"along a random direction {by_difference:.6g} by differences on the frozen grid, "
        f"{by_autograd:.6g} by the gradient of the same steps",
        cause="a derivative of `f` that is not that of its values: see `check_dynamics`.",
    )


def _of_solver(asked: Asked, solver: Solver, reference: Gradient, grown: float) -> Finding:
    name = label(solver)
    try:
        found = asked.gradient(solver)
    except Unsupported as error:
        return Finding(name, "skipped", " ".join(str(error).split()))
    except CtflowError as error:
        return Finding(name, "failed", " ".join(str(error).split()))
    rtol = found.solution.stats.solver.rtol
    allowed = _MOST if rtol is None else min(SLACK * rtol * grown, _MOST)
    whole = max(infinite_if_nan(reference.norm), 1e-12)
    off = {part: infinite_if_nan(reference.distance(found, part) / whole) for part in asked.parts}
    worst = max(off, key=lambda part: off[part])
    if not found.doubts and off[worst] <= allowed:
        return Finding(name, "passed")
    what = f"the gradient of {worst} is off by {off[worst]:.2g} of the whole, {allowed:.2g} allowed"
    if found.doubts:
        what += f"; it says so itself: {found.doubts[0]}"
    cause = (
        "the tolerance is too loose for this problem (see `certify`), or the backend is wrong "
        "(see `run_backend_conformance`)."
    )
    return Finding(name, "failed", what, cause=cause)
