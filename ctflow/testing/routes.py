"""Every way to solve a problem here: backends and gradient methods that do not refuse it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ctflow.backends import registry
from ctflow.backends.protocol import Gradient, Solver, check, resolve
from ctflow.errors import CtflowError
from ctflow.problem import ODEProblem

__all__ = ["COMPILING", "GRADIENTS", "every_solver", "label", "left_out", "prompt"]

GRADIENTS: tuple[Gradient, ...] = ("direct", "checkpointed", "adjoint")

COMPILING = frozenset({"compiled"})
"""Backends that make a program of each `f` first, which takes tens of seconds for each gradient
method. Nobody shall wait for that who has not asked for it: they are taken where they are named,
and where all backends are taken the result says that they were left out."""


def prompt() -> tuple[str, ...]:
    """Installed backends that begin at once."""
    return tuple(name for name in registry.available() if name not in COMPILING)


def left_out() -> tuple[str, ...]:
    """Installed backends that do not."""
    return tuple(name for name in registry.available() if name in COMPILING)


def every_solver(problem: ODEProblem, backends: Iterable[str] | None = None) -> Iterator[Solver]:
    """Each backend with each gradient method that it does not refuse for the problem.

    Args:
        problem: What is asked.
        backends: Their names; None: all that are installed and begin without compiling.

    Raises:
        BackendUnavailable: If one that is named is not there.

    Example:
        >>> import torch
        >>> from ctflow import ODEProblem
        >>> problem = ODEProblem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), [0.0, 1.0])
        >>> [solver.gradient for solver in every_solver(problem, ["native"])]
        ['direct', 'checkpointed', 'adjoint']
    """
    for name in prompt() if backends is None else backends:
        backend = registry.get(name)
        for gradient in GRADIENTS:
            solver = Solver(backend=name, gradient=gradient)
            try:
                check(problem, resolve(problem, solver, backend), backend)
            except CtflowError:
                continue
            yield solver


def label(solver: Solver) -> str:
    """A solver in few words."""
    name = solver.backend if isinstance(solver.backend, str) else solver.backend.name
    parts = [name, *(str(x) for x in (solver.gradient, solver.method, solver.coupling) if x)]
    return " ".join(parts)
