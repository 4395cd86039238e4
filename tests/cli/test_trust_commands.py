"""`ctflow check`, `compare` and `certify`: targets, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ctflow.cli.app import app

FIELDS = """
import torch
from torch import nn
from ctflow import ODEProblem


def field(t, y):
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], dim=-1)


def damped(t, y):
    return field(t, y) - 0.1 * y


def energy(y):
    return 0.5 * y[..., 1] ** 2 - torch.cos(y[..., 0])


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    def forward(self, t, y):
        return self.net(y)


class NeedsMore:
    def __init__(self, width):
        pass


def raising(t, y):
    raise ValueError("no luck")


rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
problem = ODEProblem(
    lambda t, y: (torch.sin(5 * rate * t) - 1) * y,
    torch.ones(1, dtype=torch.float64),
    [0.0, 5.0],
)
number = 3
"""


@pytest.fixture
def fields(tmp_path: Path) -> str:
    """A file with fields in it."""
    path = tmp_path / "some_fields.py"
    path.write_text(FIELDS)
    return str(path)


def run(*arguments: object) -> Result:
    """What a command line does."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def check(*arguments: object) -> Result:
    """`ctflow check`, without compiling."""
    return run("check", *arguments, "--no-compiled")


def test_a_sane_field_has_exit_code_0(fields: str) -> None:
    """With what passed, and the law that was declared."""
    result = check(f"{fields}:field", "--shape", "8,2", "--conserves", f"{fields}:energy")
    assert result.exit_code == 0, result.output
    assert "no fault" in result.stdout
    assert f"conserves {fields}:energy" in "".join(result.stdout.split("\n      "))


def test_a_broken_field_has_exit_code_1(fields: str) -> None:
    """A class is called first; the report names the fault."""
    result = check(f"{fields}:Noisy", "--shape", "8,2")
    assert result.exit_code == 1
    assert "FAILED repeatable" in result.stdout


def test_a_broken_law_has_exit_code_1(fields: str) -> None:
    """Friction does not keep the energy."""
    result = check(f"{fields}:damped", "--shape", "8,2", "--conserves", f"{fields}:energy")
    assert result.exit_code == 1
    assert "FAILED conserves" in result.stdout


def test_a_module_is_found_by_its_name() -> None:
    """As it would be imported."""
    result = check("tests.problems:decay", "--shape", "4,2", "--linear", "--autonomous")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module:field", "cannot be imported"),
        ("no/such/file.py:field", "there is no Python file"),
        ("tests.problems:nothing", "has no 'nothing'"),
        ("tests.problems", "must read"),
        ("tests.problems:FLOAT", "must be a vector field"),
    ],
)
def test_a_target_that_is_none_is_one_line_and_exit_code_2(target: str, words: str) -> None:
    """With what to do."""
    result = check(target, "--shape", "4,2")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def f(t, y) return", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line_and_exit_code_2(
    tmp_path: Path, text: str, words: str
) -> None:
    """What was raised, and where."""
    path = tmp_path / "broken_file.py"
    path.write_text(text)
    result = check(f"{path}:f", "--shape", "4,2")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_class_that_needs_arguments_is_one_line_and_exit_code_2(fields: str) -> None:
    """It is called without any."""
    result = check(f"{fields}:NeedsMore", "--shape", "4,2")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "missing 1 required positional argument: 'width'" in result.stderr


@pytest.mark.parametrize("command", ["compare", "certify"])
def test_a_field_that_raises_is_one_line_and_exit_code_2(fields: str, command: str) -> None:
    """With the line of the field; `ctflow check` would report it as a finding."""
    result = run(command, f"{fields}:raising", "--shape", "4,2")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "ValueError: no luck at" in result.stderr
    assert "some_fields.py" in result.stderr


def test_a_field_that_raises_is_a_finding_of_check(fields: str) -> None:
    """In its own words."""
    result = check(f"{fields}:raising", "--shape", "4,2")
    assert result.exit_code == 1
    assert "FAILED structure: ValueError: no luck" in result.stdout


