"""The pytest plugin: loaded without torch, `@pytest.mark.dynamics`, a fixture over backends."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "ctflow/testing/pytest_plugin"

FIELDS = """
import pytest
import torch


@pytest.mark.dynamics(shape=(4, 2), compiled=False)
def test_sound():
    net = torch.nn.Linear(2, 2)
    return lambda t, y: torch.tanh(net(y))


@pytest.mark.dynamics(shape=(4, 2), times=(0.0, 2.0), dtype=torch.float64, compiled=False)
def test_noisy():
    return lambda t, y: -y + torch.rand(())


@pytest.mark.dynamics(shape=(4, 2))
def test_forgotten():
    pass
"""

BACKENDS = """
from ctflow import odeint
import torch

def test_decay(ctflow_backend):
    y = odeint(lambda t, y: -y, torch.ones(2), [0.0, 1.0], backend=ctflow_backend)
    assert y.shape == (2, 2)
"""


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What pytest says of a test file, with the plugin and nothing else."""
    (folder / "test_it.py").write_text(text)
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "ctflow_pytest", "--strict-markers", "-v"]
    return subprocess.run(
        [*command, *options, "test_it.py"],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def test_loading_it_imports_neither_torch_nor_ctflow(tmp_path: Path) -> None:
    """A test run that needs neither does not pay for them."""
    text = "import sys\n\ndef test_it():\n    assert not {'torch', 'ctflow'} & set(sys.modules)\n"
    result = run(tmp_path, text)
    assert result.returncode == 0, result.stdout


def test_marked_tests_are_checked_and_the_fixture_takes_every_chosen_backend(
    tmp_path: Path,
) -> None:
    """A sound field passes; noise fails by name, without a traceback; nothing is said to be it."""
    chosen = ("--ctflow-backend", "native", "--ctflow-backend", "torchdiffeq")
    output = run(tmp_path, FIELDS + BACKENDS, *chosen).stdout
    assert "test_sound PASSED" in output
    assert "test_noisy FAILED" in output
    assert "FAILED repeatable: two calls with the same `t` and `y`" in output
    assert "Traceback" not in output
    assert "must return a vector field" in output
    assert "test_decay[native] PASSED" in output
    assert "test_decay[torchdiffeq] PASSED" in output
    assert "3 passed" in output
    assert "2 failed" in output


@pytest.mark.once
def test_without_a_choice_it_is_every_installed_backend(tmp_path: Path) -> None:
    """Collected, not run."""
    output = run(tmp_path, BACKENDS, "--collect-only", "-qq").stdout
    assert {"test_decay[native]", "test_decay[scipy]"} <= {
        line.partition("::")[2] for line in output.splitlines()
    }


def test_installing_ctflow_announces_it() -> None:
    """Under pytest's own entry-point group."""
    points = {point.name: point.value for point in entry_points(group="pytest11")}
    assert points.get("ctflow") == "ctflow_pytest"
