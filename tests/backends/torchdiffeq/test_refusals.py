"""What torchdiffeq cannot do is refused by name, before any work."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from ctflow import BackendUnavailable, ODEProblem, Solver, Tolerances, Unsupported, solve
from tests.problems import FLOAT, decay

REFUSED = {
    "rk4": ({"method": "rk4", "step": 0.1}, "3/8 rule, here 'rk4_38'"),
    "tsit5": ({"method": "tsit5"}, "'tsit5' is not one of dopri5"),
    "fixed without a step": ({"method": "euler"}, "give `step`"),
    "adaptive with a step": ({"method": "dopri5", "step": 0.1}, "takes no fixed `step`"),
    "per-sample": ({"coupling": "per_sample"}, "coupling='per_sample'"),
    "checkpointed": ({"gradient": "checkpointed"}, "gradient='checkpointed'"),
    "backward of direct": (
        {"gradient": "direct", "backward": Tolerances(1e-6, 1e-6)},
        "belong to gradient='adjoint'",
    ),
    "backward of fixed steps": (
        {"gradient": "adjoint", "backward": Tolerances(1e-6, 1e-6), "method": "euler", "step": 0.1},
        "mean nothing to the fixed steps",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_do_is_refused_by_name(case: str) -> None:
    """Each reason is said."""
    settings, reason = REFUSED[case]
    problem = ODEProblem(decay, torch.ones(2, 1, dtype=FLOAT), [0.0, 1.0])
    with pytest.raises(Unsupported, match=reason):
        solve(problem, Solver("torchdiffeq", **settings))


def test_times_of_each_sample_are_refused() -> None:
    """A grid [B, T] needs per-sample steps."""
    t = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=FLOAT)
    problem = ODEProblem(decay, torch.ones(2, 1, dtype=FLOAT), t)
    with pytest.raises(Unsupported, match="gives each sample its own times"):
        solve(problem, "torchdiffeq")


def test_a_batched_problem_is_solved_as_one_system() -> None:
    """Coupling left open becomes shared, and the statistics say so."""
    problem = ODEProblem(decay, torch.ones(2, 1, dtype=FLOAT), [0.0, 1.0], batched=True)
    assert solve(problem, "torchdiffeq").stats.solver.coupling == "shared"


def test_without_the_library_the_backend_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what to install."""
    for name in [name for name in sys.modules if name.startswith("ctflow.backends.torchdiffeq")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(BackendUnavailable, match="pip install torchdiffeq"):
        importlib.import_module("ctflow.backends.torchdiffeq")