def test_a_quantity_that_is_none_is_exit_code_2(fields: str) -> None:
    """It must be a function."""
    result = check(f"{fields}:field", "--shape", "4,2", "--conserves", f"{fields}:number")
    assert result.exit_code == 2
    assert "must be a function" in result.stderr


@pytest.mark.parametrize("shape", ["x", "0,2", ""])
def test_a_shape_that_is_none_is_exit_code_2(shape: str) -> None:
    """Sizes are positive whole numbers."""
    assert check("tests.problems:decay", "--shape", shape).exit_code == 2


def test_the_report_as_json(fields: str) -> None:
    """For scripts: the same findings."""
    data = json.loads(check(f"{fields}:Noisy", "--shape", "8,2", "--json").stdout)
    failed = [x["name"] for x in data["findings"] if x["outcome"] == "failed"]
    assert (data["ok"], failed[0]) == (False, "repeatable")


def test_compare_prints_a_table(fields: str) -> None:
    """A row for each solver that was named."""
    solvers = ("--solver", "native:direct", "--solver", "torchdiffeq:adjoint")
    result = run("compare", f"{fields}:field", "--shape", "3,2", *solvers, "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert "native direct" in result.stdout
    assert "torchdiffeq adjoint" in result.stdout


@pytest.mark.parametrize(("most", "code"), [(1e-3, 0), (1e-15, 1)])
def test_compare_fails_where_solvers_disagree(fields: str, most: float, code: int) -> None:
    """With `--most`; JSON has the difference."""
    arguments = ("compare", f"{fields}:problem", "--solver", "native", "--repeats", 1)
    result = run(*arguments, "--most", most, "--json")
    assert result.exit_code == code, result.output
    assert json.loads(result.stdout)["rows"][0]["value"] > 1e-15


def test_compare_has_exit_code_1_where_a_solver_fails(fields: str) -> None:
    """Its row says why; JSON has null where there is no number."""
    solvers = ("--solver", "native", "--solver", "torchdiffeq:checkpointed")
    result = run("compare", f"{fields}:problem", *solvers, "--repeats", 1, "--json")
    assert result.exit_code == 1
    good, refused = json.loads(result.stdout, parse_constant=_no_constant)["rows"]
    assert good["seconds"] > 0
    assert refused["seconds"] is None
    assert "cannot do this" in refused["failure"]


def test_a_certificate_of_a_solver_that_fails_is_json(fields: str) -> None:
    """Without Infinity, which no other program reads."""
    settings = ("--backend", "torchdiffeq", "--rtol", 1e-3, "--atol", 1e-300, "--json")
    result = run("certify", f"{fields}:problem", *settings)
    json.loads(result.stdout, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def test_compare_refuses_a_backend_that_there_is_not(fields: str) -> None:
    """In one line, with those that there are."""
    result = run("compare", f"{fields}:problem", "--solver", "natve")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "'native'" in result.stderr


def test_compare_refuses_a_gradient_that_there_is_not(fields: str) -> None:
    """In one line."""
    result = run("compare", f"{fields}:problem", "--solver", "native:symplectic")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(("rtol", "code"), [(1e-3, 1), (1e-7, 0)])
def test_certify_has_the_verdict_as_its_exit_code(fields: str, rtol: float, code: int) -> None:
    """The rate that torchdiffeq follows 57 % wrong at 1e-3."""
    settings = ("--backend", "torchdiffeq", "--rtol", rtol, "--atol", 1e-3 * rtol)
    result = run("certify", f"{fields}:problem", *settings, "--json")
    assert result.exit_code == code, result.output
    data = json.loads(result.stdout)
    assert data["verdict"] == ("not adequate" if code else "adequate")
    assert data["recommended"].startswith("Solver(backend='torchdiffeq'")
