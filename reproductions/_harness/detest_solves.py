"""Solves of DETEST by ctflow, torchdiffeq and SciPy, and the errors of single steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from benchmarks.detest_problems import END, Problem
from torch import Tensor

from ctflow import ODEProblem, Solver, solve

__all__ = [
    "Controlled",
    "Run",
    "by_scipy",
    "by_torchdiffeq",
    "controllers_of",
    "geometric_mean",
    "off",
    "ours",
    "under",
    "with_steps",
]


class Run(NamedTuple):
    """One solve.

    Attributes:
        problem: Its name.
        who: "ctflow dopri5" and the like.
        tolerance: Relative and absolute.
        error: At the end, in units of 1 + |y|.
        evaluations: Of f.
        steepest: Largest error of a single step in tolerances, by the norm of the control; None
            where it was not looked at.
        beyond: Share of steps whose error was above tolerance.
        first: Size of the first step; None where it was not looked at.
    """

    problem: str
    who: str
    tolerance: float
    error: float
    evaluations: int
    steepest: float | None = None
    beyond: float | None = None
    first: float | None = None


class Controlled(NamedTuple):
    """A solve by dopri5 under one step-size controller.

    Attributes:
        controller: Its name.
        tolerance: Relative and absolute.
        error: At the end, in units of 1 + |y|.
        evaluations: Of f.
        rejected: Share of attempted steps.
    """

    controller: str
    tolerance: float
    error: float
    evaluations: int
    rejected: float


def under(problem: Problem, name: str, tolerance: float, right: Tensor) -> Controlled:
    """ctflow's dopri5 under a controller."""
    solver = Solver(method="dopri5", rtol=tolerance, atol=tolerance, controller=name)  # pyright: ignore
    solution = solve(ODEProblem(problem.f, problem.y0, [0.0, END]), solver)  # pyright: ignore
    counts = solution.stats.forward
    return Controlled(name, tolerance, off(solution.y[-1], right), int(counts.n_f_evals),
                      int(counts.n_rejected) / int(counts.n_steps))  # fmt: skip


def ours(problem: Problem, method: str, tolerance: float, right: Tensor, look: bool) -> Run:
    """ctflow's solve, and the error of each of its steps where it is looked at."""
    solver = Solver(method=method, rtol=tolerance, atol=tolerance, max_steps=10**6)
    solution = solve(ODEProblem(problem.f, problem.y0, [0.0, END]), solver)  # pyright: ignore
    times = solution.stats.step_times[0]
    run = Run(problem.name, f"ctflow {method}", tolerance, off(solution.y[-1], right),
              int(solution.stats.forward.n_f_evals), first=float(times[1]))  # fmt: skip
    if not look:
        return run
    course = solve(ODEProblem(problem.f, problem.y0, times), solver).y  # the same steps
    return with_steps(run, problem, times, course)


def with_steps(run: Run, problem: Problem, times: Tensor, course: Tensor) -> Run:
    """The run with the errors of its steps: each is solved again from where it began."""
    spans = torch.stack([times[:-1], times[1:]], dim=1)
    tight = Solver(method="dop853", rtol=1e-13, atol=1e-15, max_steps=10**6)
    exact = solve(ODEProblem(problem.f, course[:-1], spans, batched=True), tight).y[-1]
    scale = run.tolerance * (1 + torch.maximum(course[:-1].abs(), course[1:].abs()))
    ratio = ((course[1:] - exact) / scale).square().mean(dim=1).sqrt()
    return run._replace(steepest=float(ratio.max()), beyond=float((ratio > 1).double().mean()))


def by_torchdiffeq(problem: Problem, method: str, tolerance: float) -> tuple[Tensor, int]:
    """State at the end and evaluations of torchdiffeq."""
    import torchdiffeq

    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.f(t, y)

    t = torch.tensor([0.0, END], dtype=torch.float64)
    y = torchdiffeq.odeint(f, problem.y0, t, rtol=tolerance, atol=tolerance, method=method)
    return cast("Tensor", y)[-1], calls


def by_scipy(
    problem: Problem, method: str, tolerance: float, first: float | None = None
) -> tuple[Tensor, Tensor, int]:
    """Ends of the steps, states there, and evaluations of SciPy, with a first step or its own."""
    from scipy.integrate import solve_ivp

    def f(t: float, y: np.ndarray) -> np.ndarray:
        return problem.f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    found = solve_ivp(
        f, (0.0, END), problem.y0.numpy(), method=method, rtol=tolerance,
        atol=min(tolerance, 1e-16 if tolerance < 1e-13 else tolerance), first_step=first,
    )  # fmt: skip
    times, course = torch.from_numpy(found.t), torch.from_numpy(found.y.T.copy())
    return times, course, int(found.nfev)


def off(y: Tensor, right: Tensor) -> float:
    """Largest error of all variables, in units of 1 + |y|."""
    return float(((y - right).abs() / (1 + right.abs())).max())


def controllers_of(runs: Sequence[Controlled]) -> list[dict[str, object]]:
    """Means over the problems for each controller and tolerance."""
    found: dict[tuple[str, float], list[Controlled]] = {}
    for r in runs:
        found.setdefault((r.controller, r.tolerance), []).append(r)
    return [
        {
            "controller": name,
            "tolerance": tolerance,
            "evaluations": geometric_mean([float(r.evaluations) for r in own]),
            "error": geometric_mean([max(r.error, 1e-15) / tolerance for r in own]),
            "rejected": sum(r.rejected for r in own) / len(own),
        }
        for (name, tolerance), own in found.items()
    ]


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(math.log(value) for value in values) / len(values))
