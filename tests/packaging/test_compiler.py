"""Without a compiler the tests of compiled code are skipped, and a line says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.workplace import ROOT

SHOW = '. ./.ci/compiler.sh; echo "[${CTFLOW_NO_COMPILER:-}]"'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script, an environment whose Python has headers, and an empty PATH."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "bin").mkdir()
    _program(tmp_path / ".venv/bin/python")
    return tmp_path


def test_a_machine_with_a_compiler_skips_nothing(checkout: Path) -> None:
    """Nothing is said where nothing is missing."""
    _program(checkout / "bin/g++")
    assert _sourced(checkout) == "[]\n"


def test_a_missing_compiler_is_named(checkout: Path) -> None:
    """The line and the variable give the reason."""
    output = _sourced(checkout)
    assert "SKIPPING the tests of compiled code: no C++ compiler" in output
    assert "[no C++ compiler (g++, c++ or clang++)]" in output


def test_the_compiler_that_is_named_is_the_one_looked_for(checkout: Path) -> None:
    """CXX may hold a launcher and options; its first word must exist."""
    _program(checkout / "bin/g++")
    assert "[no C++ compiler (ccache g++)]" in _sourced(checkout, CXX="ccache g++")
    _program(checkout / "bin/ccache")
    assert _sourced(checkout, CXX="ccache g++") == "[]\n"


def test_missing_headers_are_named_with_their_package(checkout: Path) -> None:
    """Python.h comes in a package of its own on Debian."""
    _program(checkout / "bin/g++")
    _program(checkout / ".venv/bin/python", "exit 1")
    assert "[no Python.h (on Debian and Ubuntu: apt install python3-dev)]" in _sourced(checkout)


def test_the_tests_marked_compiler_are_skipped_with_the_reason(tmp_path: Path) -> None:
    """The variable reaches the suite through its conftest."""
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, tmp_path)
    test = "import pytest\n\n@pytest.mark.compiler\ndef test_compiled():\n    raise OSError\n"
    (tmp_path / "test_it.py").write_text(test)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"CTFLOW_NO_COMPILER": "no C++ compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "compiled tests are off: no C++ compiler" in result.stdout


def _program(path: Path, text: str = "exit 0") -> None:
    """An executable that runs one line of sh."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _sourced(checkout: Path, **environment: str) -> str:
    """What sourcing the script prints, and the variable that it leaves."""
    result = subprocess.run(
        ["/bin/sh", "-c", SHOW],
        cwd=checkout,
        env={"PATH": str(checkout / "bin"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout
