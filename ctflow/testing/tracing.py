"""Whether the compiled backend can follow a field: asked without compiling, or a compiler."""

from __future__ import annotations

from typing import Protocol, cast

import torch

from ctflow.backends.protocol import Solver, resolve
from ctflow.backends.registry import get
from ctflow.problem import ODEProblem
from ctflow.testing.subject import Subject

__all__ = ["follow"]


class _Follows(Protocol):
    """What the compiled backend has beside a backend's own methods."""

    def follow(self, problem: ODEProblem, solver: Solver) -> None: ...


def follow(subject: Subject) -> None:
    """Follow the field, and its derivative, into the graphs that programs are made of.

    Raises:
        CtflowError: If that is not possible: what stands in the way, and in which line.

    Cost:
        The first call in a process imports torch's compiler: two seconds.
    """
    backend = get("compiled")  # by name, so that nothing else of this package waits for the import
    times = torch.tensor([subject.box.t0, subject.box.t1], dtype=torch.float64)
    problem = ODEProblem(subject.f, subject.cases[0].y, times, args=subject.args)
    with torch.enable_grad():
        solver = resolve(problem, Solver("compiled", coupling="shared"), backend)
        cast("_Follows", backend).follow(problem, solver)
