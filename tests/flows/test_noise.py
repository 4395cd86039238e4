"""Probes belong to samples, and have the moments that estimators need."""

from __future__ import annotations

import pytest
import torch

from ctflow.flows.noise import draw_seed, probes

LAWS = ("rademacher", "gaussian")


def samples(n: int, dim: int = 3) -> torch.Tensor:
    """Points [n, dim]."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("law", LAWS)
def test_a_sample_keeps_its_probes_in_any_batch(law: str) -> None:
    """Neither the order of the rows nor the neighbours matter."""
    z = samples(50)
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(probes(z[rows], 2, law, 7), probes(z, 2, law, 7)[:, rows])


@pytest.mark.parametrize("law", LAWS)
def test_probes_are_independent_with_unit_variance(law: str) -> None:
    """Mean 0 and covariance 1 over samples, variables and probes, within four standard errors."""
    e = probes(samples(20_000), 2, law, 1).movedim(0, 1).flatten(1)  # [N, K * D]
    error = 4 / len(e) ** 0.5
    assert float(e.mean(dim=0).abs().max()) < error
    assert float((e.t() @ e / len(e) - torch.eye(6)).abs().max()) < error * (
        1 if law == "rademacher" else 2**0.5
    )


def test_gaussian_probes_are_gaussian() -> None:
    """The distribution function at seven quantiles, within four standard errors."""
    e = probes(samples(40_000), 1, "gaussian", 5).flatten()
    at = torch.linspace(-2.4, 2.4, 7, dtype=torch.float64)
    share = (e.unsqueeze(1) < at).double().mean(dim=0)
    wanted = torch.distributions.Normal(0.0, 1.0).cdf(at)
    assert float((share - wanted).abs().max()) < 2 / len(e) ** 0.5


def test_another_seed_gives_other_probes() -> None:
    """And the same seed the same."""
    z = samples(100)
    assert torch.equal(probes(z, 1, "gaussian", 1), probes(z, 1, "gaussian", 1))
    assert not (probes(z, 1, "gaussian", 1) == probes(z, 1, "gaussian", 2)).any()


def test_the_seed_follows_the_generator_of_torch() -> None:
    """`torch.manual_seed` repeats it."""
    torch.manual_seed(4)
    first = draw_seed()
    assert draw_seed() != first
    torch.manual_seed(4)
    assert draw_seed() == first


def test_the_two_zeros_are_one_number() -> None:
    """-0.0 and 0.0 are the same sample."""
    z = torch.tensor([[0.0], [-0.0]])
    e = probes(z, 8, "gaussian", 0)
    assert torch.equal(e[:, 0], e[:, 1])
    assert e.dtype == torch.float32
