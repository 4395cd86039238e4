"""The toy densities run from data to files, and their samplers are what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness.toys import TOYS, entropies

from ctflow.cli.checkout import load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of one run of the smoke preset."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("zuko")
    folder = tmp_path_factory.mktemp("results")
    script = load_script(ROOT, "toy_densities")
    script.main(replace(script.PRESETS["smoke"], results=folder))
    return folder


def test_the_record_has_every_model(results: Path) -> None:
    """With a finite likelihood, beside that of a Gaussian."""
    record = json.loads((results / "smoke.json").read_text())
    models = [row["model"] for row in record["rows"]]
    assert models == ["FFJORD", "planar CNF", "matching", "matching, OT", "spline"]
    assert all(math.isfinite(row["nll"]) and row["gaussian"] > 0 for row in record["rows"])
    assert sorted(path.name for path in results.iterdir()) == ["smoke.json", "smoke.png"]


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_set_is_centred_and_fits_the_window(name: str) -> None:
    """Mean zero within five standard errors, and nothing beyond what is drawn but stragglers."""
    torch.manual_seed(0)
    x = TOYS[name](20_000)
    assert x.shape == (20_000, 2)
    assert float((x.mean(dim=0).abs() / x.std(dim=0)).max()) < 5 / 20_000**0.5
    assert float((x.abs() > 4.6).double().mean()) < 0.01


def test_the_checkerboard_is_half_of_its_square() -> None:
    """Every other cell of side two."""
    torch.manual_seed(0)
    cells = (TOYS["checkerboard"](20_000) / 2).floor()
    parity = cells.sum(dim=1) % 2
    assert bool((parity == parity[0]).all())
    assert len(cells.unique(dim=0)) == 8


def test_the_entropy_of_the_gaussians_is_nearly_that_of_separate_ones() -> None:
    """log 8 + log(2 pi e sigma^2), less what they overlap."""
    separate = math.log(8) + math.log(2 * math.pi * math.e * 0.125)
    assert 0 < separate - entropies()["8 gaussians"] < 0.02
