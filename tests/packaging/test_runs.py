"""The runs that `make test` consists of mean what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.workplace import ROOT, Workplace

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def test_an_assert_in_a_test_fails_under_optimization(tmp_path: Path) -> None:
    """Pytest rewrites the assert statements of test modules, so `python -O` does not drop them."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert __debug__\n")
    result = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stdout
    assert "1 failed" in result.stdout


def test_the_bare_environment_has_no_optional_extra(tmp_path: Path) -> None:
    """It imports what ctflow needs at run time, and nothing that only an extra brings."""
    extras = ("hypothesis", "matplotlib", "sklearn", "xdist", "build", "hatchling")
    for module in extras:
        pytest.importorskip(module)  # else there would be nothing to leave out
    script = ROOT / ".ci/bare_environment.py"
    subprocess.run([sys.executable, script, tmp_path / "bare"], check=True, capture_output=True)
    find = (
        "import sys; from importlib.util import find_spec; import torch, torchsde, typer, pytest; "
        "print([name for name in sys.argv[1:] if find_spec(name)])"
    )
    result = subprocess.run(
        [tmp_path / "bare/bin/python", "-P", "-c", find, *extras],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "[]\n"


@needs_make
def test_make_test_runs_every_part(tmp_path: Path) -> None:
    """Style, types, tests and documents, `python -O`, and no extras."""
    plan = Workplace(tmp_path).make("--dry-run", "test").stdout
    parts = ["ruff check", "ruff format --check", "pyright", "mkdocs build --strict"]
    parts += ["-n 2 --doctest-modules ctflow tests"]
    parts += ["PYTHONOPTIMIZE=1 .venv/bin/python -m pytest", ".venv-bare/bin/python -m pytest"]
    parts += ["PYTHONOPTIMIZE=1 .venv-bare/bin/python -m pytest"]
    positions = [plan.index(part) for part in parts]
    assert positions == sorted(positions)


def test_continuous_integration_runs_the_same_command() -> None:
    """`.ci/run` is `make test` and no second list of checks."""
    script = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert [line for line in script.splitlines() if "make" in line] == ["make test"]


@needs_make
def test_make_help_names_every_target(tmp_path: Path) -> None:
    """What the Makefile offers is what `make` alone lists."""
    listed = set(re.findall(r"^make (\w+)", Workplace(tmp_path).make().stdout, re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert listed == targets - {"help", "environment"}


def test_no_recipe_needs_an_activated_environment() -> None:
    """Every recipe names the environment's Python; none relies on the caller's PATH."""
    recipes = re.findall(r"^\t.*\bpython\b.*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line for line in recipes if "echo" not in line and "$(python)" not in line] == []
