"""`ctflow run`: a program as Python would run it, with one import answered by ctflow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctflow.cli import main

PROGRAM = """
import sys
import beside
import torchdiffeq
from torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event

def fail():
    raise ValueError("the program's own")

if __name__ == "__main__":
    print(odeint.__module__, __file__, sys.argv[1:], beside.NUMBER)
    if "fail" in sys.argv:
        fail()
    if "interrupt" in sys.argv:
        raise KeyboardInterrupt
    if "leave" in sys.argv:
        sys.exit(7)
    if "private" in sys.argv:
        import torchdiffeq._impl
    if "backend" in sys.argv:
        import ctflow, torch
        solver = ctflow.Solver(backend="torchdiffeq")
        ctflow.odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], solver=solver)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program and a module beside it."""
    path = tmp_path_factory.mktemp("program")
    (path / "program.py").write_text(PROGRAM)
    (path / "beside.py").write_text("NUMBER = 5\n")
    return path


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "ctflow", "run", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": root, "PATH": "", "NO_COLOR": "1"},
    )  # fmt: skip


def test_a_script_runs_with_the_import_replaced(folder: Path) -> None:
    """Its own options stay its own, and modules beside it are found; ctflow's backend stays."""
    done = _run(folder, "--replace", "torchdiffeq", "program.py", "--help", "-m", "x", "backend")
    assert done.returncode == 0, done.stderr
    expected = "ctflow.compat.torchdiffeq.api program.py ['--help', '-m', 'x', 'backend'] 5\n"
    assert done.stdout == expected


def test_pytest_runs_as_a_module(folder: Path) -> None:
    """`-m pytest` with options of its own, an `-m` among them."""
    (folder / "test_it.py").write_text(
        "import torchdiffeq\n"
        "def test_it():\n"
        "    assert torchdiffeq.odeint.__module__.startswith('ctflow')\n"
    )
    words = ["-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "test_it.py"]
    done = _run(folder, "--replace", "torchdiffeq", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.fixture
def within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command in this process, whose modules, arguments and paths come back afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ctflow"])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    before = dict(sys.modules)
    for name in ("__main__", "torchdiffeq", "torchdiffeq._impl"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, sys))

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as left:
            main(["run", *words])
        return int(left.value.code or 0)

    yield run
    monkeypatch.undo()
    for name in [name for name in sys.modules if name not in before]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("way", [["program.py"], ["-m", "program"]])
def test_an_error_is_shown_as_python_shows_it(
    within: Callable[..., int], capsys: pytest.CaptureFixture[str], way: list[str]
) -> None:
    """Exit code 1, and no line of ctflow's in the traceback."""
    assert within("--replace=torchdiffeq", *way, "fail") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.endswith("ValueError: the program's own\n")
    assert "ctflow" not in errors


def test_a_script_leaves_with_its_own_exit_code(within: Callable[..., int]) -> None:
    """As `sys.exit` says, and as shells say that it was interrupted."""
    assert within("--replace", "torchdiffeq", "program.py", "leave") == 7
    assert within("--replace", "torchdiffeq", "program.py", "interrupt") == 130


def test_a_part_of_the_library_that_is_not_there_is_missed_by_name(
    within: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its private modules are not answered by anything."""
    assert within("--replace", "torchdiffeq", "program.py", "private") == 1
    assert "No module named 'torchdiffeq._impl'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "`script` must be given"),
        (["program.py"], "`--replace` must name a library"),
        (["--replace", "torchdiffeq", "absent.py"], "`script` must be a file, got 'absent.py'"),
        (["--replace", "torchdiffeq", "-m", "absent"], "No module named absent"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(
    within: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    """Without a traceback."""
    assert within(*words) in (1, 2)
    errors = " ".join(capsys.readouterr().err.split())
    assert says in errors
    assert "Traceback" not in errors
