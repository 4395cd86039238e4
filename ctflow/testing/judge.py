"""Solvers measured against a reference that no short event escapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctflow.backends import registry
from ctflow.backends.protocol import Solver, check, resolve
from ctflow.errors import CtflowError
from ctflow.problem import ODEProblem
from ctflow.state import leaves_of
from ctflow.testing.asked import Asked, Gradient, infinite_if_nan
from ctflow.testing.certificate import Measured, written
from ctflow.testing.reference import frozen, on_grid

__all__ = ["Judge", "completed"]

_NODES = 512  # of the reference, evenly spread: what is shorter than T / 512 may go unseen
_LEAST = 1e-300


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures solvers against the reference.

    Args:
        asked: The problem, with the gradients that are wanted.
        reference: Outputs and gradient of a fine grid.
        accuracy: Relative error that is good enough.
        atol: Absolute tolerance of the solver that was asked about: smaller outputs do not count.
    """

    asked: Asked
    reference: Gradient
    accuracy: float
    atol: float

    @classmethod
    def of(cls, asked: Asked, accuracy: float, atol: float) -> Judge:
        """Solve for the reference.

        Raises:
            SolveFailed: If it cannot be solved.
            InvalidProblem: If its gradient is not finite.
        """
        dtype: torch.dtype = leaves_of(asked.problem.y0)[0].dtype
        tight = max(1e-10, 50 * torch.finfo(dtype).eps)
        grid = frozen(asked.problem, tight, _NODES)
        coupling = "per_sample" if asked.problem.t.dim() == 2 else None
        reference = asked.gradient(on_grid(grid, coupling))
        reference.check_finite()
        return cls(asked, reference, accuracy, atol)

    def measure(self, solver: Solver) -> Measured:
        """Errors and cost of a solver; what it raises is its failure."""
        name = written(solver)
        try:
            found = self.asked.gradient(solver)
        except CtflowError as error:
            return Measured(name, float("inf"), float("inf"), 0, " ".join(str(error).split()))
        stats = found.solution.stats
        counts = [c.n_f_evals for c in (stats.forward, stats.backward) if c is not None]
        n = sum(int(count.amax()) for count in counts)
        doubt = found.doubts[0] if found.doubts else ""
        return Measured(name, self._value_error(found.y), self._gradient_error(found), n, doubt)

    def _value_error(self, y: Tensor) -> float:
        """The largest over times and samples; the start, which is given, left out."""
        gap = (y - self.reference.y)[1:].double().square().mean(dim=-1).sqrt()
        size = self.reference.y[1:].double().square().mean(dim=-1).sqrt()
        error = gap / (size + self.atol / self.accuracy).clamp(min=_LEAST)
        return infinite_if_nan(float(error.amax()))

    def _gradient_error(self, found: Gradient) -> float:
        """The largest of a part, relative to it; of one that hardly counts, to the whole."""
        reference = self.reference
        floor = max(1e-3 * reference.norm, _LEAST)
        return max(
            reference.distance(found, part) / max(reference.of_part(part), floor)
            for part in found.parts
        )


def completed(problem: ODEProblem, solver: Solver) -> Solver:
    """Every setting filled in.

    Raises:
        CtflowError: If the backend refuses it.
    """
    backend = registry.get(solver.backend)
    full = resolve(problem, solver, backend)
    check(problem, full, backend)
    return full
