"""Bands, records and live lines mean what they say."""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from _harness.bands import Band
from _harness.comparison import accepted_solvers, timed
from _harness.live import LiveLine, counted
from _harness.records import environment, need, write_json
from rich.console import Console

from ctflow import CtflowError, ODEProblem, Solver, solve
from ctflow.errors import GradientWarning
from ctflow.testing.routes import prompt


@pytest.mark.parametrize(
    ("value", "passed"), [(0.5, True), (0.4, True), (0.39, False), (0.61, False), (math.nan, False)]
)
def test_a_band_accepts_what_lies_within(value: float, passed: bool) -> None:
    """Limits included; NaN lies nowhere."""
    band = Band("x", value, low=0.4, high=0.6)
    assert band.passed is passed
    assert str(band).endswith("ok" if passed else "MISSED")


def test_a_band_can_be_written_whatever_its_value() -> None:
    """JSON has no NaN."""
    assert json.dumps(Band("x", math.nan, low=1.0).record(), allow_nan=False)


def test_a_record_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written leaves the old file, and no other."""
    path = tmp_path / "results/x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_the_environment_names_versions_and_no_places() -> None:
    """No path and no name of a machine or a person."""
    text = json.dumps(environment())
    assert torch.__version__ in text
    assert "/" not in text
    assert not re.search(r"host|user|home", text)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command that installs it."""
    monkeypatch.setattr("_harness.records.find_spec", lambda name: None)
    with pytest.raises(CtflowError, match=re.escape("pip install 'ctflow[data,plots]'")):
        need("sklearn", "matplotlib")


def test_the_first_and_the_last_line_are_printed_where_none_can_be_rewritten() -> None:
    """In a log: the first at once, the last at the end, and few between."""
    out = io.StringIO()
    with LiveLine(Console(file=out, force_terminal=False)) as line:
        for i in range(100):
            line.show(f"line {i}")
    assert out.getvalue().splitlines() == ["line 0", "line 99"]


def test_a_terminal_keeps_the_last_line() -> None:
    """It is rewritten in place."""
    out = io.StringIO()
    with LiveLine(Console(file=out, force_terminal=True, width=40)) as line:
        line.show("line 0")
        line.show("line 1")
    assert out.getvalue().count("line 1") >= 1


def test_every_backend_and_gradient_method_takes_part() -> None:
    """Those that do not refuse, and the other settings stay."""
    y0 = torch.ones(2, 1, dtype=torch.float64)
    problem = ODEProblem(lambda t, y: -y, y0, [0.0, 1.0], batched=True)
    solvers = list(accepted_solvers(problem, Solver(rtol=1e-4)))
    assert {solver.backend for solver in solvers} == set(prompt())
    assert {("native", "direct"), ("native", "checkpointed")} <= {
        (solver.backend, solver.gradient) for solver in solvers
    }
    assert all(solver.rtol == 1e-4 for solver in solvers)


def test_a_doubted_gradient_is_noted_and_other_warnings_pass() -> None:
    """Only a GradientWarning is an answer."""
    _, doubted = timed(lambda: warnings.warn("?", GradientWarning, stacklevel=1), 1)
    assert doubted
    with pytest.warns(UserWarning, match="else"):
        _, doubted = timed(lambda: warnings.warn("else", UserWarning, stacklevel=1), 1)
    assert not doubted


def test_evaluations_are_counted_forward_and_backward() -> None:
    """As the solve's own statistics have them, in means over the samples."""
    y0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    problem = ODEProblem(lambda t, y: -y, y0, [0.0, 1.0], batched=True)
    solution = solve(problem, Solver(gradient="adjoint"))
    forward = solution.stats.forward.n_f_evals.double().mean()
    assert counted(solution.stats) == f"  evaluations {forward:.1f}"
    solution.y.sum().backward()
    assert solution.stats.backward is not None
    backward = solution.stats.backward.n_f_evals.double().mean()
    assert counted(solution.stats) == f"  evaluations {forward:.1f} + {backward:.1f}"
    assert counted(None) == ""
