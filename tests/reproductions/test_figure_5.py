"""Maximum likelihood on circles and moons runs from shapes to files, and its bands can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ctflow.cli.checkout import load_script

pytest.importorskip("matplotlib")

figure = load_script(Path(__file__).parents[2], "figure_5_max_likelihood")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of one run of the smoke preset."""
    folder = tmp_path_factory.mktemp("results")
    figure.main(replace(figure.PRESETS["smoke"], results=folder))
    return folder


def test_the_record_has_both_flows_above_the_entropy(results: Path) -> None:
    """Likelihoods, entropy, energy distance, and mass."""
    record = json.loads((results / "smoke.json").read_text())
    assert [row["kind"] for row in record["rows"]] == ["CNF", "NF"]
    assert [band["passed"] for band in record["bands"]] == [True]
    for row in record["rows"]:
        assert abs(row["nll"] - row["entropy"] - row["excess"]) < 1e-9
        assert 0.9 < row["mass"] < 1.05
        assert row["returned"] < 1e-4


def test_only_record_and_figure_are_written(results: Path) -> None:
    """No checkpoint of a short run."""
    assert sorted(path.name for path in results.iterdir()) == ["smoke.json", "smoke.png"]
    assert (results / "smoke.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_processes_train_what_one_does(results: Path, tmp_path: Path) -> None:
    """They leave checkpoints, which the script takes up: every number is the same."""
    ahead = replace(figure.PRESETS["smoke"], workers=2, keep=True, results=tmp_path)
    rows = figure.main(ahead)["rows"]
    alone = json.loads((results / "smoke.json").read_text())["rows"]
    kept = sorted(path.name for path in (tmp_path / ".checkpoints" / "smoke").iterdir())
    assert [name.rsplit("-", 1)[0] for name in kept] == ["CNF-moons-0", "NF-moons-0"]
    for ours, theirs in zip(rows, alone, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def row(kind: str, **changes: float) -> object:
    """A result that meets every band of the full preset, with changes."""
    nll = 0.67 if kind == "CNF" else 1.0
    good = figure.Row("moons", kind, nll, 0.001, 0.64, nll - 0.64, 0.01, 1.0, 1e-6, 1.0)
    return replace(good, **changes)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, None),
        ({"excess": 0.06}, "CNF above the entropy (nats), moons"),
        ({"error": float("nan")}, "least excess over the entropy, with 3 standard errors"),
        ({"excess": -0.01}, "least excess over the entropy, with 3 standard errors"),
        ({"distance": 0.03}, "energy distance, moons"),
        ({"mass": 0.9}, "mass of the CNF, moons"),
        ({"returned": 1e-3}, "forward then inverse, moons"),
        ({"nll": 1.1}, "lead of CNF over NF (nats), moons"),
    ],
)
def test_the_full_bands_can_be_met_and_missed(
    changes: dict[str, float], missed: str | None
) -> None:
    """One fault, one band."""
    config = replace(figure.PRESETS["full"], shapes=("moons",), excess=(("moons", 0.05),))
    bands = figure.bands_of(config, [row("CNF", **changes), row("NF")])
    assert [band.name for band in bands if not band.passed] == ([missed] if missed else [])


@pytest.mark.slow
def test_the_quick_preset_meets_its_bands(tmp_path: Path) -> None:
    """Both shapes, both flows."""
    record = figure.main(replace(figure.PRESETS["quick"], results=tmp_path))
    assert all(band["passed"] for band in record["bands"])
