"""The stochastic Lorenz example's data are what they claim, and its judge would notice a fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow.cli.checkout import load_script

script = load_script(Path(__file__).parents[2], "stochastic_lorenz")


def test_the_smoke_preset_writes_its_files(tmp_path: Path) -> None:
    """It trains, judges and draws."""
    pytest.importorskip("matplotlib")
    record = script.main(replace(script.PRESETS["smoke"], results=tmp_path))
    assert record["RMSE in between"] > record["of a linear interpolant"]  # untrained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


def test_the_system_rests_where_lorenz_does() -> None:
    """At the origin and at the centres of its two wings."""
    side = (8 / 3 * 27) ** 0.5
    rest = torch.tensor([[0.0, 0, 0], [side, side, 27], [-side, -side, 27]], dtype=torch.float64)
    torch.testing.assert_close(script.lorenz(torch.zeros(()), rest), torch.zeros_like(rest))


def test_series_lie_on_the_attractor_and_are_seen_in_part() -> None:
    """Mean 0 and variance 1, the noise's on top, and so many points of each."""
    data = script.draw(200, 1 / 3, seed=0)
    mean, spread = data.truth.mean(dim=(0, 1)), data.truth.std(dim=(0, 1))
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=0.25)
    torch.testing.assert_close(spread, torch.ones(3), rtol=0.15, atol=0)
    noise = (data.noisy - data.truth[:, : script.N_SEEN]).std().item()
    assert noise == pytest.approx(script.NOISE, rel=0.02)
    assert data.seen.sum(dim=1).tolist() == [34] * 200


def test_the_judge_counts_what_a_band_holds() -> None:
    """Paths about the truth hold it nine times in ten; a narrow bundle beside it does not."""
    data = script.draw(30, 1 / 3, seed=1)
    generator = torch.Generator().manual_seed(0)
    shape = (400, *data.truth.shape)
    own = torch.randn(data.truth.shape, generator=generator)  # the truth is one more such path
    wide = data.truth + 0.2 * (torch.randn(shape, generator=generator) - own)
    found = script.judge(data, wide)
    assert found["coverage"] == pytest.approx(0.9, abs=0.02)
    assert found["coverage after"] == pytest.approx(0.9, abs=0.02)
    assert found["RMSE after"] == pytest.approx(0.2, rel=0.05)
    beside = script.judge(data, data.truth + 0.5 + 0.1 * torch.randn(shape, generator=generator))
    assert beside["coverage"] < 0.01
    assert beside["RMSE in between"] == pytest.approx(0.5, rel=0.02)
