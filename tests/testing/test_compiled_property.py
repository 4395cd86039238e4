"""`check_dynamics` asks the compiled backend where there is one, through the registry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from ctflow import BackendUnavailable, ODEProblem, Solution, Solver, Unsupported
from ctflow.backends import Backend, Feature, get
from ctflow.testing import inspect_dynamics
from tests.problems import decay
from tests.testing.broken_dynamics import state


@dataclass(frozen=True)
class Tracing:
    """Stands for the compiled backend: solves as ours, or cannot trace."""

    cannot: str = ""
    name: str = "compiled"
    features: frozenset[Feature] = frozenset(Feature)

    def refuse(self, problem: ODEProblem, solver: Solver) -> list[str]:
        return []

    def solve(self, problem: ODEProblem, solver: Solver) -> Solution:
        if self.cannot:
            raise Unsupported(self.cannot)
        return get("native").solve(problem, solver)


def install(monkeypatch: pytest.MonkeyPatch, backend: Backend | None) -> None:
    """Let the registry know a backend under this name, or one that is not installed."""

    def found(name: object) -> Backend:
        if name == "native":
            return get("native")
        if backend is None:
            raise BackendUnavailable("backend 'compiled' needs a C++ compiler. Install one.")
        return backend

    monkeypatch.setattr("ctflow.backends.registry.names", lambda: ("native", "compiled"))
    monkeypatch.setattr("ctflow.testing.check.registry.get", found)


def test_a_field_that_can_be_traced_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short solve by it."""
    install(monkeypatch, Tracing())
    report = inspect_dynamics(decay, state())
    assert "compiled" in [finding.name for finding in report.having("passed")], str(report)


def test_a_field_that_cannot_be_traced_fails_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backend's own words."""
    install(monkeypatch, Tracing("cannot trace `if y.sum() > 0:`; use backend='native'"))
    report = inspect_dynamics(decay, state())
    assert report.failed == ("compiled",)
    assert "if y.sum() > 0:" in report.failures[0].what


def test_where_it_is_not_installed_the_property_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the report says why."""
    install(monkeypatch, None)
    report = inspect_dynamics(decay, torch.ones(2, 2))
    assert report.ok
    assert "C++ compiler" in report.note("compiled")
