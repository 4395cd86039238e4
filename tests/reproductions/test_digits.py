"""The digits reproduction runs from data to files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow.cli.checkout import load_script
from ctflow.testing.routes import prompt

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
digits = load_script(ROOT, "digits")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of one run of the smoke preset."""
    folder = tmp_path_factory.mktemp("results")
    digits.main(replace(digits.PRESETS["smoke"], results=folder))
    return folder


def test_the_record_has_every_backend_within_its_band(results: Path) -> None:
    """The same weights give the same gradient whoever solves."""
    record = json.loads((results / "smoke.json").read_text())
    assert {row["backend"] for row in record["comparison"]} == set(prompt())
    assert [band["passed"] for band in record["bands"]] == [True]
    assert len({row["accuracy"] for row in record["comparison"]}) == 1


def test_the_record_says_what_it_was_made_with(results: Path) -> None:
    """Settings, versions, machine, and no path of it."""
    record = json.loads((results / "smoke.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert str(ROOT) not in json.dumps(record)


def test_the_figure_is_written(results: Path) -> None:
    """A PNG, and nothing beside the two files."""
    assert (results / "smoke.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in results.iterdir()) == ["smoke.json", "smoke.png"]


def test_training_and_test_images_are_apart_and_fixed_by_the_seed() -> None:
    """No image is in both, each digit is in both, and the split repeats."""
    (train, _), (test, labels) = digits.load(digits.PRESETS["quick"])
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in test)
    assert labels.unique().tolist() == list(range(10))
    assert torch.equal(digits.load(digits.PRESETS["quick"])[1][0], test)


def test_shifting_moves_each_image_by_at_most_a_pixel() -> None:
    """Every shift occurs, and what leaves at the top does not come back at the bottom."""
    images = torch.zeros(500, 1, 8, 8)
    images[:, :, 0, 4] = 1.0
    found = digits.shifted(images).nonzero()
    assert digits.shifted(images).shape == images.shape
    assert {(i, j) for _, _, i, j in found.tolist()} == {(i, j) for i in (0, 1) for j in (3, 4, 5)}


def test_the_number_of_threads_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has its own, for itself alone."""
    before = torch.get_num_threads()
    monkeypatch.setattr(digits, "run", lambda *_: {"n": torch.get_num_threads()})
    found = digits.main(replace(digits.PRESETS["smoke"], threads=before + 1))
    assert (found["n"], torch.get_num_threads()) == (before + 1, before)


@pytest.mark.slow
def test_the_script_runs_by_itself(tmp_path: Path) -> None:
    """`python reproductions/digits.py` from anywhere takes the command's options."""
    result = subprocess.run(
        [sys.executable, ROOT / "reproductions/digits.py", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "--preset" in result.stdout


@pytest.mark.slow
def test_the_quick_preset_meets_its_bands(tmp_path: Path) -> None:
    """At least 97 % of the test digits, and gradients that agree to 1e-6."""
    record = digits.main(replace(digits.PRESETS["quick"], results=tmp_path))
    assert all(band["passed"] for band in record["bands"])
