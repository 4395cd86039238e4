"""ctflow's settings in torchsde's words, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ctflow.backends.protocol import Solver, is_absolute, leaves_out
from ctflow.backends.torchsde.brownian import levy_area_of
from ctflow.backends.torchsde.schemes import SCHEMES, default_method
from ctflow.sde import SDEProblem
from ctflow.solution import Resolved

__all__ = ["complete", "keywords", "quiet", "reasons", "record"]

_RTOL, _ATOL = 1e-2, 1e-3
"""Tolerances of adaptive steps where none are given.

The error of a path falls with the step to the power 0.5 to 1.5, so that each further digit costs up
to a hundred times the steps.
"""

_FIRST = 0.01  # part of the interval that adaptive steps try first
_ROUNDING = 1e-13  # so that ten steps of 0.1 reach 1, and leave no step of 1e-16
_EVEN = 1e-6  # part of a step within which an output counts as lying on the grid


def complete(problem: SDEProblem, solver: Solver) -> Solver:
    """The settings with every None replaced."""
    adaptive = solver.step is None
    return replace(
        solver,
        method=solver.method or default_method(problem.calculus, problem.noise),
        rtol=_RTOL if solver.rtol is None and adaptive else solver.rtol,
        atol=_ATOL if solver.atol is None and adaptive else solver.atol,
        coupling=solver.coupling or "shared",
        gradient=solver.gradient or "direct",
    )


def record(solver: Solver) -> Resolved:
    """Complete settings as they stand in `Solution.stats`."""
    return Resolved(
        "torchsde", str(solver.method), solver.rtol, solver.atol, solver.step,
        str(solver.coupling), str(solver.gradient), solver.max_steps,
    )  # fmt: skip


def reasons(problem: SDEProblem, solver: Solver) -> list[str]:
    """Why it cannot be done; [] if it can. Settings are complete."""
    method = str(solver.method)
    if solver.method not in SCHEMES:  # a tableau is none, whatever its name
        return [f"method={solver.method!r} is not one of {', '.join(SCHEMES)}"]
    scheme, found = SCHEMES[method], [*_about_steps(problem, solver)]
    if solver.controls_steps or solver.step_t:
        found.append("it takes no `controller`, `first_step`, `min_step`, `max_step` and `step_t`")
    if problem.calculus not in scheme.calculi:
        able = [name for name, s in SCHEMES.items() if problem.calculus in s.calculi]
        found.append(
            f"method={method!r} is not for {problem.calculus} equations; {', '.join(able)} are"
        )
    if problem.noise not in scheme.noises:
        able = [
            name
            for name, s in SCHEMES.items()
            if problem.noise in s.noises and problem.calculus in s.calculi
        ]
        found.append(f"method={method!r} takes no {problem.noise} noise; {', '.join(able)} do")
    if problem.path is not None and scheme.levy and levy_area_of(problem.path) not in scheme.levy:
        found.append(
            f"method={method!r} needs a path with levy_area={' or '.join(map(repr, scheme.levy))}, "
            f"got {levy_area_of(problem.path)!r}"
        )
    if solver.coupling == "per_sample":
        found.append("coupling='per_sample': it has one step size for all samples")
    if solver.gradient == "checkpointed":
        found.append("gradient='checkpointed' is not one of direct, adjoint")
    if solver.backward is not None:
        found += _about_backward(solver)
    return found


def keywords(problem: SDEProblem, solver: Solver) -> dict[str, Any]:
    """Keywords of torchsde's sdeint; with those of sdeint_adjoint where that is called."""
    length = float(problem.t[-1] - problem.t[0])
    if solver.step is not None:
        exact = solver.method == "reversible_heun" and solver.gradient == "adjoint"
        return {"method": solver.method, "dt": solver.step * (1.0 if exact else 1 + _ROUNDING)}
    forward = {
        "method": solver.method,
        "dt": _FIRST * length,
        "adaptive": True,
        "rtol": solver.rtol,
        "atol": solver.atol,
        "dt_min": 0.0,  # a tally refuses steps that time cannot resolve
    }
    if solver.gradient != "adjoint":
        return forward
    own = solver.backward or solver
    return forward | {
        "adjoint_adaptive": True,
        "adjoint_rtol": own.rtol,
        "adjoint_atol": own.atol,
    }


@contextmanager
def quiet() -> Generator[None]:
    """Without torchsde's own warnings: what they say is refused, or reported, by us."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torchsde\..*")
        yield


def _about_steps(problem: SDEProblem, solver: Solver) -> list[str]:
    method, reversible = str(solver.method), solver.method == "reversible_heun"
    if solver.step is None:
        if method == "euler" and problem.noise != "additive":
            return [
                "method='euler' with adaptive steps need not converge to the solution (its error "
                "estimate does not see the noise's); give `step`"
            ]
        if reversible and solver.gradient == "adjoint":
            return ["method='reversible_heun' goes back exactly only with a fixed `step`"]
        return []
    if not (reversible and solver.gradient == "adjoint"):
        return []
    n = (problem.t - problem.t[0]) / solver.step
    if bool(torch.all((n - n.round()).abs() < _EVEN)):
        return []
    return [
        "method='reversible_heun' with gradient='adjoint' is exact only where every output lies on "
        f"a multiple of `step`, got step={solver.step:g} for t={problem.t.tolist()}"
    ]


def _about_backward(solver: Solver) -> list[str]:
    found: list[str] = []
    if solver.gradient != "adjoint":
        found.append("`backward` tolerances belong to gradient='adjoint'")
    if solver.step is not None:
        found.append("`backward` tolerances mean nothing to the fixed steps of `step`")
    if leaves_out(solver.backward):
        found.append("Tolerances(norm='seminorm') is not offered for SDEs")
    if is_absolute(solver.backward):
        found.append("Tolerances(unit='absolute') is not offered for SDEs")
    return found
