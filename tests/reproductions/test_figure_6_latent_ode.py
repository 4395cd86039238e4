"""Figure 6 is drawn from a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ctflow.cli.checkout import load_script

figure_6 = load_script(Path(__file__).parents[2], "figure_6_latent_ode")


def test_the_smoke_preset_writes_its_files(tmp_path: Path) -> None:
    """It trains, measures and draws."""
    pytest.importorskip("matplotlib")
    record = figure_6.main(replace(figure_6.PRESETS["smoke"], results=tmp_path))
    assert record["scores"]["model"] == "latent ODE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]
