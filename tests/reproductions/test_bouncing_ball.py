"""The bouncing ball's parameters are found from the times of its bounces, and the docs show it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow import Unsupported
from ctflow.cli.checkout import load_script

ROOT = Path(__file__).parents[2]
script = load_script(ROOT, "bouncing_ball")


def test_the_smoke_preset_takes_the_real_path(tmp_path: Path) -> None:
    """It measures, fits and draws, and nothing in the record is of this machine's folders."""
    pytest.importorskip("matplotlib")
    script.main(replace(script.PRESETS["smoke"], results=tmp_path))
    record = json.loads((tmp_path / "smoke.json").read_text())
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert str(ROOT) not in json.dumps(record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


def test_another_backend_is_refused() -> None:
    """None of them has events."""
    pytest.importorskip("torchdiffeq")
    config = replace(script.PRESETS["smoke"], backend="torchdiffeq")
    with pytest.raises(Unsupported, match="events"):
        script.times(script.Ball(script.TRUE), script.starts(2), config)


def test_times_are_those_of_the_closed_form() -> None:
    """The first two bounces of each ball."""
    start = script.starts(3)
    with torch.no_grad():
        found = script.times(script.Ball(script.TRUE), start, script.PRESETS["smoke"])
    fall = (2 * (start[:, 0] - script.TRUE["floor"]) / script.TRUE["gravity"]).sqrt()
    exact = torch.stack([fall, fall * (1 + 2 * script.TRUE["restitution"])], dim=1)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=0.0)


def test_the_figure_of_the_docs_is_that_of_the_results() -> None:
    """Bit for bit."""
    shown = (ROOT / "docs" / "figures" / "bouncing_ball.png").read_bytes()
    results = ROOT / "reproductions" / "results" / "bouncing_ball"
    assert shown == (results / "quick.png").read_bytes()
