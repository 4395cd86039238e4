"""Trust: test any vector field, certify any solve, prove any backend."""

from ctflow.errors import CheckFailed
from ctflow.testing.check import check_dynamics, inspect_dynamics
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
from ctflow.testing.report import Finding, Report

__all__ = [
    "Autonomous",
    "CheckFailed",
    "Conserves",
    "DivergenceFree",
    "Equivariant",
    "Finding",
    "FlowProperty",
    "Hamiltonian",
    "Law",
    "Linear",
    "Report",
    "TimeReversal",
    "check_dynamics",
    "inspect_dynamics",
]
