"""The Ornstein-Uhlenbeck example's exact answers are exact, and it writes its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctflow.cli.checkout import load_script

latent_sde = load_script(Path(__file__).parents[2], "latent_sde")


def test_the_smoke_preset_writes_its_files(tmp_path: Path) -> None:
    """It trains, judges and draws."""
    pytest.importorskip("matplotlib")
    record = latent_sde.main(replace(latent_sde.PRESETS["smoke"], results=tmp_path))
    assert record["gap"] > 0  # an untrained bound lies below the evidence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json", "smoke.png"]


def test_series_have_the_process_own_moments() -> None:
    """Variance one plus the noise's; two times h apart are correlated as exp(-h)."""
    x, t = latent_sde.draw(20_000, seed=0)
    wanted = 1 + latent_sde.NOISE**2
    assert x.var().item() == pytest.approx(wanted, rel=0.03)
    gap = (t[:, 1] - t[:, 0]).unsqueeze(1)
    product = x[:, 0] * x[:, 1] / torch.exp(-gap)
    assert product.mean().item() == pytest.approx(1.0, abs=0.05)


def test_the_exact_posterior_meets_the_data_without_noise_and_the_prior_far_away() -> None:
    """Its band is narrow at a point and the stationary one long after."""
    x, t = torch.tensor([[1.3]]), torch.tensor([0.5])
    mean, spread = latent_sde.posterior(x, t, torch.tensor([0.5, 20.0]))
    weight = 1 / (1 + latent_sde.NOISE**2)
    torch.testing.assert_close(mean, torch.tensor([1.3 * weight, 0.0]), rtol=1e-5, atol=1e-5)
    wanted = torch.tensor([(1 - weight) ** 0.5, 1.0])
    torch.testing.assert_close(spread, wanted, rtol=1e-5, atol=1e-5)
