"""Trust: test any vector field, certify any solve, prove any backend."""

from ctflow.errors import CheckFailed
from ctflow.testing.certificate import Certificate
from ctflow.testing.certify import certify
from ctflow.testing.check import check_dynamics, inspect_dynamics
from ctflow.testing.compare import Comparison, compare
from ctflow.testing.conformance import inspect_backend, run_backend_conformance
from ctflow.testing.gradients import check_gradients, inspect_gradients
from ctflow.testing.laws import (
    Autonomous,
    Conserves,
    DivergenceFree,
    Equivariant,
    FlowProperty,
    Hamiltonian,
    Law,
    Linear,
    TimeReversal,
)
from ctflow.testing.memory import LiveStorage
from ctflow.testing.report import Finding, Report
from ctflow.testing.routes import every_solver

__all__ = [
    "Autonomous",
    "Certificate",
    "CheckFailed",
    "Comparison",
    "Conserves",
    "DivergenceFree",
    "Equivariant",
    "Finding",
    "FlowProperty",
    "Hamiltonian",
    "Law",
    "Linear",
    "LiveStorage",
    "Report",
    "TimeReversal",
    "certify",
    "check_dynamics",
    "check_gradients",
    "compare",
    "every_solver",
    "inspect_backend",
    "inspect_dynamics",
    "inspect_gradients",
    "run_backend_conformance",
]
