"""`compare` puts solvers side by side."""

from __future__ import annotations

import json

import pytest
import torch

from ctflow import ODEProblem, Solver
from ctflow.testing import compare
from tests.problems import FLOAT, decay, limit_cycle

pytestmark = pytest.mark.once


def turning(dtype: torch.dtype = FLOAT) -> ODEProblem:
    """Two states on their way to the unit circle."""
    y0 = torch.tensor([[0.5, 0.0], [0.0, 2.0]], dtype=dtype)
    return ODEProblem(limit_cycle.f, y0, [0.0, 1.0, 2.0])


def test_every_installed_backend_has_its_rows() -> None:
    """With small differences and real costs."""
    table = compare(turning(), rtol=1e-7, repeats=1)
    assert {row.solver for row in table.rows} >= {
        "native direct",
        "native checkpointed",
        "native adjoint",
        "torchdiffeq direct",
        "scipy adjoint",
    }
    assert table.widest < 1e-4
    assert all(row.n_forward > 0 and row.seconds > 0 for row in table.rows)
    assert all(row.n_bytes is not None and row.n_bytes > 0 for row in table.rows)


@pytest.mark.slow
def test_the_adjoint_keeps_less_than_direct() -> None:
    """Memory is that of tensors alive at once: of many steps, or of those few that wait."""
    wanted = [Solver(gradient="direct"), Solver(gradient="adjoint")]
    problem = ODEProblem(limit_cycle.f, turning().y0, [0.0, 10.0, 20.0])
    direct, adjoint = compare(problem, wanted, repeats=1).rows
    assert direct.n_backward == 0 < adjoint.n_backward
    assert direct.n_bytes is not None
    assert adjoint.n_bytes is not None
    assert direct.n_bytes > 2 * adjoint.n_bytes


def test_a_refusal_stands_in_its_row() -> None:
    """The others have their numbers."""
    wanted = [Solver(), Solver(backend="torchdiffeq", gradient="checkpointed")]
    table = compare(turning(), wanted, repeats=1)
    good, refused = table.rows
    assert not good.failure
    assert "cannot do this" in refused.failure
    assert refused.failure in str(table)


@pytest.mark.parametrize("batched", [False, True])
def test_float32_and_batches(batched: bool) -> None:
    """A reference at the resolution of the dtype."""
    problem = ODEProblem(decay, torch.ones(4, 2), [0.0, 1.0], batched=batched)
    assert compare(problem, ["native"], repeats=1).widest < 1e-4


def test_json_has_the_rows() -> None:
    """For scripts."""
    data = json.loads(compare(turning(), ["native"], repeats=1).to_json())
    assert [row["solver"] for row in data["rows"]] == ["native"]


def test_what_compiles_first_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants to wait for it names it."""
    names = ("native", "compiled")
    monkeypatch.setattr("ctflow.testing.routes.registry.available", lambda: names)
    problem = ODEProblem(decay, torch.ones(2, dtype=FLOAT), [0.0, 1.0])
    table = compare(problem, repeats=1)
    assert {row.solver.split()[0] for row in table.rows} == {"native"}
    assert table.left_out == ("compiled",)
    assert "compiled is left out" in str(table)
    assert compare(problem, ["native"], repeats=1).left_out == ()
