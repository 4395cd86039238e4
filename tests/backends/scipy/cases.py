"""The methods of SciPy, and how near to the solution each may be expected."""

from __future__ import annotations

import torch

from ctflow import Solver

__all__ = ["METHODS", "NEWTON", "ONE", "TOL", "WITHIN", "scipy"]

TOL = 1e-7
ONE = torch.ones(1, dtype=torch.float64)
METHODS = ("dopri5", "bosh3", "dop853", "adams", "lsoda", "bdf", "radau")
NEWTON = ("lsoda", "bdf", "radau")

# Tolerances of a result, in those of a step. Multistep methods take many steps of nearly the whole
# tolerance, and their errors add up.
WITHIN = dict.fromkeys(METHODS, 20) | dict.fromkeys(("adams", "lsoda", "bdf"), 100)


def scipy(method: str | None = None, tol: float = TOL, **settings: object) -> Solver:
    """Settings with one tolerance."""
    return Solver("scipy", method=method, rtol=tol, atol=tol, **settings)
