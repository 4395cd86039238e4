"""`ctflow` as a user meets it: help, version, info, and errors of one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ctflow import __version__
from ctflow.backends import Feature, available, get
from ctflow.cli.app import app

SCRIPT = """
from dataclasses import dataclass
from ctflow import InvalidProblem


@dataclass(frozen=True)
class Config:
    preset: str
    seed: int = 0
    backend: str = "native"


PRESETS = {"smoke": Config("smoke"), "quick": Config("quick"), "full": Config("full")}


def main(config):
    if config.seed == 14:
        raise KeyError("a bug,\\n and no error of ours")
    if config.seed == 15:
        raise KeyboardInterrupt
    if config.seed == 13:
        raise InvalidProblem("`seed` must be lucky,\\n got 13. Take another.")
    print(config.preset, config.seed, config.backend)
    return {"bands": [{"passed": True}, {"passed": config.seed == 0}]}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source checkout with one reproduction, `toy`, that only prints its settings."""
    (tmp_path / "reproductions").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ctflow"\n')
    (tmp_path / "reproductions/toy.py").write_text(SCRIPT)
    return tmp_path


def run(*arguments: object) -> Result:
    """What a command line does."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_version_is_that_of_the_package() -> None:
    """One line, without a command."""
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"ctflow {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("--help",)], ids=["nothing", "--help"])
def test_help_names_the_commands(arguments: tuple[str, ...]) -> None:
    """With or without being asked for."""
    output = run(*arguments).output
    assert "reproduce" in output
    assert "info" in output


def test_help_of_a_command_has_examples() -> None:
    """They can be pasted."""
    result = run("reproduce", "--help")
    assert result.exit_code == 0
    assert "ctflow reproduce digits --preset smoke" in result.output


def test_info_names_every_backend_with_its_gradients() -> None:
    """Versions first, then who can solve."""
    output = run("info").output
    assert output.startswith("ctflow")
    for name in available():
        line = next(line for line in output.splitlines() if line.startswith(f"backend {name}"))
        assert "gradients: " in line


def test_info_says_what_each_backend_can_do() -> None:
    """A row a feature, a column a backend that is installed: their own word."""
    lines = run("info").output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("what each can do"))
    columns = lines[head].split()[4:]
    assert set(columns) == set(available())
    row = next(line for line in lines[head:] if line.startswith(Feature.DENSE.value))
    marks = row.removeprefix(Feature.DENSE.value).split()
    said = {name: mark == "yes" for name, mark in zip(columns, marks, strict=True)}
    assert said == {name: Feature.DENSE in get(name).features for name in columns}


@pytest.mark.parametrize(
    "command", ["reproduce", "report", "bench", "data", "info", "check", "compare", "certify"]
)
def test_every_command_has_examples_in_its_help(command: str) -> None:
    """Lines that begin with it."""
    output = run(command, "--help").output
    assert f"ctflow {command}" in output.split("For example", 1)[1]


def test_info_says_which_backend_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known name whose library is not there is shown as such."""
    monkeypatch.setattr("ctflow.cli.info.names", lambda: ("native", "ghost"))
    assert "backend ghost   not installed" in run("info").output


def test_settings_reach_the_script(root: Path) -> None:
    """Preset, seed and backend; the quick preset is the default."""
    given = run(
        "reproduce", "toy", "--root", root, "--preset", "smoke", "--seed", 7, "--backend", "b"
    )
    assert given.stdout == "smoke 7 b\n"
    assert run("reproduce", "toy", "--root", root).stdout == "quick 0 native\n"


@pytest.mark.parametrize(("seed", "code"), [(0, 0), (1, 1)], ids=["within", "missed"])
def test_check_fails_where_a_band_is_missed(seed: int, code: int, root: Path) -> None:
    """Exit code 1, and 0 without `--check`."""
    arguments = ("reproduce", "toy", "--root", root, "--seed", seed)
    assert run(*arguments, "--check").exit_code == code
    assert run(*arguments).exit_code == 0


def test_an_error_is_one_line_and_exit_code_2(root: Path) -> None:
    """On standard error, without a traceback."""
    result = run("reproduce", "toy", "--root", root, "--seed", 13)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: `seed` must be lucky, got 13. Take another.\n"


def test_a_bug_is_one_line_too_and_says_how_to_see_where(root: Path) -> None:
    """With its kind; and Ctrl-C is no error."""
    result = run("reproduce", "toy", "--root", root, "--seed", 14)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: KeyError: ")
    assert "ctflow --debug" in result.stderr
    shown = run("--debug", "reproduce", "toy", "--root", root, "--seed", 14)
    assert isinstance(shown.exception, KeyError)
    stopped = run("reproduce", "toy", "--root", root, "--seed", 15)
    assert (stopped.exit_code, stopped.stderr.count("\n")) == (130, 1)
    assert "--resume" in stopped.stderr


def test_debug_keeps_the_traceback(root: Path) -> None:
    """The error itself comes through."""
    result = run("--debug", "reproduce", "toy", "--root", root, "--seed", 13)
    assert type(result.exception).__name__ == "InvalidProblem"


def test_outside_a_checkout_the_process_says_so_in_one_line(tmp_path: Path) -> None:
    """As installed, in a folder that is no checkout."""
    result = subprocess.run(
        [sys.executable, "-m", "ctflow", "reproduce", "digits"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "need a source checkout" in result.stderr


def test_a_preset_that_a_script_has_not_is_answered_by_those_it_has(root: Path) -> None:
    """And so is a setting."""
    result = run("reproduce", "toy", "--root", root, "--preset", "paper")
    assert result.exit_code == 2
    assert "there are: smoke, quick, full" in result.stderr
    result = run("reproduce", "toy", "--root", root, "--minutes", 1)
    assert result.exit_code == 2
    assert "takes no --minutes" in result.stderr
