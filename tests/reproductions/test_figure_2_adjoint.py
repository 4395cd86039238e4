"""The computed figure 2 jumps where it should, and its check would notice if it did not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow.backends import Feature, get
from ctflow.cli.checkout import load_script
from ctflow.testing.routes import prompt

ROOT = Path(__file__).parents[2]
figure_2 = load_script(ROOT, "figure_2_adjoint")
SMOKE = figure_2.PRESETS["smoke"]
BOTH = {Feature.DIRECT, Feature.ADJOINT}


@pytest.mark.parametrize("backend", [b for b in prompt() if get(b).features >= BOTH])
def test_the_smoke_preset_meets_its_bands_and_writes_its_files(
    backend: str, tmp_path: Path
) -> None:
    """Jumps to 1e-8 and a(t0) to 1e-6, whoever solves."""
    pytest.importorskip("matplotlib")
    figure_2.main(replace(SMOKE, results=tmp_path, backend=backend))
    record = json.loads((tmp_path / "smoke.json").read_text())
    assert [band["passed"] for band in record["bands"]] == [True] * 4
    assert (tmp_path / "smoke.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


def test_a_wrong_jump_and_a_wrong_curve_would_be_noticed() -> None:
    """The gradients that check them do not come from the adjoint equation."""
    observed = figure_2.Observed(SMOKE)
    jumps = figure_2.measured_jumps(observed)
    observed.residuals = 1.001 * observed.residuals  # the curve jumps by a wrong amount
    assert figure_2.largest(jumps - observed.residuals[1:]) > 1e-4
    assert figure_2.largest_off(observed, observed.curves()) > 1e-4


def test_the_adjoint_falls_to_nothing_after_the_last_observation() -> None:
    """No loss lies beyond it, so the last jump is the whole adjoint."""
    observed = figure_2.Observed(SMOKE)
    last = observed.adjoint_at(observed.times[-1] - 1e-10)
    torch.testing.assert_close(last, observed.residuals[-1], rtol=0.0, atol=1e-8)
