"""Who answers: the interface that every backend has, and the registry that finds one by name."""

from ctflow.backends.protocol import Backend, Feature, Solver, Tolerances
from ctflow.backends.registry import available, get, register
from ctflow.backends.tableau import Tableau

__all__ = [
    "Backend",
    "Feature",
    "Solver",
    "Tableau",
    "Tolerances",
    "available",
    "get",
    "register",
]
