"""ctflow: neural differential equations in PyTorch, with solvers that swap by one argument."""

from ctflow.api import compile_ahead, odeint, odeint_dense, odeint_event, solve
from ctflow.api_sde import sdeint, solve_sde
from ctflow.backends.controller import Controller
from ctflow.backends.protocol import Solver, Tolerances
from ctflow.backends.tableau import Tableau
from ctflow.dense import DenseSolution
from ctflow.errors import (
    BackendUnavailable,
    CtflowError,
    InvalidProblem,
    SolveFailed,
    Unsupported,
)
from ctflow.event import Event, EventRecord
from ctflow.problem import ODEProblem
from ctflow.sde import SDEProblem
from ctflow.solution import Solution, Stats, Status

__all__ = [
    "BackendUnavailable",
    "Controller",
    "CtflowError",
    "DenseSolution",
    "Event",
    "EventRecord",
    "InvalidProblem",
    "ODEProblem",
    "SDEProblem",
    "Solution",
    "SolveFailed",
    "Solver",
    "Stats",
    "Status",
    "Tableau",
    "Tolerances",
    "Unsupported",
    "compile_ahead",
    "odeint",
    "odeint_dense",
    "odeint_event",
    "sdeint",
    "solve",
    "solve_sde",
]

__version__ = "0.1.0"
