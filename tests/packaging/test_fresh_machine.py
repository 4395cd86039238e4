"""A real installation: an empty environment, a path with spaces, no git, then no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import ctflow
from tests.packaging.workplace import ROOT

LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "results")
# Pip finds a mirror, if there is one, in the home folder; nothing else is taken along.
EMPTY = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
NO_NETWORK = {"PIP_NO_INDEX": "1", "https_proxy": "http://127.0.0.1:9", "http_proxy": "127.0.0.1:9"}


@pytest.mark.slow
def test_a_killed_installation_recovers_and_then_works_without_network(tmp_path: Path) -> None:
    """The whole life of an environment, with the real pip."""
    folder = tmp_path / "a path with spaces"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    _kill_while_torch_is_unpacked(folder)
    assert not (folder / ".venv/.installed").exists()

    assert "Making .venv" in _run(folder, EMPTY, "make", "environment")
    assert _run(folder, EMPTY | NO_NETWORK, "make", "environment") == ""
    python = f"{folder}/.venv/bin/python"
    pytest_arguments = ["-m", "pytest", "tests/test_checks.py"]
    assert "7 passed" in _run(folder, EMPTY | NO_NETWORK, python, *pytest_arguments)
    assert "0 errors" in _run(
        folder, EMPTY | NO_NETWORK, python, "-m", "pyright", "tests/checks.py"
    )
    elsewhere = [python, "-P", "-c", "import ctflow; print(ctflow.__version__)"]
    assert _run(tmp_path, EMPTY, *elsewhere).strip() == ctflow.__version__


def _kill_while_torch_is_unpacked(folder: Path) -> None:
    """Start the installation and end it, with its children, when it is half done."""
    command = ["make", "environment"]
    with subprocess.Popen(
        command, cwd=folder, env=EMPTY, start_new_session=True, stdout=subprocess.DEVNULL
    ) as process:
        while not list(folder.glob(".venv/lib/*/site-packages/torch")):
            assert process.poll() is None, "the installation ended before torch was unpacked"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)


def _run(folder: Path, environment: dict[str, str], *command: str) -> str:
    """What a successful command prints."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
