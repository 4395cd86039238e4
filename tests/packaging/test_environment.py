"""`make environment` installs once, recovers, and says in one line what it lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.packaging.workplace import Workplace

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A copy of the set-up files in a folder with a space in its name, without git."""
    return Workplace(tmp_path)


def test_the_first_call_installs_with_the_constraints(place: Workplace) -> None:
    """Every call of pip has the pins, and the last one installs ctflow."""
    assert place.make("environment").returncode == 0
    calls = place.calls("pip")
    assert all("-c .venv/constraints.txt" in " ".join(call) for call in calls)
    assert calls[-1][-2:] == ["--editable", ".[dev]"]
    assert place.exists(".installed")


def test_a_second_call_installs_nothing(place: Workplace) -> None:
    """It says nothing either."""
    place.make("environment")
    before = place.calls("pip")
    second = place.make("environment")
    assert (second.returncode, second.stdout) == (0, "")
    assert place.calls("pip") == before


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_installed_into_the_same_environment(
    place: Workplace, file: str
) -> None:
    """The stamp depends on what the two files say."""
    place.make("environment")
    with (place.folder / file).open("a") as changed:
        changed.write("# changed\n")
    place.make("environment")
    assert len(place.calls("pip")) == 4
    assert len(place.calls("venv")) == 1


def test_a_moved_folder_is_installed_again(place: Workplace) -> None:
    """An editable installation names its folder, so the stamp does too."""
    place.make("environment")
    place.folder = place.folder.rename(place.folder.with_name("another name"))
    place.make("environment")
    assert len(place.calls("pip")) == 4


@pytest.mark.parametrize("broken", ["venv", "pip"])
def test_an_interrupted_installation_starts_afresh(place: Workplace, broken: str) -> None:
    """A half-made environment is never taken for a whole one."""
    place.pretend(**{broken: 1})
    assert place.make("environment").returncode != 0
    assert not place.exists(".installed")
    place.pretend()
    assert place.make("environment").returncode == 0
    assert place.exists(".installed")
    assert not place.exists(".unfinished")
    assert len(place.calls("venv")) == 2


def test_a_python_that_is_too_old_is_refused_in_one_line(place: Workplace) -> None:
    """The line has the version wanted, the version found and what to do."""
    place.pretend(version=[3, 9, 18])
    result = place.make("environment")
    assert result.returncode != 0
    line = result.stderr.splitlines()[0]
    assert "3.11 or newer is needed, but python3 is 3.9.18" in line
    assert "PYTHON=" in line
    assert not (place.folder / ".venv").exists()


def test_a_newer_python_beside_an_old_one_is_found(place: Workplace) -> None:
    """`python3` need not be the one that is new enough."""
    place.add_python("python3.11")
    place.pretend(version=[3, 9, 18], versions={"python3.11": [3, 11, 7], "python": [3, 11, 7]})
    result = place.make("environment")
    assert result.returncode == 0
    assert "with python3.11 (Python 3.11.7)" in result.stdout


def test_the_python_that_is_named_is_not_replaced(place: Workplace) -> None:
    """An old one that was asked for is refused although another would do."""
    place.add_python("python3.9")
    place.pretend(versions={"python3.9": [3, 9, 18]})
    result = place.make("environment", "PYTHON=python3.9")
    assert result.returncode != 0
    assert "PYTHON=python3.9 is 3.9.18" in result.stderr


def test_no_python_at_all_is_said(place: Workplace) -> None:
    """A machine without Python gets the same line."""
    (place.bin / "python3").unlink()
    result = place.make("environment")
    assert result.returncode != 0
    assert "python3 is not installed" in result.stderr


def test_a_missing_ensurepip_is_named_with_its_package(place: Workplace) -> None:
    """Debian splits it from Python, as python3.X-venv."""
    place.pretend(missing=["ensurepip"])
    result = place.make("environment")
    assert result.returncode != 0
    assert "`ensurepip` is missing" in result.stderr
    assert "apt install python3.12-venv" in result.stderr


def test_arguments_for_pip_reach_every_call(place: Workplace) -> None:
    """A mirror or another index is needed by all of them."""
    place.make("environment", "PIP_ARGS=--find-links wheels")
    assert all("--find-links wheels" in " ".join(call) for call in place.calls("pip"))


def test_the_size_is_said_before_anything_is_fetched(place: Workplace) -> None:
    """Torch is large; the reader may want to stop and choose another build."""
    output = place.make("environment").stdout
    assert "2.7 GB" in output
    assert output.index("2.7 GB") < output.index("pip runs")


def test_an_installed_torch_is_reused(place: Workplace) -> None:
    """The environment sees the system's packages, and the pin of torch is left out."""
    place.pretend(torch="2.12.0+cu130")
    assert place.make("environment", "TORCH=system").returncode == 0
    assert place.calls("venv") == [["--system-site-packages", ".venv"]]
    pins = (place.folder / ".venv/constraints.txt").read_text()
    assert "torch==" not in pins
    assert "torchdiffeq==" in pins


@pytest.mark.parametrize("torch", [None, "2.10.1"])
def test_a_torch_that_is_missing_or_too_old_is_not_reused(
    place: Workplace, torch: str | None
) -> None:
    """Asking for the installed one fails before anything is made."""
    place.pretend(torch=torch)
    result = place.make("environment", "TORCH=system")
    assert result.returncode != 0
    assert "TORCH=system" in result.stderr
    assert place.calls("venv") == []


def test_an_unknown_word_for_torch_is_refused(place: Workplace) -> None:
    """A misspelt setting is not ignored."""
    result = place.make("environment", "TORCH=sytem")
    assert result.returncode != 0
    assert "got TORCH=sytem" in result.stderr
