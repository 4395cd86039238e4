"""The animation of a flow goes from data to files, and its frames move."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ctflow.cli.checkout import load_script

pytest.importorskip("matplotlib")

script = load_script(Path(__file__).parents[2], "flow_animation")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of one run of the smoke preset."""
    folder = tmp_path_factory.mktemp("results")
    script.main(replace(script.PRESETS["smoke"], results=folder))
    return folder


def test_record_strip_and_animation_are_written(results: Path) -> None:
    """And nothing else."""
    assert sorted(path.name for path in results.iterdir()) == [
        "smoke.gif",
        "smoke.json",
        "smoke.png",
    ]
    assert json.loads((results / "smoke.json").read_text())["bands"][0]["passed"]


def test_every_time_has_its_frame(results: Path) -> None:
    """Distinct pictures, repeated for ever, the last held longest."""
    image = pytest.importorskip("PIL.Image")
    with image.open(results / "smoke.gif") as film:
        assert film.n_frames == script.PRESETS["smoke"].frames
        assert film.info["loop"] == 0
        frames, lasting = [], []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(film.convert("RGB").tobytes())
            lasting.append(film.info["duration"])
    assert len(set(frames)) == len(frames)
    assert lasting[-1] > 5 * lasting[0]
