"""The command line finds a source checkout, or says in one line that there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctflow import CtflowError
from ctflow.cli.checkout import find_root, load_script, scripts


def checkout(folder: Path, name: str = "ctflow") -> Path:
    """A folder that looks like a source checkout with two reproductions."""
    (folder / "reproductions").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    (folder / "reproductions/_shared.py").write_text("answer = 42\n")
    (folder / "reproductions/spiral.py").write_text("from _shared import answer\n")
    (folder / "reproductions/two_moons.py").write_text("")
    return folder


def test_the_checkout_is_found_from_a_folder_within(tmp_path: Path) -> None:
    """From the working directory upwards, the nearest one."""
    root = checkout(tmp_path / "with space")
    within = root / "reproductions/results/digits"
    within.mkdir(parents=True)
    assert find_root(within, named=None) == root


def test_a_named_root_wins_over_the_working_directory(tmp_path: Path) -> None:
    """`--root` is taken as it is."""
    here, there = checkout(tmp_path / "here"), checkout(tmp_path / "there")
    assert find_root(here, named=there) == there


def test_a_checkout_of_another_project_is_passed_by(tmp_path: Path) -> None:
    """A pyproject.toml of another name is not ours, even with a folder of reproductions."""
    root = checkout(tmp_path)
    assert find_root(checkout(root / "vendored", name="other"), named=None) == root


def test_no_checkout_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """It names the option."""
    with pytest.raises(CtflowError, match="--root PATH"):
        find_root(tmp_path, named=None)


@pytest.mark.parametrize("text", ["", "[project]\nname = 'other'\n", "not toml ["])
def test_a_named_root_that_is_no_checkout_is_refused(text: str, tmp_path: Path) -> None:
    """Whatever its pyproject.toml is."""
    (tmp_path / "reproductions").mkdir()
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(CtflowError, match="`--root` must be a source checkout"):
        find_root(tmp_path, named=tmp_path)


def test_scripts_are_the_files_without_underscore(tmp_path: Path) -> None:
    """What the scripts share is not a reproduction."""
    assert scripts(checkout(tmp_path)) == ["spiral", "two_moons"]


def test_a_script_may_import_what_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the scripts is importable while one is loaded."""
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_script(checkout(tmp_path), "spiral").answer == 42


def test_an_unknown_script_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    """A misspelt name is answered by the list."""
    with pytest.raises(CtflowError, match="there are: spiral, two_moons"):
        load_script(checkout(tmp_path), "spirall")
